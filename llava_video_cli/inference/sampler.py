"""Logits to tokens: the likeliest, or sampled, each row by its own request."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor
from transformers.generation import (
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from ..conversation import Generation

NOT_FINITE = -1  # stands for the token of a row whose logits hold a NaN or an infinity
_BELOW_ONE = 1 - 2**-20  # the largest draw: its product with a sum is below that sum


class Sampler:
    """What picks a row's tokens: greedy at temperature 0, else sampled by temperature and top-p.

    `ids` are those of the prompt. What the checkpoint's own generation config forbids is forbidden
    here, too, by transformers' own processors.
    """

    def __init__(
        self, generation: Generation, config: Any, stop_ids: Sequence[int], ids: Sequence[int], device: torch.device
    ) -> None:
        self.temperature, self.top_p = generation.temperature, generation.top_p
        self._processors = _processors(generation, config, stop_ids, device)
        self._ids = torch.tensor([ids] if self._processors else [[]], device=device)
        self._random = random.Random(generation.seed)

    @property
    def is_plain(self) -> bool:
        """Whether it takes the likeliest token of the logits as they are."""
        return not self.temperature and not self._processors

    def draw(self) -> float:
        """Return the next random number of the row, in [0, 1)."""
        return min(self._random.random(), _BELOW_ONE)

    def process(self, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores of the row, float32 (1, vocabulary), with penalties and without what is forbidden."""
        processed: torch.Tensor = self._processors(self._ids, scores) if self._processors else scores
        return processed

    def take(self, new_id: torch.Tensor) -> None:
        """Take note of the row's new token, int64 (1)."""
        if self._processors:
            self._ids = torch.cat([self._ids, new_id[None]], dim=1)


def sample(logits: torch.Tensor, rows: Sequence[Sampler]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a token for each row, int64 (rows), of logits (rows, vocabulary); nothing waits for the device.

    The second tensor is the same but for rows whose logits are not finite: it has `NOT_FINITE` there, and the first
    one any token, so that the other rows can go on.
    """
    scores = logits.float()
    is_finite = scores.sum(dim=-1).isfinite()
    if not all(row.is_plain for row in rows):
        scores = torch.cat([row.process(scores[at : at + 1]) for at, row in enumerate(rows)])
    new_ids = scores.argmax(dim=-1)
    sampled = [at for at, row in enumerate(rows) if row.temperature > 0]
    if sampled:
        places = torch.tensor(sampled, device=logits.device)
        new_ids[places] = _drawn(scores[places].nan_to_num(0, 0), [rows[at] for at in sampled])
    for at, row in enumerate(rows):
        row.take(new_ids[at : at + 1])
    return new_ids, torch.where(is_finite, new_ids, NOT_FINITE)


def _drawn(scores: torch.Tensor, rows: Sequence[Sampler]) -> torch.Tensor:
    """Return the token of each row at which the sum of the probabilities passes the row's random number.

    So a row's tokens depend on its own numbers alone, whatever the others are.
    """
    if scores.device.type != "mps":  # which has no such type: sums of many small numbers need it
        scores = scores.double()
    settings = [(row.temperature, row.top_p, row.draw()) for row in rows]
    values = torch.tensor(settings, dtype=scores.dtype).to(scores.device)
    temperature, top_p, draw = values[:, :, None].unbind(1)
    probabilities = torch.softmax(scores / temperature, dim=-1)
    if any(row.top_p < 1 for row in rows):
        likely, order = probabilities.sort(dim=-1, descending=True)
        before = likely.cumsum(dim=-1) - likely
        probabilities = likely.masked_fill((before >= top_p) & (top_p < 1), 0).gather(1, order.argsort(dim=-1))
    sums = probabilities.cumsum(dim=-1)
    return torch.searchsorted(sums, draw * sums[:, -1:], right=True).clamp(max=sums.shape[1] - 1)[:, 0]


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
    return LogitsProcessorList(processors)
