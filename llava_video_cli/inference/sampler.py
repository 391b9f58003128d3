"""Logits to tokens: the likeliest, or sampled, each row by its own request."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessorList, RepetitionPenaltyLogitsProcessor
from transformers.generation import (
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    SuppressTokensLogitsProcessor,
)

from ..conversation import Generation
from .constraints import Constraint

NOT_FINITE = -1  # stands for the token of a row whose logits hold a NaN or an infinity
_BELOW_ONE = 1 - 2**-20  # the largest draw: its product with a sum is below that sum


class Sampler:
    """What picks a row's tokens: greedy at temperature 0, else sampled by temperature, top-k, top-p and min-p.

    `ids` are those of the prompt. What the checkpoint's own generation config forbids is forbidden
    here, too, by transformers' own `processors`. `constraint` decides which tokens may come next. `logprobs` is
    how many of the likeliest tokens are noted with each one; None notes nothing.
    """

    def __init__(
        self,
        generation: Generation,
        config: Any,
        stop_ids: Sequence[int],
        ids: Sequence[int],
        device: torch.device,
        constraint: Constraint | None = None,
        logprobs: int | None = None,
    ) -> None:
        self.temperature, self.constraint = generation.temperature, constraint
        self.top_k, self.top_p, self.min_p = generation.top_k, generation.top_p, generation.min_p
        self.processors = _processors(generation, config, stop_ids, len(ids), device)
        self._ids = torch.tensor([ids] if self.processors else [[]], dtype=torch.int64, device=device)
        self._prompt_ids, self._seed = self._ids, generation.seed
        self._random = random.Random(self._seed)
        self.top_logprobs = logprobs
        self.logprobs: list[Sequence[tuple[int, float]]] = []  # of each token, and of the likeliest in its place

    def restart(self, new_ids: Sequence[int]) -> None:
        """Begin anew behind these new tokens, whatever was taken since; a constraint takes them by itself."""
        if self.processors:
            self._ids = torch.cat([self._prompt_ids, self._prompt_ids.new_tensor([new_ids])], dim=1)
        self._random = random.Random(self._seed)
        for _ in new_ids:
            self._random.random()
        del self.logprobs[len(new_ids) :]

    def draw(self) -> float:
        """Return the next random number of the row, in [0, 1)."""
        return min(self._random.random(), _BELOW_ONE)

    def process(self, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores of the row, float32 (1, vocabulary), with penalties and without what is forbidden."""
        processed: torch.Tensor = self.processors(self._ids, scores)
        return processed

    def take(self, new_id: torch.Tensor) -> None:
        """Take note of the row's new token, int64 (1)."""
        if self.processors:
            self._ids = torch.cat([self._ids, new_id[None]], dim=1)


def sample(logits: torch.Tensor, rows: Sequence[Sampler]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a token for each row, int64 (rows), of logits (rows, vocabulary).

    Nothing waits for the device, unless logprobs are wanted. The second tensor is the same but for rows whose logits
    are not finite: it has `NOT_FINITE` there, and the first one any token, so that the other rows can go on.
    """
    scores = unchanged = logits.float()
    is_finite = scores.sum(dim=-1).isfinite()
    if any(row.processors for row in rows):
        scores = torch.cat([row.process(scores[at : at + 1]) for at, row in enumerate(rows)])
    if any(row.constraint for row in rows):
        scores = scores.masked_fill(~_allowed(rows, scores.shape[1], scores.device), -torch.inf)
    new_ids = scores.argmax(dim=-1)
    sampled = [at for at, row in enumerate(rows) if row.temperature > 0]
    if sampled:
        places = torch.tensor(sampled, device=logits.device)
        new_ids[places] = _drawn(scores[places].nan_to_num(0, 0), [rows[at] for at in sampled])
    for at, row in enumerate(rows):
        row.take(new_ids[at : at + 1])
    _note_logprobs(unchanged, new_ids, rows)
    return new_ids, torch.where(is_finite, new_ids, NOT_FINITE)


def _drawn(scores: torch.Tensor, rows: Sequence[Sampler]) -> torch.Tensor:
    """Return the token of each row at which the sum of the probabilities passes the row's random number.

    So a row's tokens depend on its own numbers alone, whatever the others are.
    """
    if scores.device.type != "mps":  # which has no such type: sums of many small numbers need it
        scores = scores.double()
    count = scores.shape[1]
    settings = [(row.temperature, row.top_k or count, row.top_p, row.min_p, row.draw()) for row in rows]
    values = torch.tensor(settings, dtype=scores.dtype).to(scores.device)
    temperature, top_k, top_p, min_p, draw = values[:, :, None].unbind(1)
    probabilities = torch.softmax(scores / temperature, dim=-1)
    if any(row.top_p < 1 or row.top_k or row.min_p for row in rows):  # in transformers' order
        likely, order = probabilities.sort(dim=-1, descending=True)
        likely = likely.masked_fill(torch.arange(count, device=scores.device) >= top_k, 0)
        before = likely.cumsum(dim=-1) - likely
        least = min_p * likely[:, :1]
        likely = likely.masked_fill(
            ((before >= top_p * likely.sum(-1, keepdim=True)) & (top_p < 1)) | (likely < least), 0
        )
        probabilities = likely.gather(1, order.argsort(dim=-1))
    sums = probabilities.cumsum(dim=-1)
    return torch.searchsorted(sums, draw * sums[:, -1:], right=True).clamp(max=sums.shape[1] - 1)[:, 0]


def _note_logprobs(logits: torch.Tensor, new_ids: torch.Tensor, rows: Sequence[Sampler]) -> None:
    noting = [at for at, row in enumerate(rows) if row.top_logprobs is not None]
    if not noting:
        return
    logprobs = logits[noting].log_softmax(dim=-1)
    likely = logprobs.topk(max(rows[at].top_logprobs or 1 for at in noting))
    ids = torch.cat([new_ids[noting][:, None], likely.indices], dim=1)
    for at, *pair in zip(noting, ids.tolist(), logprobs.gather(1, ids).tolist(), strict=True):
        rows[at].logprobs.append(list(zip(*pair, strict=True))[: 1 + (rows[at].top_logprobs or 0)])


def _allowed(rows: Sequence[Sampler], count: int, device: torch.device) -> torch.Tensor:
    """Return which of `count` tokens may come next in each row, bool (rows, count)."""
    masks = torch.full((len(rows), -(-count // 32)), -1, dtype=torch.int32, pin_memory=device.type == "cuda")
    size_bytes = masks.stride(0) * masks.element_size()
    for at, row in enumerate(rows):
        if row.constraint is not None:
            row.constraint.fill(masks.data_ptr() + at * size_bytes, size_bytes)
    if device.type == "cpu":  # where torch takes ten times as long
        bytes_each = np.unpackbits(masks.numpy().view(np.uint8), axis=1, count=count, bitorder="little")
        return torch.from_numpy(bytes_each).view(torch.bool)
    eights = masks.to(device, non_blocking=True).view(torch.uint8)  # a bit for each token
    bits = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8).to(device)
    return (eights[:, :, None] & bits).ne(0).flatten(1)[:, :count]


class CountPenalty:
    """Lowers the scores of tokens that stand in the answer: once for each that does, and for each time that it does."""

    def __init__(self, presence: float, frequency: float, prompt_tokens: int) -> None:
        self._presence, self._frequency, self._begin = presence, frequency, prompt_tokens

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Return the scores, (rows, vocabulary), behind these ids."""
        answer = input_ids[:, self._begin :]
        counts = torch.zeros_like(scores).scatter_add_(1, answer, torch.ones_like(answer, dtype=scores.dtype))
        return scores - self._frequency * counts - self._presence * (counts > 0)


def _processors(
    generation: Generation, config: Any, stop_ids: Sequence[int], prompt_tokens: int, device: torch.device
) -> Any:
    """Return transformers' processors, in the order in which `generate` has them, and what counts tokens."""
    processors: list[Any] = []
    if generation.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(penalty=float(generation.repetition_penalty)))
    if config.no_repeat_ngram_size:
        processors.append(NoRepeatNGramLogitsProcessor(config.no_repeat_ngram_size))
    if config.bad_words_ids:
        processors.append(NoBadWordsLogitsProcessor(config.bad_words_ids, list(stop_ids)))
    if config.suppress_tokens:
        processors.append(SuppressTokensLogitsProcessor(config.suppress_tokens, device=device))
    if generation.presence_penalty or generation.frequency_penalty:
        processors.append(CountPenalty(generation.presence_penalty, generation.frequency_penalty, prompt_tokens))
    return LogitsProcessorList(processors)
