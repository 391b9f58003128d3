"""A KV cache with room for the whole answer: it grows in place, and its tensors stay where they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer


class RoomyLayer(DynamicLayer):
    """A layer's keys and values, (rows, KV heads, tokens, head width): views of buffers with room for `tokens`."""

    def __init__(self, tokens: int) -> None:
        super().__init__()
        self._tokens = tokens
        self._room: tuple[torch.Tensor, torch.Tensor] | None = None

    @property
    def room(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The buffers, filled or not."""
        assert self._room is not None
        return self._room

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values; return all of them."""
        held = self.get_seq_length()
        end = held + key_states.shape[-2]
        if self._room is None or end > self._room[0].shape[-2]:
            self.make_room(key_states, value_states, max(end, self._tokens), len(key_states))
        for buffer, new in zip(self.room, (key_states, value_states), strict=True):
            buffer[:, :, held:end] = new
        self.show(end)
        return self.keys, self.values

    def show(self, tokens: int) -> None:
        """Count the first `tokens` of the buffers as filled."""
        self.keys, self.values = (buffer[:, :, :tokens] for buffer in self.room)

    def make_room(self, keys: torch.Tensor, values: torch.Tensor, tokens: int, rows: int) -> None:
        """Allocate buffers for tensors like these; what is held is taken along."""
        held, self._tokens = self.get_seq_length(), tokens
        old = (self.keys, self.values)
        self._room = new = (
            keys.new_empty((rows, keys.shape[1], tokens, keys.shape[3])),
            values.new_empty((rows, values.shape[1], tokens, values.shape[3])),
        )
        self.device, self.dtype, self.is_initialized = keys.device, keys.dtype, True
        if held:
            for buffer, one in zip(new, old, strict=True):
                buffer[:, :, :held] = one
        self.show(held)


class KVCache(Cache):
    """A cache of roomy layers: room for `tokens` in each of its rows, padding included.

    `captured` is the decode step that was captured on its tensors, if any: it lives as long as they stay in place.
    """

    def __init__(self, layers: int, tokens: int) -> None:
        super().__init__(layers=[RoomyLayer(tokens) for _ in range(layers)])
        self.tokens = tokens
        self.captured: Any = None

    @property
    def rows(self) -> int:
        """How many rows it was filled for; 0 if it was not."""
        first = self.layers[0]
        return len(first.room[0]) if first.is_initialized else 0

    @property
    def room_bytes(self) -> int:
        """What its buffers take."""
        filled = [layer for layer in self.layers if layer.is_initialized]
        return sum(buffer.numel() * buffer.element_size() for layer in filled for buffer in layer.room)

    def show(self, tokens: int) -> None:
        """Count the first `tokens` of each row as filled."""
        for layer in self.layers:
            if layer.is_initialized:
                layer.show(tokens)

    def reserve(self, tokens: int) -> None:
        """Make room for so many tokens, if there is less."""
        if tokens <= self.tokens:
            return
        self.captured, self.tokens = None, tokens
        for layer in self.layers:
            if layer.is_initialized:
                layer.make_room(layer.keys, layer.values, tokens, len(layer.keys))

    def select(self, rows: torch.Tensor, into: KVCache) -> None:
        """Copy these rows into another cache, int64 (rows); this one is emptied on the way."""
        self.captured = None
        for number, (mine, other) in enumerate(zip(self.layers, into.layers, strict=True)):
            keys, values = mine.keys, mine.values
            if not other.is_initialized:
                other.make_room(keys, values, into.tokens, len(rows))
            other.show(keys.shape[-2])
            other.keys.copy_(keys[rows])
            other.values.copy_(values[rows])
            self.layers[number] = RoomyLayer(0)  # layer by layer, so that two never stand side by side

    def fill(self, rows: Sequence[Sequence[tuple[torch.Tensor, torch.Tensor]]], tokens: int) -> None:
        """Hold these rows, padded on the left to `tokens`, and nothing else.

        A row has keys and values of each layer, (KV heads, its tokens, head width).
        """
        for number, layer in enumerate(self.layers):
            if not layer.is_initialized:
                keys, values = rows[0][number]
                layer.make_room(keys[None], values[None], self.tokens, len(rows))
            layer.show(tokens)
            for buffer, parts in zip(
                (layer.keys, layer.values), zip(*(row[number] for row in rows), strict=True), strict=True
            ):
                for row, part in enumerate(parts):
                    pad = tokens - part.shape[1]
                    buffer[row, :, :pad] = 0  # masked, but a NaN by chance would count
                    buffer[row, :, pad:] = part


def new_cache(config: Any, tokens: int) -> Any:
    """Return an empty cache with room for `tokens`, or transformers' own where layers forget what is far back."""
    theirs = DynamicCache(config=config)
    if all(type(layer) is DynamicLayer for layer in theirs.layers):
        return KVCache(len(theirs.layers), tokens)
    return theirs
