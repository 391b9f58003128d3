"""The KV cache in slots: a row fills one from its start, has its own length there, and leaves it as it came."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import functional
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer


class Places(NamedTuple):
    """Where the rows of a step write: in the `slots`, behind the `lengths` that these hold; both are int64 (rows).

    They see the first `tokens` of these slots, the first ones.
    """

    slots: torch.Tensor
    lengths: torch.Tensor
    tokens: int


class SlotLayer(DynamicLayer):
    """Keys and values of all slots, (slots, KV heads, room, head width), also of a layer with a sliding window."""

    places: Places
    is_initialized: bool
    keys: Any
    values: Any

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append a token to each row, (rows, KV heads, 1, head width); return what the step sees."""
        rows, tokens = len(self.places.slots), self.places.tokens
        slots, lengths = (each.to(key_states.device) for each in self.places[:2])
        self.keys[slots, :, lengths] = key_states[:, :, 0]
        self.values[slots, :, lengths] = value_states[:, :, 0]
        return self.keys[:rows, :, :tokens], self.values[:rows, :, :tokens]

    def begin(self, places: Places) -> None:
        """Set where the rows of a step are."""
        self.places = places

    @property
    def buffers(self) -> list[torch.Tensor]:
        """What is allocated."""
        return [self.keys, self.values] if self.is_initialized else []

    def reserve(self, slots: int, room: int) -> None:
        """Replace the buffers by others of this size, with as much of the content as they have room for.

        Without slots there are none, until a row is filled in: its prompt is computed before.
        """
        if not slots:
            self.keys = self.values = None
            self.is_initialized = False
        elif self.is_initialized:
            self.keys, self.values = (_resized(buffer, slots, room) for buffer in self.buffers)

    def fill(self, slot: int, filled: Any, row: int, part: range, padding: int, slots: int, room: int) -> None:
        """Copy a part of a row of another cache's layer, which ends there with so much padding behind it."""
        if not self.is_initialized:
            self.device, self.dtype, self.is_initialized = filled.keys.device, filled.keys.dtype, True
            self.keys, self.values = (
                old.new_zeros((slots, old.shape[1], room, old.shape[3])) for old in (filled.keys, filled.values)
            )
        for buffer, new in ((self.keys, filled.keys), (self.values, filled.values)):
            end = new.shape[2] - padding
            start = max(part.start, part.stop - end)  # a sliding window has the last ones alone
            buffer[slot, :, start : part.stop] = new[row, :, end - (part.stop - start) : end]


class SlotStates:
    """The states of a linear attention layer for all slots; the step uses `layer`, one of transformers' own."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self._states: dict[tuple[str, int], torch.Tensor] = {}

    def begin(self, places: Places) -> None:
        """Give the layer the states of the step's rows, which it changes in place."""
        for (kind, number), state in self._states.items():
            getattr(self.layer, kind)[number] = state[: len(places.slots)]

    @property
    def buffers(self) -> list[torch.Tensor]:
        """What is allocated."""
        return list(self._states.values())

    def reserve(self, slots: int, room: int) -> None:
        """Replace the buffers by others for so many slots."""
        del room
        self._states = {key: _resized(state, slots) for key, state in self._states.items()} if slots else {}

    def fill(self, slot: int, filled: Any, row: int, part: range, padding: int, slots: int, room: int) -> None:
        """Copy the states of a row of another cache's layer."""
        del part, padding, room
        for kind in ("conv_states", "recurrent_states"):
            for number, state in getattr(filled, kind).items():
                if state is not None:
                    if (kind, number) not in self._states:
                        self._states[kind, number] = state.new_zeros((slots, *state.shape[1:]))
                    self._states[kind, number][slot] = state[row]
        for name in ("is_conv_states_initialized", "is_recurrent_states_initialized", "has_previous_state"):
            getattr(self.layer, name).update(getattr(filled, name))
        self.layer.conv_kernel_size = filled.conv_kernel_size


class SlotCache(Cache):
    """The cache of all rows that run: they have the first slots. `lengths` says how many tokens each slot holds.

    `last_ids`, int64 (slots), are the tokens to come next, and `shifts` how far the positions of a slot's later tokens
    are from their numbers. All stay on the device. `room` is what a slot has room for.
    """

    def __init__(self, config: Any, device: torch.device) -> None:
        layers = DynamicCache(config=config).layers
        # Only such layers can be cut at any token, so that a prompt takes over a part of another one's.
        self.is_plain = all(type(layer) is DynamicLayer for layer in layers)
        self._all = [SlotLayer() if isinstance(layer, DynamicLayer) else SlotStates(layer) for layer in layers]
        super().__init__(layers=[each.layer if isinstance(each, SlotStates) else each for each in self._all])
        self.slots = self.room = 0
        self.lengths = self.last_ids = self.shifts = torch.zeros(0, dtype=torch.int64, device=device)

    @property
    def allocated_bytes(self) -> int:
        """The size of the buffers."""
        return sum(buffer.nbytes for layer in self._all for buffer in layer.buffers)

    def reserve(self, slots: int, room: int) -> None:
        """Allocate so many slots of so many tokens; what the first ones hold is kept as far as there is room.

        If memory does not suffice, there are no slots. To free them all, the device is not needed.
        """
        try:
            self.lengths, self.last_ids = _resized(self.lengths, slots), _resized(self.last_ids, slots)
            self.shifts = _resized(self.shifts, slots)
            for layer in self._all:
                layer.reserve(slots, room)
        except Exception:
            self.reserve(0, 0)
            raise
        self.slots, self.room = slots, room

    def begin(self, rows: int, tokens: int) -> None:
        """Begin a step of the first `rows` slots, of which no one holds more than `tokens` when it is done."""
        places = Places(torch.arange(rows, device=self.lengths.device), self.lengths[:rows], tokens)
        for layer in self._all:
            layer.begin(places)

    def fill(self, slot: int, cache: Any, row: int, length: int, begin: int = 0, padding: int = 0) -> None:
        """Copy a row of a filled cache, where so much padding follows it; its first `begin` tokens are here already."""
        self.lengths[slot] = length
        for layer, filled in zip(self._all, cache.layers, strict=True):
            if isinstance(layer, SlotStates) or filled.is_initialized:  # layers may share those of others
                layer.fill(slot, filled, row, range(begin, length), padding, self.slots, self.room)

    def prefix(self, slots: Sequence[int | None], tokens: Sequence[int], config: Any) -> Any:
        """Return a cache of transformers' own kind that begins with the first tokens of these slots, a row each.

        What is longest begins at the start; padding stands before the others. A row without tokens needs no slot.
        """
        cache, width = DynamicCache(config=config), max(tokens)
        if width:
            for number, layer in enumerate(self._all):
                cache.update(*(_beginnings(buffer, slots, tokens, width) for buffer in layer.buffers), number)
        return cache

    def copy(self, source: int, target: int, tokens: int, swap: bool = False) -> None:
        """Copy the first `tokens` of a slot to another one, or exchange those of the two."""
        parts = [self.lengths, self.last_ids, self.shifts]
        for layer in self._all:
            parts += [each[:, :, :tokens] if isinstance(layer, SlotLayer) else each for each in layer.buffers]
        for part in parts:
            old = part[target].clone() if swap else None
            part[target] = part[source]
            if old is not None:
                part[source] = old

    def clear(self, slot: int) -> None:
        """Remove what a slot holds: a mask does not hide a NaN from the next row."""
        for layer in self._all:
            for buffer in layer.buffers:
                buffer[slot] = 0


def _beginnings(buffer: torch.Tensor, slots: Sequence[int | None], tokens: Sequence[int], width: int) -> torch.Tensor:
    """Return the first tokens of slots, (rows, KV heads, width, head width); those of a single one are not copied."""
    if len(slots) == 1:
        return buffer[slots[0], None, :, :width]
    rows = buffer.new_empty((len(slots), buffer.shape[1], width, buffer.shape[3]))
    for row, (slot, count) in enumerate(zip(slots, tokens, strict=True)):
        rows[row, :, : width - count] = 0  # a mask does not hide a NaN
        if count:
            rows[row, :, width - count :] = buffer[slot, :, :count]
    return rows


def _resized(buffer: torch.Tensor, slots: int, room: int | None = None) -> torch.Tensor:
    """Return a tensor with other sizes of its first dimension, and of its third one; what is new is 0."""
    if not slots:
        return buffer[:0]
    shape = [slots, *buffer.shape[1:]]
    if room is not None:
        shape[2] = room
    new = buffer.new_zeros(shape)
    part = tuple(slice(min(a, b)) for a, b in zip(shape, buffer.shape, strict=True))
    new[part] = buffer[part]
    return new


def causal_mask(lengths: torch.Tensor, tokens: int, dtype: torch.dtype) -> torch.Tensor:
    """Return what to add to the scores of rows that see so many tokens and one more: (rows, 1, 1, tokens)."""
    hidden = torch.arange(tokens, device=lengths.device) > lengths[:, None]
    return torch.zeros(hidden.shape, dtype=dtype, device=lengths.device).masked_fill_(hidden, -torch.inf)[:, None, None]


def attend(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, mask: torch.Tensor | None, scale: float | None
) -> torch.Tensor:
    """Return the attention of a token of each row, (rows, heads, width); keys are (rows, KV heads, tokens, width).

    Heads that share a key stand as its queries.
    """
    query = query.unflatten(1, (keys.shape[1], -1))
    output = functional.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scale)
    return output.flatten(1, 2)
