"""A KV cache with room for the whole answer: it grows in place, and its tensors keep their addresses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer


class PreallocatedLayer(DynamicLayer):
    """A layer's keys and values, (rows, KV heads, tokens, head width): the filled part of buffers of `capacity` tokens.

    transformers' static cache has buffers as well, but attends to all of them.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self._capacity = capacity
        self._buffers: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def buffers(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The whole buffers of the keys and of the values."""
        assert self._buffers is not None
        return self._buffers

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values; return all of them."""
        begin = self.get_seq_length()
        end = begin + key_states.shape[-2]
        if self._buffers is None or end > self._buffers[0].shape[-2]:
            self.allocate(key_states, value_states, max(end, self._capacity), len(key_states))
        for buffer, new in zip(self.buffers, (key_states, value_states), strict=True):
            buffer[:, :, begin:end] = new
        self.set_length(end)
        return self.keys, self.values

    def set_length(self, tokens: int) -> None:
        """Count the first `tokens` of the buffers as filled."""
        self.keys, self.values = (buffer[:, :, :tokens] for buffer in self.buffers)

    def allocate(self, keys: torch.Tensor, values: torch.Tensor, capacity: int, rows: int) -> None:
        """Allocate buffers for tensors like these, and copy what the layer holds."""
        length, self._capacity = self.get_seq_length(), capacity
        old = (self.keys, self.values)
        self._buffers = new = (
            keys.new_empty((rows, keys.shape[1], capacity, keys.shape[3])),
            values.new_empty((rows, values.shape[1], capacity, values.shape[3])),
        )
        self.device, self.dtype, self.is_initialized = keys.device, keys.dtype, True
        if length:
            for buffer, filled in zip(new, old, strict=True):
                buffer[:, :, :length] = filled
        self.set_length(length)


class KVCache(Cache):
    """A cache of preallocated layers, for `capacity` tokens in each of its rows, padding included.

    `captured` is the decode step that was captured on its tensors, if any: it is valid as long as they stay in place.
    """

    def __init__(self, layers: int, capacity: int) -> None:
        super().__init__(layers=[PreallocatedLayer(capacity) for _ in range(layers)])
        self.capacity = capacity
        self.captured: Any = None

    @property
    def rows(self) -> int:
        """How many rows its buffers have; 0 before they are allocated."""
        first = self.layers[0]
        return len(first.buffers[0]) if first.is_initialized else 0

    @property
    def allocated_bytes(self) -> int:
        """The size of its buffers."""
        allocated = [layer for layer in self.layers if layer.is_initialized]
        return sum(buffer.nbytes for layer in allocated for buffer in layer.buffers)

    def set_length(self, tokens: int) -> None:
        """Count the first `tokens` of each row as filled."""
        for layer in self.layers:
            if layer.is_initialized:
                layer.set_length(tokens)

    def reserve(self, tokens: int) -> None:
        """Enlarge the buffers to so many tokens, if they have less."""
        if tokens <= self.capacity:
            return
        self.captured, self.capacity = None, tokens
        for layer in self.layers:
            if layer.is_initialized:
                layer.allocate(layer.keys, layer.values, tokens, len(layer.keys))

    def move(self, rows: torch.Tensor, target: KVCache) -> None:
        """Move these rows, int64 (rows), into another cache; this one ends up empty."""
        self.captured = None
        for number, (mine, other) in enumerate(zip(self.layers, target.layers, strict=True)):
            keys, values = mine.keys, mine.values
            if not other.is_initialized:
                other.allocate(keys, values, target.capacity, len(rows))
            other.set_length(keys.shape[-2])
            other.keys.copy_(keys[rows])
            other.values.copy_(values[rows])
            self.layers[number] = PreallocatedLayer(0)  # frees this layer before the next one is copied

    def fill(self, rows: Sequence[Sequence[tuple[torch.Tensor, torch.Tensor]]], tokens: int) -> None:
        """Replace the content with these rows, padded on the left to `tokens`.

        A row has the keys and values of each layer, (KV heads, its tokens, head width).
        """
        for number, layer in enumerate(self.layers):
            if not layer.is_initialized:
                keys, values = rows[0][number]
                layer.allocate(keys[None], values[None], self.capacity, len(rows))
            layer.set_length(tokens)
            for buffer, parts in zip(
                (layer.keys, layer.values), zip(*(row[number] for row in rows), strict=True), strict=True
            ):
                for row, part in enumerate(parts):
                    pad = tokens - part.shape[1]
                    buffer[row, :, :pad] = 0  # masked, but a NaN there would spread
                    buffer[row, :, pad:] = part


def new_cache(config: Any, capacity: int) -> Any:
    """Return an empty cache of that capacity, or transformers' own where layers have a sliding window."""
    default = DynamicCache(config=config)
    if all(type(layer) is DynamicLayer for layer in default.layers):
        return KVCache(len(default.layers), capacity)
    return default
