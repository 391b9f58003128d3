"""How much memory a checkpoint needs to answer, by its config."""

from __future__ import annotations

from dataclasses import dataclass

from .checkpoint import Checkpoint
from .parameters import Quantized

# What else a run takes: the tensors of a layer at work, the frames, the libraries. As the README's table of presets.
OTHER_BYTES = 10**9
ELEMENT_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Need:
    """Bytes of memory: the weights, the KV cache of prompt and answer, and the rest."""

    weights_bytes: int
    cache_bytes: int
    other_bytes: int

    @property
    def total_bytes(self) -> int:
        """All of it."""
        return self.weights_bytes + self.cache_bytes + self.other_bytes


def need(checkpoint: Checkpoint, quantize: Quantized, dtype: str, tokens: int) -> Need:
    """Return what an answer needs; `tokens` are those of its prompt and of itself."""
    size = ELEMENT_BYTES[dtype]
    return Need(checkpoint.parameters.total_bytes(quantize, size), tokens * checkpoint.kv_bytes(size), OTHER_BYTES)
