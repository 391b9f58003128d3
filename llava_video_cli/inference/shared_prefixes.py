"""What prompts on the same media begin with, computed once for the batches that come back to them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from .kv_cache import KVCache
from .prefix_cache import SHARE, Prompt

# Keys and values of each layer, (KV heads, tokens, head width).
Layers: TypeAlias = list[tuple[torch.Tensor, torch.Tensor]]
_Key: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]
_MOST_SEEN = 1024


@dataclass(frozen=True, eq=False)
class _Held:
    prompt: Prompt  # keeps its media alive, and so their ids theirs
    layers: Layers

    @property
    def bytes(self) -> int:
        return sum(one.numel() * one.element_size() for layer in self.layers for one in layer)


class Beginnings:
    """Holds up to `most` prompts that end with their last medium, of those that were asked for more than once.

    They take at most a share of the memory that is free. Not for several threads at a time.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: OrderedDict[_Key, _Held] = OrderedDict()
        self._seen: OrderedDict[_Key, None] = OrderedDict()

    @property
    def held_bytes(self) -> int:
        """What they take."""
        return sum(held.bytes for held in self._held.values())

    def repeats(self, prompts: Sequence[Prompt]) -> bool:
        """Take note of prompts; return whether one of them was there before, so that holding it may pay."""
        if not self._most:
            return False
        keys = list(map(_key, prompts))
        repeats = any(key in self._seen for key in keys)
        self._seen |= dict.fromkeys(keys)
        while len(self._seen) > _MOST_SEEN:
            self._seen.popitem(last=False)
        return repeats

    def get(self, prompt: Prompt) -> Layers | None:
        """Return what is held of a prompt."""
        held = self._held.get(_key(prompt))
        if held is None:
            return None
        self._held.move_to_end(_key(prompt))
        return held.layers

    def keep(self, prompts: Sequence[Prompt], cache: object, free_bytes: float) -> list[Layers]:
        """Hold the rows of a cache that is filled with these prompts, padded on the left; return them.

        A cache that forgets what is far back (sliding windows) has none to hold.
        """
        if not self._most or not isinstance(cache, KVCache):
            return []
        rows: list[Layers] = []
        for row, prompt in enumerate(prompts):
            part = (row, slice(None), slice(-len(prompt.ids), None))
            rows.append([(layer.keys[part], layer.values[part]) for layer in cache.layers])
            held = _Held(prompt, rows[-1])
            if held.bytes > SHARE * free_bytes:
                continue
            self._held[_key(prompt)] = _Held(prompt, [(keys.clone(), values.clone()) for keys, values in rows[-1]])
            while len(self._held) > self._most or self.held_bytes > SHARE * free_bytes:
                self._held.popitem(last=False)
        return rows

    def drop(self) -> None:
        """Give the memory back."""
        self._held.clear()


def _key(prompt: Prompt) -> _Key:
    return tuple(prompt.ids), tuple(id(span.medium) for span in prompt.spans)
