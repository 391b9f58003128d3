"""LLaVA-NeXT-Video: prompts whose tokens are known from the config, and frames that are encoded in batches."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate
from typing import Any
from weakref import WeakKeyDictionary

from ...conversation import Request, Turn
from ...errors import ModelError
from ...prompt.budget import Budget, too_long
from ...prompt.chat_template import IMAGE, VIDEO, render
from ...prompt.continuation import Choices, answer_tokens, beginnings, read_choices
from ..detokenizer import hidden_ids
from ..loader import Loaded
from ..prefix_cache import Prompt, Span
from ..tokenizer import Tokenizer
from ..vision import Vision


class LlavaPrompts:
    """From requests to prompts; see `Prompts`."""

    def __init__(self, name: str, loaded: Loaded, prefix_reuse: bool) -> None:
        self.tokenizer, self.reuses = Tokenizer(name, loaded), prefix_reuse
        self._name, self._checkpoint, self.source = name, loaded.checkpoint, Vision(loaded)
        self.hidden_ids = hidden_ids(self.tokenizer.own, loaded.checkpoint)
        self.shrink = self.source.shrink
        self._known: WeakKeyDictionary[Request, tuple[list[int], Choices | None, Budget]] = WeakKeyDictionary()

    @property
    def settings(self) -> dict[str, Any]:
        """How positions are scaled, and how frames are pooled."""
        checkpoint = self._checkpoint
        return {
            "rope_factor": checkpoint.rope_factor,
            "pool_stride": checkpoint.rates.pool_stride,
            "pool_mode": checkpoint.pool_mode,
        }

    def render(self, turns: Sequence[Turn]) -> str:
        """Return the text of a conversation, with the start of the next answer."""
        tokenizer, form = self.tokenizer.own, self._checkpoint.prompt_format
        return render(turns, self.tokenizer.template, form, tokenizer.all_special_tokens, tokenizer.eos_token)

    def budget(self, request: Request) -> Budget:
        """Return what a request takes of the context, whether it fits or not; nothing is encoded."""
        return self._counted(request)[2]

    def _counted(self, request: Request) -> tuple[list[int], Choices | None, Budget]:
        """Return the ids of a request's prompt, those of its choices, and what it takes of the context.

        A request that is counted before it is answered is counted once.
        """
        try:
            known = self._known[request] = self._known.get(request) or self._count(request)
        except TypeError:  # a list of turns, say, which can change before the answer
            known = self._count(request)
        return known

    def _count(self, request: Request) -> tuple[list[int], Choices | None, Budget]:
        checkpoint, tokenized = self._checkpoint, self.tokenizer.ids
        media = tuple(medium.tokens(checkpoint.rates) for medium in request.media)
        generation = request.generation
        text, wholes = beginnings(self.render(request.turns), generation, self.tokenizer.own.all_special_tokens)
        counts = iter(media)
        ids = tokenized(re.sub(f"{IMAGE}|{VIDEO}", lambda mark: mark[0] * next(counts), text))
        base, whole_ids = tokenized(text) if wholes else [], list(map(tokenized, wholes))
        longest = answer_tokens(generation, base, whole_ids)
        budget = Budget(len(ids), longest, checkpoint.context_tokens, media)
        if not wholes:
            return ids, None, budget
        stays, choices = read_choices(base, whole_ids, generation.choices)
        return ids[: len(ids) + stays - len(base)], choices, budget

    def prompt(self, request: Request) -> tuple[Prompt, Choices | None]:
        """Return a request's prompt and choices, checked against the context before anything is encoded."""
        ids, choices, budget = self._counted(request)
        counts = budget.media_tokens
        if budget.left < 0:
            raise too_long(self._name, self._checkpoint, budget, request.frame_counts)
        marks = {self._checkpoint.image_token_id, self._checkpoint.video_token_id}
        places = [at for at, token in enumerate(ids) if token in marks]
        if len(places) != sum(counts):
            raise ModelError(f"the prompt has {len(places)} placeholders for {sum(counts)} features")
        ends = zip(request.media, counts, accumulate(counts), strict=True)
        spans = (Span(places[end - count], places[end - 1] + 1, medium) for medium, count, end in ends)
        return Prompt(ids, tuple(spans)), choices
