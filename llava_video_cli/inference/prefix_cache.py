"""The KV caches of the last prompts, for the next one that begins the same way."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..conversation import Media
from ..video.image import Picture

SHARE = 0.25  # of the free memory that caches of several conversations may take: batches need the rest


@dataclass(frozen=True, eq=False)
class Span:
    """A medium of a prompt, and where its tokens stand: `[start, stop)`."""

    start: int
    stop: int
    medium: Media


@dataclass(frozen=True, eq=False)
class Prompt:
    """The ids of a prompt, and what its places for media stand for."""

    ids: Sequence[int]
    spans: tuple[Span, ...] = ()

    @property
    def media_end(self) -> int:
        """The number of tokens up to the end of the last medium."""
        return self.spans[-1].stop if self.spans else 0


class Prefix:
    """Holds the caches of `most` prompts and their answers, the last ones. Not for several threads at a time.

    Each holds as much memory as the prompt took to be answered. `take` hands one over, or, where no more may be held,
    lets the oldest go, so that its memory can be used again; `drop` gives all back for something else.
    """

    def __init__(self, most: int = 1) -> None:
        self.most = most
        self._held: list[tuple[Prompt, Any]] = []

    def take(self, prompt: Prompt, empty: Callable[[Any], Any], least: int = 1) -> tuple[Any, int]:
        """Return a cache to go on with, and how many of the prompt's tokens it holds: never all of them.

        It holds none where it would be fewer than `least`: then it is what `empty` makes, which gets a cache that
        was held, if one had to go, to use its memory again.
        """
        counts = [min(common(held, prompt), len(prompt.ids) - 1) for held, _ in self._held]
        best = max(range(len(counts)), key=lambda number: (counts[number], number), default=0)
        if counts and counts[best] >= max(1, least) and self._is_the_same(self._held[best][0], counts[best]):
            _, cache = self._held.pop(best)
            cache.crop(counts[best] - cache.get_seq_length())
            return cache, counts[best]
        spare = self._held.pop(0)[1] if len(self._held) >= self.most else None
        return empty(spare), 0

    def _is_the_same(self, held: Prompt, count: int) -> bool:
        """Whether a prompt that shares so many tokens goes on with a held one, or merely begins as all of them do."""
        return self.most == 1 or 2 * count >= len(held.ids)

    def keep(self, prompt: Prompt, answer: Sequence[int], cache: Any, free_bytes: float = math.inf) -> None:
        """Hold the cache of a prompt and its answer, whose last token need not be in it.

        All but this one take at most a share of the memory that is free. One that forgets what is far back (sliding
        windows) can't be shortened, and is not held.
        """
        if not any(cache.is_sliding):
            ids = [*prompt.ids, *answer][: cache.get_seq_length()]
            self._held.append((Prompt(ids, prompt.spans), cache))
        while len(self._held) > self.most or (len(self._held) > 1 and self.held_bytes > SHARE * free_bytes):
            self._held.pop(0)

    @property
    def held_bytes(self) -> int:
        """What the held caches take, as far as it is known."""
        return sum(getattr(cache, "room_bytes", 0) for _, cache in self._held)

    def drop(self) -> None:
        """Give the memory back."""
        self._held.clear()


def heads(prompts: Sequence[Prompt]) -> list[int]:
    """Return, for each prompt, the first one that has the same tokens and media up to the end of its last medium."""
    known: dict[object, int] = {}
    keys = [(tuple(one.ids[: one.media_end]), tuple(id(span.medium) for span in one.spans)) for one in prompts]
    return [known.setdefault(key, number) for number, key in enumerate(keys)]


def common(one: Prompt, other: Prompt) -> int:
    """Return how many tokens two prompts begin with in common; media count as far as their content is the same."""
    pairs = enumerate(zip(one.ids, other.ids, strict=False))
    count = next((at for at, (a, b) in pairs if a != b), min(len(one.ids), len(other.ids)))
    for mine, theirs in zip(one.spans, other.spans, strict=False):
        if min(mine.start, theirs.start) >= count:
            break
        if mine.start != theirs.start:
            return min(mine.start, theirs.start)
        same = mine.start + _common_tokens(mine, theirs)
        if same < max(mine.stop, theirs.stop):
            return min(count, same)
    return count


def _common_tokens(mine: Span, theirs: Span) -> int:
    """Return how many tokens two media begin with in common: whole frames of a video, all or nothing of a picture."""
    tokens = mine.stop - mine.start
    one, other = mine.medium, theirs.medium
    if one is other:
        return tokens
    if isinstance(one, Picture) or isinstance(other, Picture):
        same = isinstance(one, Picture) and isinstance(other, Picture) and np.array_equal(one.pixels, other.pixels)
        return tokens if same else 0
    frames = 0
    for mine_frame, their_frame in zip(one.images, other.images, strict=False):
        if not np.array_equal(mine_frame, their_frame):
            break
        frames += 1
    return frames * (tokens // len(one.images))
