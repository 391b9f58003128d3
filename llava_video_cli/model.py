"""The protocol of a model, and how its weights are loaded: only types, no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from .conversation import Answer, Chunk, Request
from .prompt.budget import Budget
from .video.fit import FrameResize

Quantize = Literal["auto", "none", "8bit", "4bit"]
DType = Literal["auto", "float32", "float16", "bfloat16"]
Attention = Literal["auto", "sdpa", "flash_attention_2", "eager"]
PoolMode = Literal["average", "max"]
Send = Literal["frames", "file"]  # what a server gets of a video


@dataclass(frozen=True)
class Loading:
    """How weights are loaded; `auto` depends on the machine and the checkpoint.

    `frames` is the expected number in a prompt, None for 32: it matters if there is little memory. `prefix_reuse` keeps
    the KV cache of the last prompt for the next one that begins with the same tokens; if several `conversations`
    alternate, it keeps one for each while there is memory. `rope_factor`, `pool_stride` and `pool_mode` replace those
    of the config (see `adapted`); None keeps them.
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

    def stream(self, request: Request) -> Iterator[Chunk]:
        """Yield the answer as it is generated; the last chunk carries the finish reason and the usage."""

    def answer_all(self, requests: Sequence[Request]) -> list[Answer]:
        """Return the answers to many requests, generated together where that is possible.

        Raises `OutOfMemoryError` if fewer at a time may fit the memory.
        """

    def budget(self, request: Request) -> Budget:
        """Return what a request takes of the context, also if it does not fit; nothing is encoded."""

    def fits(self, request: Request) -> int:
        """Return how many requests like this one the free memory allows to answer together; at least 1."""

    @property
    def shrink(self) -> FrameResize:
        """Makes frames as large as the model gets them, so that they take less memory. Answers are the same."""
