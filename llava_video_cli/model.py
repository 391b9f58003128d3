"""The protocol of a model, and how its weights are loaded: no torch."""

from __future__ import annotations

import queue
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, Protocol, TypeAlias

from .conversation import Answer, Chunk, Request, join
from .prompt.budget import Budget
from .video.fit import FrameResize

Quantize = Literal["auto", "none", "8bit", "4bit"]
DType = Literal["auto", "float32", "float16", "bfloat16"]
Attention = Literal["auto", "sdpa", "flash_attention_2", "eager"]
PoolMode = Literal["average", "max"]
Event: TypeAlias = "Chunk | Exception"  # what comes of a request: pieces and a last one, or an error
Submit: TypeAlias = "Callable[[Request, Callable[[Event], None], bool], Callable[[], None]]"
Send = Literal["frames", "file"]  # what a server gets of a video


@dataclass(frozen=True)
class Loading:
    """How weights are loaded; `auto` depends on the machine and the checkpoint.

    `frames` is the expected number in a prompt, None for 32: it matters if there is little memory. `prefix_reuse` keeps
    the KV cache of the last prompt for the next one that begins with the same tokens; if several `conversations`
    alternate, it keeps one for each while there is memory. `rope_factor`, `pool_stride` and `pool_mode` replace those
    of the config (see `adapted`); None keeps them. `adapter` is the folder or the hub id of a LoRA. If answers will be
    `constrained` by a schema or a regex, what that takes of the tokens is made while the weights are read.
    """

    quantize: Quantize = "auto"
    dtype: DType = "auto"
    device: str = "auto"
    attention: Attention = "auto"
    frames: int | None = None
    prefix_reuse: bool = True
    rope_factor: float | None = None
    pool_stride: int | None = None
    pool_mode: PoolMode | None = None
    conversations: int = 1
    adapter: str | None = None
    constrained: bool = False


class Model(Protocol):
    """What answers requests: weights in this process, or a server."""

    @property
    def name(self) -> str:
        """The name that it was opened with."""

    @property
    def settings(self) -> dict[str, Any]:
        """What was decided while loading, as JSON values: enough to load it the same way again."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about it, in lines: for example that 4 bits were chosen for lack of memory."""

    @property
    def at_a_time(self) -> int:
        """How many requests keep it busy; more only wait."""

    def submit(self, request: Request, deliver: Callable[[Event], None], in_pieces: bool = True) -> Callable[[], None]:
        """Answer a request in the background; the function returned cancels it.

        `deliver` gets pieces of the answer, the last of which has a reason and the usage; or, without `in_pieces`, that
        alone, with the whole text; or an error, which concerns this request only. It is called in another thread, or
        in this one before `submit` returns, and must not block. Nothing comes after a cancellation, or a moment later.
        """

    def stream(self, request: Request) -> Iterator[Chunk]:
        """Yield the answer as it is generated; the last chunk carries the finish reason and the usage."""

    def answer_all(self, requests: Sequence[Request]) -> list[Answer]:
        """Return the answers to many requests, generated together where that is possible; raises the first error."""

    def budget(self, request: Request) -> Budget:
        """Return what a request takes of the context, also if it does not fit; nothing is encoded."""

    @property
    def shrink(self) -> FrameResize:
        """Makes frames as large as the model gets them, so that they take less memory. Answers are the same."""


def streamed(submit: Submit, request: Request) -> Iterator[Chunk]:
    """Yield the pieces of an answer; closing the iterator cancels the request."""
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    cancel = submit(request, events.put, True)
    try:
        while True:
            event = events.get()
            if isinstance(event, Exception):
                raise event
            yield event
            if event.usage is not None:
                return
    finally:
        cancel()


def results(
    submit: Submit, requests: Sequence[Request], at_a_time: int | None = None
) -> Generator[tuple[int, Answer | Exception]]:
    """Yield each request's number and what comes of it, as it comes; closing the iterator cancels the rest."""
    events: queue.SimpleQueue[tuple[int, Event]] = queue.SimpleQueue()

    def put(number: int, event: Event) -> None:
        events.put((number, event))

    cancels: list[Callable[[], None]] = []
    try:
        for done in range(len(requests)):
            until = min(len(requests), done + (at_a_time or len(requests)))
            cancels.extend(submit(requests[new], partial(put, new), False) for new in range(len(cancels), until))
            number, event = events.get()
            yield number, event if isinstance(event, Exception) else join([event])
    finally:
        for cancel in cancels:
            cancel()


def answers(submit: Submit, requests: Sequence[Request]) -> list[Answer]:
    """Return the answers in the requests' order; the first error cancels the rest and is raised."""
    found: dict[int, Answer] = {}
    with closing(results(submit, requests)) as each:
        for number, result in each:
            if isinstance(result, Exception):
                raise result
            found[number] = result
    return [found[number] for number in range(len(requests))]
