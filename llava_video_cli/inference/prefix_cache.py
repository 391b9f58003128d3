"""KV caches of earlier prompts: the last single ones, and what the prompts of batches began with."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch

from ..conversation import Media
from ..video.image import Picture
from .kv_cache import KVCache

_SHARE = 0.25  # of the free memory that caches of several conversations may take: batches need the rest
_MOST_SEEN = 1024

# Keys and values of each layer, (KV heads, tokens, head width).
Layers: TypeAlias = list[tuple[torch.Tensor, torch.Tensor]]
_Key: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True, eq=False)
class Span:
    """A medium of a prompt, and the places of its tokens: `[start, stop)`."""

    start: int
    stop: int
    medium: Media


@dataclass(frozen=True, eq=False)
class Prompt:
    """The ids of a prompt, and the media that stand in it."""

    ids: Sequence[int]
    spans: tuple[Span, ...] = ()

    @property
    def media_end(self) -> int:
        """The number of tokens up to the end of the last medium."""
        return self.spans[-1].stop if self.spans else 0

    @property
    def media_prefix(self) -> Prompt:
        """The prompt up to the end of its last medium."""
        return Prompt(self.ids[: self.media_end], self.spans)

    @property
    def key(self) -> _Key:
        """What is equal for prompts of the same tokens and the same media; it holds as long as the media live."""
        return tuple(self.ids), tuple(id(span.medium) for span in self.spans)


class PrefixCache:
    """The KV caches of the last `capacity` prompts and their answers. Not for several threads at a time.

    A cache takes as much memory as its prompt took to be answered. `take` hands one over or, where `capacity` are
    held, drops the oldest, so that its memory can be used again.
    """

    def __init__(self, capacity: int = 1) -> None:
        self.capacity = capacity
        self._entries: list[tuple[Prompt, Any]] = []

    def take(self, prompt: Prompt, new: Callable[[Any], Any], least: int = 1) -> tuple[Any, int]:
        """Return a cache to continue with, and how many of the prompt's tokens it holds: never all of them.

        Where no entry has `least` of them, the cache is an empty one that `new` returns; `new` gets the cache that was
        dropped, if one was, to use its memory again.
        """
        counts = [min(common_tokens(cached, prompt), len(prompt.ids) - 1) for cached, _ in self._entries]
        best = max(range(len(counts)), key=lambda number: (counts[number], number), default=0)
        if counts and counts[best] >= max(1, least) and self._continues(self._entries[best][0], counts[best]):
            _, cache = self._entries.pop(best)
            cache.crop(counts[best] - cache.get_seq_length())
            return cache, counts[best]
        dropped = self._entries.pop(0)[1] if len(self._entries) >= self.capacity else None
        return new(dropped), 0

    def _continues(self, cached: Prompt, count: int) -> bool:
        """Whether a prompt with so many tokens in common continues a cached one, or has but the usual opening."""
        return self.capacity == 1 or 2 * count >= len(cached.ids)

    def keep(self, prompt: Prompt, answer: Sequence[int], cache: Any, free_bytes: float = math.inf) -> None:
        """Hold the cache of a prompt and its answer, whose last token need not be in it.

        All but this one take at most a share of the free memory. A cache with sliding windows can't be shortened, and
        is not held.
        """
        if not any(cache.is_sliding):
            ids = [*prompt.ids, *answer][: cache.get_seq_length()]
            self._entries.append((Prompt(ids, prompt.spans), cache))
        most_bytes = _SHARE * free_bytes
        while len(self._entries) > self.capacity or (len(self._entries) > 1 and self.cached_bytes > most_bytes):
            self._entries.pop(0)

    @property
    def cached_bytes(self) -> int:
        """The size of the caches, without those of transformers' own kind."""
        return sum(getattr(cache, "allocated_bytes", 0) for _, cache in self._entries)

    def clear(self) -> None:
        """Give the memory back."""
        self._entries.clear()


class SharedPrefixes:
    """Up to `capacity` prompts that end with their last medium, of those that batches asked for more than once.

    They take at most a share of the free memory. Not for several threads at a time.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._entries: OrderedDict[_Key, tuple[Prompt, Layers]] = OrderedDict()  # a prompt keeps its key's media alive
        self._seen: OrderedDict[_Key, None] = OrderedDict()

    @property
    def cached_bytes(self) -> int:
        """The size of their keys and values."""
        return sum(_bytes(layers) for _, layers in self._entries.values())

    def was_seen(self, prompts: Sequence[Prompt]) -> bool:
        """Return whether one of these prompts was asked for before, so that it pays to hold it; remember them all."""
        if not self._capacity:
            return False
        keys = [prompt.key for prompt in prompts]
        was_seen = any(key in self._seen for key in keys)
        self._seen |= dict.fromkeys(keys)
        while len(self._seen) > _MOST_SEEN:
            self._seen.popitem(last=False)
        return was_seen

    def get(self, prompt: Prompt) -> Layers | None:
        """Return the keys and values of a prompt, if they are held."""
        if prompt.key not in self._entries:
            return None
        self._entries.move_to_end(prompt.key)
        return self._entries[prompt.key][1]

    def keep(self, prompts: Sequence[Prompt], cache: object, free_bytes: float) -> list[Layers]:
        """Hold the rows of a cache that is filled with these prompts, padded on the left; return the rows.

        Of a cache of transformers' own kind there are none.
        """
        if not self._capacity or not isinstance(cache, KVCache):
            return []
        rows: list[Layers] = []
        for row, prompt in enumerate(prompts):
            part = (row, slice(None), slice(-len(prompt.ids), None))
            layers = [(layer.keys[part], layer.values[part]) for layer in cache.layers]
            rows.append(layers)
            if _bytes(layers) > _SHARE * free_bytes:
                continue
            self._entries[prompt.key] = prompt, [(keys.clone(), values.clone()) for keys, values in layers]
            while len(self._entries) > self._capacity or self.cached_bytes > _SHARE * free_bytes:
                self._entries.popitem(last=False)
        return rows

    def clear(self) -> None:
        """Give the memory back."""
        self._entries.clear()


def _bytes(layers: Layers) -> int:
    return sum(tensor.nbytes for layer in layers for tensor in layer)


def common_tokens(one: Prompt, other: Prompt) -> int:
    """Return how many tokens two prompts begin with in common; media count as far as their content is the same."""
    pairs = enumerate(zip(one.ids, other.ids, strict=False))
    count = next((at for at, (a, b) in pairs if a != b), min(len(one.ids), len(other.ids)))
    for span, other_span in zip(one.spans, other.spans, strict=False):
        if min(span.start, other_span.start) >= count:
            break
        if span.start != other_span.start:
            return min(span.start, other_span.start)
        same = span.start + _common_media_tokens(span, other_span)
        if same < max(span.stop, other_span.stop):
            return min(count, same)
    return count


def _common_media_tokens(span: Span, other_span: Span) -> int:
    """Return how many tokens two media begin with in common: whole frames of a video, all or nothing of a picture."""
    tokens = span.stop - span.start
    one, other = span.medium, other_span.medium
    if one is other:
        return tokens
    if isinstance(one, Picture) or isinstance(other, Picture):
        same = isinstance(one, Picture) and isinstance(other, Picture) and np.array_equal(one.pixels, other.pixels)
        return tokens if same else 0
    frames = 0
    for frame, other_frame in zip(one.images, other.images, strict=False):
        if not np.array_equal(frame, other_frame):
            break
        frames += 1
    return frames * (tokens // len(one.images))
