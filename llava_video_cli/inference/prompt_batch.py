"""Prompts to the rows of a batch, on caches that hold what of them is computed already."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from . import device_memory as memory
from .decoder import Decoder, Rows
from .prefix_cache import Prefix, Prompt, heads
from .shared_prefixes import Beginnings
from .vision import Vision

_BEGINNINGS = 4  # for each conversation: several may be about to begin


class Assembly:
    """Puts prompts side by side, and keeps a cache for the next ones. Not for several threads at a time.

    `prefix` holds the caches of the last single prompts, one for each of the `conversations` that take turns,
    `beginnings` what batches began with, if there are several, and `spare` a cache whose captured step the next batch
    may use.
    """

    def __init__(
        self,
        decoder: Decoder,
        vision: Vision,
        pad_id: int,
        answer_bytes: Callable[[int], int],
        prefix_reuse: bool,
        conversations: int = 1,
    ) -> None:
        self._decoder, self._vision, self._pad_id, self._answer_bytes = decoder, vision, pad_id, answer_bytes
        self.prefix, self._prefix_reuse = Prefix(conversations), prefix_reuse
        self.beginnings = Beginnings(_BEGINNINGS * conversations if conversations > 1 else 0)
        self.spare: Any = None

    @property
    def held_bytes(self) -> int:
        """What the caches take that are held for later."""
        return self.prefix.held_bytes + self.beginnings.held_bytes + getattr(self.spare, "room_bytes", 0)

    @torch.inference_mode()
    def rows(self, prompts: Sequence[Prompt], most_new: int, same_media: bool) -> tuple[Rows, list[int]]:
        """Return the rows of prompts that get at most so many new tokens, and how many tokens of each are not computed.

        With `same_media`, the last prompt serves a single one only if all media are the same.
        """
        if len(prompts) == 1:
            return self._alone(prompts[0], most_new, same_media)
        return self._batch(prompts, most_new)

    def keep(self, cache: Any, prompts: Sequence[Prompt], answers: Sequence[Sequence[int]]) -> None:
        """Hold the cache of prompts that were answered, for one that begins the same way, or for its captured step."""
        if len(prompts) == 1 and self._prefix_reuse:
            self.prefix.keep(prompts[0], answers[0], cache, memory.free_bytes(self._decoder.device))
        elif getattr(cache, "captured", None) is not None:
            self.spare = cache

    def _alone(self, prompt: Prompt, most_new: int, same_media: bool) -> tuple[Rows, list[int]]:
        """Return the row of a single prompt, which goes on from the last one's cache where it may."""
        room = len(prompt.ids) + most_new
        least = prompt.media_end if same_media else 1
        spare, self.spare = self.spare, None
        cache, cached = self.prefix.take(prompt, lambda held: self._decoder.cache(1, room, held or spare), least)
        self._decoder.reserve(cache, room)
        return self._fill([prompt], cache, cached), [cached]

    def _batch(self, prompts: Sequence[Prompt], most_new: int) -> tuple[Rows, list[int]]:
        """Return the rows of a batch, and how many tokens of each prompt are computed for another one.

        What several prompts begin with, up to their last medium, is computed once.
        """
        self._make_room(len(prompts), most_new + max(len(prompt.ids) for prompt in prompts))
        spare, self.spare = self.spare, None
        first = heads(prompts)
        shared = sorted(set(first))
        beginnings = [Prompt(prompts[n].ids[: prompts[n].media_end], prompts[n].spans) for n in shared]
        pays = len(shared) < len(prompts) or self.beginnings.repeats(beginnings)
        if not self._prefix_reuse or not pays or not all(prompt.media_end for prompt in prompts):
            room = max(len(prompt.ids) for prompt in prompts) + most_new
            return self._fill(prompts, self._decoder.cache(len(prompts), room, spare)), [0] * len(prompts)
        longest = max(len(prompt.ids) for prompt in beginnings)
        rests = [Prompt(prompt.ids[prompt.media_end :]) for prompt in prompts]
        room = longest + max(len(prompt.ids) for prompt in rests) + most_new
        places = [shared.index(n) for n in first]
        cache, new = self._begun(beginnings, places, room, spare)
        begun_ids, begun_mask = self._padded([beginnings[place] for place in places])
        ends = self._fill(rests, cache)
        ids, mask = torch.cat([begun_ids, ends.ids], dim=1), torch.cat([begun_mask, ends.mask], dim=1)
        is_padded = ends.is_padded or any(len(prompt.ids) < longest for prompt in beginnings)
        computed = {n for n, prompt in zip(shared, beginnings, strict=True) if prompt in new}
        cached = [0 if n == number and n in computed else prompts[n].media_end for number, n in enumerate(first)]
        return Rows(ids, mask, ends.embeddings, cache, is_padded), cached

    def _begun(
        self, beginnings: Sequence[Prompt], places: Sequence[int], room: int, spare: Any
    ) -> tuple[Any, list[Prompt]]:
        """Return a cache with a row of a beginning for each place, and the beginnings that had to be computed."""
        held = {prompt: self.beginnings.get(prompt) for prompt in beginnings}
        new = [prompt for prompt, layers in held.items() if layers is None]
        free_bytes = memory.free_bytes(self._decoder.device)
        if len(new) == len(beginnings):
            longest = max(len(prompt.ids) for prompt in new)
            rows = self._fill(new, self._decoder.cache(len(new), longest))
            self._decoder.prefill(rows)
            self.beginnings.keep(new, rows.cache, free_bytes)
            return self._decoder.select(rows.cache, self._tensor(places), room, spare), new
        found = {prompt: layers for prompt, layers in held.items() if layers is not None}
        if new:
            rows = self._fill(new, self._decoder.cache(len(new), max(len(prompt.ids) for prompt in new)))
            self._decoder.prefill(rows)
            found |= zip(new, self.beginnings.keep(new, rows.cache, free_bytes), strict=True)
        cache = self._decoder.cache(len(places), room, spare)
        longest = max(len(prompt.ids) for prompt in beginnings)
        cache.fill([found[beginnings[place]] for place in places], longest)
        return cache, new

    def _make_room(self, rows: int, tokens: int) -> None:
        """Give the memory of single prompts back to a batch; those of several conversations if it needs it."""
        needed = rows * self._answer_bytes(tokens)
        if self.prefix.most == 1 or needed > memory.free_bytes(self._decoder.device):
            self.prefix.drop()
            self.beginnings.drop()

    def _fill(self, prompts: Sequence[Prompt], cache: Any, cached: int = 0) -> Rows:
        """Return prompts padded on the left, with the features of their media in their places.

        The cache holds the first `cached` tokens of each prompt: nothing of them is encoded.
        """
        spans = [[span for span in prompt.spans if span.stop > cached] for prompt in prompts]
        features = iter(self._vision.encode(span.medium for row in spans for span in row))
        ids, mask = self._padded(prompts)
        longest = ids.shape[1]
        embeddings = self._decoder.model.get_input_embeddings()(ids[:, cached:])
        for row, prompt in enumerate(prompts):
            shift = longest - len(prompt.ids) - cached
            for span in spans[row]:
                begin = max(span.start, cached)
                embeddings[row, begin + shift : span.stop + shift] = next(features)[begin - span.start :].to(embeddings)
        is_padded = any(len(prompt.ids) < longest for prompt in prompts)
        return Rows(ids, mask, embeddings, cache, is_padded)

    def _padded(self, prompts: Sequence[Prompt]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the ids of prompts, int64 (prompts, tokens), padded on the left, and a mask of what is no padding."""
        longest = max(len(prompt.ids) for prompt in prompts)
        ids = torch.full((len(prompts), longest), self._pad_id, device=self._decoder.device)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            here = slice(longest - len(prompt.ids), None)
            ids[row, here], mask[row, here] = self._tensor(prompt.ids), 1
        return ids, mask

    def _tensor(self, numbers: Sequence[int]) -> torch.Tensor:
        return torch.tensor(numbers, device=self._decoder.device)
