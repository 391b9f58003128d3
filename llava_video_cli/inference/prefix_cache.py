"""What a prompt has in common with earlier ones, whose keys and values lie in slots."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from ..conversation import Media
from ..video.image import Picture

_LEAST_TOKENS = 16  # in common, without all media: fewer are not worth a copy


@dataclass(frozen=True, eq=False)
class Span:
    """A medium of a prompt, and the places of its tokens: `[start, stop)`."""

    start: int
    stop: int
    medium: Media


@dataclass(frozen=True, eq=False)
class Prompt:
    """The ids of a prompt, and the media that stand in it. If it `is_whole`, its media can't be computed in parts.

    `media_tokens` are those of each medium where only the processor can tell. If it `opens_thought`, the answer begins
    within one. Behind its media, a token's position is its number and the `shift`.
    """

    ids: Sequence[int]
    spans: tuple[Span, ...] = ()
    is_whole: bool = False
    media_tokens: tuple[int, ...] = ()
    opens_thought: bool = False
    shift: int = 0

    @property
    def media_end(self) -> int:
        """The number of tokens up to the end of the last medium."""
        return self.spans[-1].stop if self.spans else 0

    @cached_property
    def marks(self) -> NDArray[np.int64]:
        """A number for each token, int64 (tokens): equal ones mean the same id, or the same picture or frame there."""
        marks = np.array(self.ids, dtype=np.int64)
        for span in self.spans:
            medium, place = span.medium, marks[span.start : span.stop]
            numbers = _numbers(medium)
            place[:] = np.repeat(numbers, len(place) // len(numbers))
        return marks

    @cached_property
    def media_key(self) -> bytes:
        """What prompts that are the same up to the end of their last medium have in common."""
        return self.marks[: self.media_end].tobytes()

    @cached_property
    def key(self) -> bytes:
        """All marks, to be compared at once."""
        return self.marks.tobytes()

    def extended(self, ids: Sequence[int]) -> Prompt:
        """Return the prompt with further ids."""
        return replace(self, ids=[*self.ids, *ids]).marked(np.append(self.marks, np.array(ids, dtype=np.int64)))

    def marked(self, marks: NDArray[np.int64]) -> Prompt:
        """Return the prompt, with marks that were made elsewhere."""
        self.__dict__["marks"] = marks
        return self


_known_numbers: weakref.WeakKeyDictionary[Media, list[int]] = weakref.WeakKeyDictionary()


def _numbers(medium: Media) -> list[int]:
    """Return what stands for each image of a medium: questions on the same one come with the same object."""
    if medium not in _known_numbers:
        images = [medium.pixels] if isinstance(medium, Picture) else list(medium.images)
        # what is made of a frame is decided by its fit, too
        kind = "picture" if isinstance(medium, Picture) else f"frame {medium.sampling.fit}"
        _known_numbers[medium] = [number_of(image, kind) for image in images]
    return _known_numbers[medium]


def number_of(image: NDArray[np.uint8], kind: str) -> int:
    """Return a negative number that stands for an image, or several, of a kind, which no id is."""
    digest = blake2b(np.ascontiguousarray(image).data, digest_size=8, salt=kind.encode())
    digest.update(str(image.shape).encode())
    return -1 - int.from_bytes(digest.digest(), "big") // 2


def common_tokens(one: Prompt, other: Prompt) -> int:
    """Return how many tokens two prompts begin with in common: of a video whole frames, a picture or nothing of it."""
    count = min(len(one.ids), len(other.ids))
    differs = one.marks[:count] != other.marks[:count]
    return int(differs.argmax()) if differs.any() else count


class PrefixCache(dict[int, Prompt]):
    """The prompts, answers included, that slots hold from their start on, by slot: the oldest first.

    If a slot held something before, what it holds now is as old as that. Not for several threads at a time.
    """

    def best(self, prompt: Prompt, same_media: bool) -> tuple[Prompt | None, int]:
        """Return what is held that begins with the most of the prompt's tokens, and how many: never all of them.

        With `same_media`, it has all media of the prompt.
        """
        least = prompt.media_end if same_media and prompt.spans else _LEAST_TOKENS
        best: tuple[Prompt | None, int] = None, 0
        for held in self.values():
            if same_media and prompt.spans and not held.key.startswith(prompt.media_key):
                continue
            count = min(common_tokens(held, prompt), len(prompt.ids) - 1)
            if count >= max(least, best[1]):
                best = held, count
        return best

    def has_media(self, prompt: Prompt) -> bool:
        """Whether a slot holds all media of a prompt; in any thread, so it may have changed a moment later."""
        return any(held.key.startswith(prompt.media_key) for held in list(self.values()))

    def slot_of(self, held: Prompt | None) -> int | None:
        """Return the slot in which this very prompt is held."""
        return next((slot for slot, prompt in self.items() if prompt is held), None)

    def oldest(self, slots: Iterable[int]) -> int:
        """Return the slot to be overwritten next: one that holds nothing, else the one that has done so for longest."""
        ages = {slot: age for age, slot in enumerate(self)}
        return min(slots, key=lambda slot: (ages.get(slot, -1), slot))

    def exchange(self, one: int, other: int) -> None:
        """Take note that two slots have exchanged what they hold."""
        exchanged = {{one: other, other: one}.get(slot, slot): prompt for slot, prompt in self.items()}
        self.clear()
        self.update(exchanged)

    def keep_within(self, slots: int, room: int) -> None:
        """Forget what will not be there with so many slots of so many tokens."""
        for slot in [slot for slot, held in self.items() if slot >= slots or len(held.ids) > room]:
            del self[slot]
