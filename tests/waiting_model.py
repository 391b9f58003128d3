"""A model whose answers wait until the test lets them go on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from llava_video_cli.conversation import Answer, Chunk, Request, Usage
from llava_video_cli.errors import ContextError, OutOfMemoryError
from llava_video_cli.prompt.budget import Budget
from llava_video_cli.video.fit import FrameInput, FrameResize

USAGE = Usage(1, 0, 1, 0.0, 0.0, 1)


class WaitingModel:
    """A model that answers `text: <question>`. A question with `wait` in it waits for `go`, or until it is stopped."""

    name = "waiting"
    notes: tuple[str, ...] = ()

    def __init__(self, max_batch: int = 100) -> None:
        self.max_batch = max_batch
        self.go = threading.Event()
        self.batches: list[list[str]] = []
        self.stopped = 0

    @property
    def settings(self) -> dict[str, Any]:
        return {}

    def stream(self, request: Request) -> Iterator[Chunk]:
        for _, chunk in self.stream_all([request]):
            yield chunk

    def stream_all(
        self, requests: Sequence[Request], gone: Callable[[int], bool] | None = None
    ) -> Iterator[tuple[int, Chunk]]:
        texts = [request.turns[-1].text for request in requests]
        self.batches.append(texts)
        if len(texts) > self.max_batch:
            raise OutOfMemoryError("no room")
        if any("too long" in text for text in texts):
            raise ContextError("it does not fit")
        if any("broken" in text for text in texts):
            raise ValueError("a bug")
        try:
            for number in range(len(texts)):
                yield number, Chunk("text: ")
            for number, text in enumerate(texts):
                while "wait" in text and not self.go.wait(0.01):
                    if gone is None or not gone(number):
                        yield number, Chunk(".")
                yield number, Chunk(text, "stop", USAGE)
        except GeneratorExit:
            self.stopped += 1
            raise

    def answer_all(self, requests: Sequence[Request]) -> list[Answer]:  # noqa: ARG002 - the protocol's
        raise AssertionError("a server streams")

    def budget(self, request: Request) -> Budget:
        return Budget(1, request.generation.max_new_tokens, 100, tuple(9 for _ in request.media))

    def fits(self, request: Request) -> int:  # noqa: ARG002 - the protocol's
        return 100

    @property
    def shrink(self) -> FrameResize:
        return FrameResize(FrameInput(48, 48), lambda image: image)
