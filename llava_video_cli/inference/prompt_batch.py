"""Prompts to the inputs of a batch, on KV caches that hold what of them is computed already."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from . import device_memory as memory
from .decode_step import BatchInputs, Decoder
from .prefix_cache import Layers, PrefixCache, Prompt, SharedPrefixes
from .vision import Vision

_PREFIXES_PER_CONVERSATION = 4  # several may begin at about the same time


class PromptBatcher:
    """Puts prompts into batches, and keeps KV caches for the next ones. Not for several threads at a time.

    `conversations` is how many alternate: so many caches of single prompts are kept, and, if there are several, what
    batches begin with.
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
        self._prefix_cache, self._prefix_reuse = PrefixCache(conversations), prefix_reuse
        self._shared = SharedPrefixes(_PREFIXES_PER_CONVERSATION * conversations if conversations > 1 else 0)
        self._last_cache: Any = None  # of a batch: the next one may use its captured step

    @property
    def cached_bytes(self) -> int:
        """The size of the caches that are kept."""
        last_bytes: int = getattr(self._last_cache, "allocated_bytes", 0)
        return self._prefix_cache.cached_bytes + self._shared.cached_bytes + last_bytes

    @torch.inference_mode()
    def batch(self, prompts: Sequence[Prompt], most_new: int, same_media: bool) -> tuple[BatchInputs, list[int]]:
        """Return the inputs for prompts that get at most `most_new` tokens each, and how many of each are cached.

        With `same_media`, the cache of an earlier prompt serves a single one only if all media are the same.
        """
        reusable, self._last_cache = self._last_cache, None
        if len(prompts) > 1:
            return self._several(prompts, most_new, reusable)
        (prompt,) = prompts
        capacity = len(prompt.ids) + most_new
        least = prompt.media_end if same_media else 1
        cache, cached = self._prefix_cache.take(
            prompt, lambda dropped: self._decoder.cache(1, capacity, dropped or reusable), least
        )
        self._decoder.reserve(cache, capacity)
        return self._inputs(prompts, cache, cached), [cached]

    def keep(self, cache: Any, prompts: Sequence[Prompt], answers: Sequence[Sequence[int]]) -> None:
        """Keep the cache of prompts that were answered: for one that begins the same way, or for its captured step."""
        if len(prompts) == 1 and self._prefix_reuse:
            self._prefix_cache.keep(prompts[0], answers[0], cache, memory.free_bytes(self._decoder.device))
        elif getattr(cache, "captured", None) is not None:
            self._last_cache = cache

    def _several(self, prompts: Sequence[Prompt], most_new: int, reusable: Any) -> tuple[BatchInputs, list[int]]:
        """Return the inputs of a batch, and how many tokens of each prompt are computed for another one.

        A prefix, the part of a prompt up to its last medium, is computed once for all prompts that share it.
        """
        self._free_memory(len(prompts), most_new + max(len(prompt.ids) for prompt in prompts))
        prefixes: dict[object, Prompt] = {}
        rows = [prefixes.setdefault(prompt.media_prefix.key, prompt.media_prefix) for prompt in prompts]
        pays = len(prefixes) < len(prompts) or self._shared.was_seen(list(prefixes.values()))
        if not self._prefix_reuse or not pays or not all(prompt.media_end for prompt in prompts):
            capacity = max(len(prompt.ids) for prompt in prompts) + most_new
            return self._inputs(prompts, self._decoder.cache(len(prompts), capacity, reusable)), [0] * len(prompts)
        longest = max(len(prefix.ids) for prefix in rows)
        rests = [Prompt(prompt.ids[prompt.media_end :]) for prompt in prompts]
        capacity = longest + max(len(rest.ids) for rest in rests) + most_new
        cache, computed = self._prefix_rows(rows, capacity, reusable)
        prefix_ids, prefix_mask = self._padded(rows)
        inputs = self._inputs(rests, cache)
        ids, mask = torch.cat([prefix_ids, inputs.ids], dim=1), torch.cat([prefix_mask, inputs.mask], dim=1)
        is_padded = inputs.is_padded or any(len(prefix.ids) < longest for prefix in rows)
        cached = []
        for prefix in rows:  # the first prompt of each prefix that was computed pays for it
            cached.append(0 if prefix in computed else len(prefix.ids))
            computed.discard(prefix)
        return BatchInputs(ids, mask, inputs.embeddings, cache, is_padded), cached

    def _prefix_rows(self, rows: Sequence[Prompt], capacity: int, reusable: Any) -> tuple[Any, set[Prompt]]:
        """Return a cache with a row for each of these prefixes, and those that had to be computed."""
        prefixes = list(dict.fromkeys(rows))
        layers: dict[Prompt, Layers] = {}
        for prefix in prefixes:
            if (cached := self._shared.get(prefix)) is not None:
                layers[prefix] = cached
        new = [prefix for prefix in prefixes if prefix not in layers]
        if new:
            free_bytes = memory.free_bytes(self._decoder.device)
            longest = max(len(prefix.ids) for prefix in new)
            inputs = self._inputs(new, self._decoder.cache(len(new), longest))
            self._decoder.prefill(inputs)
            new_layers = self._shared.keep(new, inputs.cache, free_bytes)
            if len(new) == len(prefixes):
                places = self._tensor([new.index(prefix) for prefix in rows])
                return self._decoder.select(inputs.cache, places, capacity, reusable), set(new)
            layers |= zip(new, new_layers, strict=True)
        cache = self._decoder.cache(len(rows), capacity, reusable)
        cache.fill([layers[prefix] for prefix in rows], max(len(prefix.ids) for prefix in prefixes))
        return cache, set(new)

    def _free_memory(self, rows: int, tokens: int) -> None:
        """Drop the cache of a single prompt before a batch; those of several conversations if it needs their memory."""
        needed = rows * self._answer_bytes(tokens)
        if self._prefix_cache.capacity == 1 or needed > memory.free_bytes(self._decoder.device):
            self._prefix_cache.clear()
            self._shared.clear()

    def _inputs(self, prompts: Sequence[Prompt], cache: Any, cached: int = 0) -> BatchInputs:
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
        return BatchInputs(ids, mask, embeddings, cache, is_padded)

    def _padded(self, prompts: Sequence[Prompt]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the ids of prompts, int64 (prompts, tokens), padded on the left, and a mask that is 0 at padding."""
        longest = max(len(prompt.ids) for prompt in prompts)
        ids = torch.full((len(prompts), longest), self._pad_id, device=self._decoder.device)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            part = slice(longest - len(prompt.ids), None)
            ids[row, part], mask[row, part] = self._tensor(prompt.ids), 1
        return ids, mask

    def _tensor(self, numbers: Sequence[int]) -> torch.Tensor:
        return torch.tensor(numbers, device=self._decoder.device)
