"""The protocol of a model, and how its weights are loaded: types only, no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from .conversation import Answer, Chunk, Request
from .prompt.budget import Budget

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Quantize = Literal["auto", "none", "8bit", "4bit"]
DType = Literal["auto", "float32", "float16", "bfloat16"]
Attention = Literal["auto", "sdpa", "flash_attention_2", "eager"]
PoolMode = Literal["average", "max"]
Send = Literal["frames", "file"]  # what a server gets of a video


@dataclass(frozen=True)
class Loading:
    """How weights are loaded; `auto` is decided by what the machine has.

    `frames` is the number that prompts are expected to have, None for 32: it matters where memory is short.
    `prefix_reuse` keeps the KV cache of the last prompt, for the next one that begins the same way; of as many prompts
    as there are `conversations` at a time, if the memory suffices. `rope_factor`, `pool_stride` and `pool_mode` replace
    the config's own; None leaves them.
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
    """Anything that answers requests."""

    @property
    def name(self) -> str:
        """The name it was asked for by."""

    @property
    def settings(self) -> dict[str, Any]:
        """What was decided while loading, as JSON values: enough to load it the same way again."""

    @property
    def notes(self) -> tuple[str, ...]:
        """Lines that a user should know: for example, that a lower precision was chosen for lack of memory."""

    def stream(self, request: Request) -> Iterator[Chunk]:
        """Yield the answer as it is generated; the last chunk carries the finish reason and the usage."""

    def answer_all(self, requests: Sequence[Request]) -> list[Answer]:
        """Return the answers to many requests, generated together where that is possible.

        Raises `OutOfMemoryError` if fewer of them may be answered.
        """

    def stream_all(
        self, requests: Sequence[Request], gone: Callable[[int], bool] | None = None
    ) -> Iterator[tuple[int, Chunk]]:
        """Yield pieces of all answers, each with its request's number, generated together where that is possible.

        Each answer's last chunk comes at its own end. An answer that is `gone` may be given up, without a last chunk;
        it is asked in another thread. Closing the iterator stops the generation. Raises as `answer_all` does.
        """

    def budget(self, request: Request) -> Budget:
        """Return what a request takes of the context, whether it fits or not; nothing is encoded."""

    def fits(self, request: Request) -> int:
        """Return how many requests like this one may be answered together in the memory that is free; at least 1."""

    def shrink(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return what the model sees of a frame, at its input size: the answers are the same. Safe in threads."""
