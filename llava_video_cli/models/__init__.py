"""Models: the protocol that they share, and the one place that chooses."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

from ..conversation import Answer, Budget, Chunk, Request
from ..video import Resize
from .adaptation import PoolMode
from .attention import Attention
from .loading import Loading, foresee
from .precision import DType, Quantize

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["Attention", "DType", "Loading", "Model", "PoolMode", "Quantize", "Send", "open_model", "open_resize"]

Send = Literal["frames", "file"]  # what a server gets of a video


class Model(Protocol):
    """Whatever answers requests."""

    @property
    def name(self) -> str:
        """The name it was asked for by."""

    @property
    def settings(self) -> dict[str, Any]:
        """What was decided while loading, as JSON values: enough to load it the same way again."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about it, in lines: a precision that was chosen for lack of memory, say."""

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


def open_model(model: str, loading: Loading | None = None, revision: str | None = None) -> Model:
    """Return the model of a name: `demo`, `random:SIZE`, a checkpoint's folder, or a hub id.

    Raises `UsageError` or `ModelError`. The checkpoint's kind, whether its config can be changed as `loading` wants,
    and whether it fits the memory, where no GPU has to be asked, are checked before anything heavy is imported.
    """
    from .source import locate

    loading = loading or Loading()
    folder = locate(model, revision)
    foresee(model, folder, loading)

    from .llava import LlavaVideo

    return LlavaVideo.open(model, folder, loading)


def open_resize(model: str, revision: str | None = None) -> Resize:
    """Return the `shrink` of a checkpoint without its weights: for a process that only reads frames.

    Raises `UsageError` or `ModelError`.
    """
    from .source import locate

    folder = locate(model, revision)

    from functools import partial

    from transformers import LlavaNextVideoConfig

    from .processor import load_processor
    from .vision import shrunk

    config = LlavaNextVideoConfig.from_pretrained(folder, local_files_only=True)
    return partial(shrunk, processor=load_processor(folder, config))
