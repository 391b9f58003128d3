"""What models of the tests' own have in common: threads that answer requests as their `stream` does."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import Any

from llava_video_cli import Answer, Chunk, Request, join
from llava_video_cli.model import Event, answers


class Answering:
    """`submit` and `answer_all` of a model; requests are answered by `threads`, in their order."""

    threads = 1
    at_a_time = 16
    under_way = 0

    def stream(self, request: Request) -> Iterator[Chunk]:
        raise NotImplementedError

    def submit(self, request: Request, deliver: Callable[[Event], None], in_pieces: bool = True) -> Callable[[], None]:
        cancelled = threading.Event()
        self.under_way += 1
        self._asked.put((request, deliver, in_pieces, cancelled))
        return cancelled.set

    def answer_all(self, requests: Sequence[Request]) -> list[Answer]:
        return answers(self.submit, requests)

    @cached_property
    def _asked(self) -> queue.SimpleQueue[Any]:
        asked: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(self.threads):
            threading.Thread(target=self._work, args=(asked,), daemon=True).start()
        return asked

    def _work(self, asked: queue.SimpleQueue[Any]) -> None:
        while True:
            request, deliver, in_pieces, cancelled = asked.get()
            try:
                chunks = iter(()) if cancelled.is_set() else self.stream(request)
                if not in_pieces and not cancelled.is_set():
                    answer = join(chunks)
                    chunks = iter([Chunk(answer.text, answer.finish_reason, answer.usage, answer.scores)])
                for chunk in chunks:
                    if cancelled.is_set():
                        break
                    deliver(chunk)
                del chunks  # closes it
            except Exception as error:  # noqa: BLE001 - who asked gets it
                deliver(error)
            self.under_way -= 1
