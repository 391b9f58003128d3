"""How much memory a checkpoint needs to answer, by its config."""

from __future__ import annotations

from dataclasses import dataclass

from .config import Checkpoint
from .size import Quantized

ELEMENT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_LIBRARIES_BYTES = 500_000_000  # torch's own, and what its allocator leaves in holes
# Tensors of a layer's width, and of its MLP's, that stand side by side while a prompt is computed.
_HIDDEN_COPIES, _INNER_COPIES = 6, 3
FRAMES_AT_ONCE = 32  # that go through the vision tower together


@dataclass(frozen=True)
class Need:
    """Bytes of memory: the weights, the KV cache of prompt and answer, and the tensors at work."""

    weights_bytes: int
    cache_bytes: int
    other_bytes: int

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.weights_bytes + self.cache_bytes + self.other_bytes


def need(checkpoint: Checkpoint, quantize: Quantized, dtype: str, tokens: int, frames: int) -> Need:
    """Return what an answer needs; `tokens` are those of its prompt, with so many frames, and of itself."""
    size = ELEMENT_BYTES[dtype]
    patches = checkpoint.frame_side**2 * min(frames, FRAMES_AT_ONCE)
    # the vision tower is done, and its tensors are gone, when the language model begins
    at_work = max(tokens * _layer(checkpoint.widths), patches * _layer(checkpoint.vision_widths)) * size
    return Need(
        checkpoint.parameters.total_bytes(quantize, size),
        tokens * checkpoint.kv_bytes(size),
        _LIBRARIES_BYTES + at_work,
    )


def _layer(widths: tuple[int, int]) -> int:
    """Return the elements that a token takes in a layer."""
    hidden, inner = widths
    return _HIDDEN_COPIES * hidden + _INNER_COPIES * inner
