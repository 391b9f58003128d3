"""Models: the two-method protocol, and the one place that chooses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from ..conversation import Answer, Chunk, Request
from .loading import Attention, DType, Loading, Quantize

__all__ = ["Attention", "DType", "Loading", "Model", "Quantize", "open_model"]


class Model(Protocol):
    """Whatever answers requests."""

    @property
    def name(self) -> str:
        """The name it was asked for by."""

    @property
    def settings(self) -> dict[str, Any]:
        """What was decided while loading, as JSON values: enough to load it the same way again."""

    def stream(self, request: Request) -> Iterator[Chunk]:
        """Yield the answer as it is generated; the last chunk carries the finish reason and the usage."""

    def answer_all(self, requests: Sequence[Request]) -> list[Answer]:
        """Return the answers to many requests, generated together where that is possible."""


def open_model(model: str, loading: Loading | None = None, revision: str | None = None) -> Model:
    """Return the model of a name: `demo`, a checkpoint's folder, or a hub id.

    Raises `UsageError` or `ModelError`; the checkpoint's kind is checked before anything heavy is imported.
    """
    from .source import locate

    folder = locate(model, revision)

    from .llava import LlavaVideo

    return LlavaVideo.open(model, folder, loading or Loading())
