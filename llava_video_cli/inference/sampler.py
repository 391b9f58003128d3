"""Logits to tokens: the likeliest, or drawn, with transformers' own processors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)
from transformers.generation import (
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from ..conversation import Generation


class Choice:
    """How the tokens of a batch are chosen: greedy at temperature 0, else sampled by temperature and top-p.

    `ids` and `mask` are those of the prompts, int64 (rows, tokens). What a checkpoint's own generation config forbids
    is forbidden here, too.
    """

    def __init__(
        self, generation: Generation, config: Any, stops: Sequence[int], ids: torch.Tensor, mask: torch.Tensor
    ) -> None:
        self._drawn, device = generation.temperature > 0, ids.device
        self._processors = _processors(generation, config, stops, device)
        # padding must not count as said before: a token of the same prompt does so anyway
        self._ids = torch.where(mask == 1, ids, ids[:, -1:])
        self._random = None
        if self._drawn and generation.seed is not None:
            self._random = torch.Generator(device).manual_seed(generation.seed)

    def choose(self, logits: torch.Tensor) -> torch.Tensor:
        """Return a token for each row, int64 (rows), of logits (rows, vocabulary); nothing waits for the device."""
        scores = logits.float()
        if self._processors:
            scores = self._processors(self._ids, scores)
        if self._drawn:
            odds = torch.softmax(scores, dim=-1)
            chosen = torch.multinomial(odds, 1, generator=self._random)[:, 0]
        else:
            chosen = scores.argmax(dim=-1)
        if self._processors:
            self._ids = torch.cat([self._ids, chosen[:, None]], dim=1)
        return chosen

    def select(self, rows: torch.Tensor) -> None:
        """Go on with these rows alone."""
        self._ids = self._ids[rows]


def _processors(generation: Generation, config: Any, stops: Sequence[int], device: torch.device) -> Any:
    """Return transformers' processors, in the order in which `generate` has them."""
    made: list[Any] = []
    if generation.repetition_penalty != 1:
        made.append(RepetitionPenaltyLogitsProcessor(penalty=generation.repetition_penalty))
    if config.no_repeat_ngram_size:
        made.append(NoRepeatNGramLogitsProcessor(config.no_repeat_ngram_size))
    if config.bad_words_ids:
        made.append(NoBadWordsLogitsProcessor(config.bad_words_ids, list(stops)))
    if config.suppress_tokens:
        made.append(SuppressTokensLogitsProcessor(config.suppress_tokens, device=device))
    if generation.temperature > 0:
        if generation.temperature != 1:
            made.append(TemperatureLogitsWarper(generation.temperature))
        if generation.top_p < 1:
            made.append(TopPLogitsWarper(top_p=generation.top_p))
    return LogitsProcessorList(made)
