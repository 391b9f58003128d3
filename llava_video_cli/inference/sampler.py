"""Logits to tokens: the likeliest, or sampled, with transformers' own processors."""

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

NOT_FINITE = -1  # stands for the token of a row whose logits hold a NaN or an infinity


class Sampler:
    """Picks the next tokens of a batch: greedy at temperature 0, else sampled by temperature and top-p.

    `ids` and `mask` are those of the prompts, int64 (rows, tokens). What the checkpoint's own generation config forbids
    is forbidden here, too.
    """

    def __init__(
        self, generation: Generation, config: Any, stop_ids: Sequence[int], ids: torch.Tensor, mask: torch.Tensor
    ) -> None:
        self._is_greedy, device = generation.temperature == 0, ids.device
        self._processors = _processors(generation, config, stop_ids, device)
        # a repetition penalty must not count padding: it is replaced with a token of the same prompt
        self._ids = torch.where(mask == 1, ids, ids[:, -1:])
        self._random = None
        if not self._is_greedy and generation.seed is not None:
            self._random = torch.Generator(device).manual_seed(generation.seed)

    def sample(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return a token for each row, int64 (rows), of logits (rows, vocabulary); nothing waits for the device.

        The second tensor is the same but for rows whose logits are not finite: it has `NOT_FINITE` there, and the first
        one any token, so that the other rows can go on.
        """
        scores = logits.float()
        is_finite = scores.sum(dim=-1).isfinite()
        if not self._is_greedy:  # sampling from a NaN is an error of the whole batch
            scores = torch.where(is_finite[:, None], scores, 0)
        if self._processors:
            scores = self._processors(self._ids, scores)
        if self._is_greedy:
            new_ids = scores.argmax(dim=-1)
        else:
            new_ids = torch.multinomial(torch.softmax(scores, dim=-1), 1, generator=self._random)[:, 0]
        if self._processors:
            self._ids = torch.cat([self._ids, new_ids[:, None]], dim=1)
        return new_ids, torch.where(is_finite, new_ids, NOT_FINITE)

    def select(self, rows: torch.Tensor) -> None:
        """Keep these rows alone, int64 (rows)."""
        self._ids = self._ids[rows]


def _processors(generation: Generation, config: Any, stop_ids: Sequence[int], device: torch.device) -> Any:
    """Return transformers' processors, in the order in which `generate` has them."""
    processors: list[Any] = []
    if generation.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(penalty=generation.repetition_penalty))
    if config.no_repeat_ngram_size:
        processors.append(NoRepeatNGramLogitsProcessor(config.no_repeat_ngram_size))
    if config.bad_words_ids:
        processors.append(NoBadWordsLogitsProcessor(config.bad_words_ids, list(stop_ids)))
    if config.suppress_tokens:
        processors.append(SuppressTokensLogitsProcessor(config.suppress_tokens, device=device))
    if generation.temperature > 0:
        if generation.temperature != 1:
            processors.append(TemperatureLogitsWarper(generation.temperature))
        if generation.top_p < 1:
            processors.append(TopPLogitsWarper(top_p=generation.top_p))
    return LogitsProcessorList(processors)
