"""A model whose answers wait until the test lets them go on."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

from answering import Answering

from llava_video_cli.conversation import Chunk, Request, Usage
from llava_video_cli.errors import ContextError
from llava_video_cli.prompt.budget import Budget
from llava_video_cli.video.fit import FrameInput, FrameResize

USAGE = Usage(1, 0, 1, 0.0, 0.0, 1)


class WaitingModel(Answering):
    """A model that answers `text: <question>`. A question with `wait` in it waits for `go`, or until it is stopped."""

    name = "waiting"
    notes: tuple[str, ...] = ()
    threads = 16

    def __init__(self) -> None:
        self.go = threading.Event()
        self.asked: list[str] = []
        self.stopped = 0

    @property
    def settings(self) -> dict[str, Any]:
        return {}

    def stream(self, request: Request) -> Iterator[Chunk]:
        text = request.turns[-1].text
        self.asked.append(text)
        if "too long" in text:
            raise ContextError("it does not fit")
        if "broken" in text:
            raise ValueError("a bug")
        try:
            yield Chunk("text: ")
            while "wait" in text and not self.go.wait(0.01):
                yield Chunk(".")
            yield Chunk(text, "stop", USAGE)
        except GeneratorExit:
            self.stopped += 1
            raise

    def budget(self, request: Request) -> Budget:
        return Budget(1, request.generation.max_new_tokens, 100, tuple(9 for _ in request.media))

    @property
    def shrink(self) -> FrameResize:
        return FrameResize(FrameInput(48, 48), lambda image: image)
