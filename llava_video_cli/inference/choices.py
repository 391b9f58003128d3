"""How likely each of several texts is as the answer to a prompt that is computed already."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import DynamicLayer

from ..prompt.continuation import Choices
from .decode_step import Decoder

_MOST_TOKENS, _MOST_LOGITS = 4096, 2**27  # of a forward, of all rows together


@dataclass(frozen=True)
class _Branch:
    """A choice, and those of its tokens that are computed: the logits behind each tell how likely the next one is."""

    choice: int
    ids: tuple[int, ...]
    has_end: bool

    @property
    def computed(self) -> tuple[int, ...]:
        return self.ids if self.has_end else self.ids[:-1]


def log_probabilities(
    decoder: Decoder,
    cache: Any,
    begin: int,
    logits: torch.Tensor,
    rows: Sequence[Choices | None],
    stop_ids: Sequence[int],
    positions: torch.Tensor | None = None,
) -> list[torch.Tensor]:
    """Return the logarithm of the probability of each choice's tokens, float32 (choices), for each row.

    `cache` holds the `begin` tokens of each row's prompt, and stays as it is; `positions`, int64 (rows), are those of
    what follows, if they are not `begin`; `logits`, (rows, vocabulary), are those behind the last one. The end of a
    choice is any of the `stop_ids`. A row without choices gets an empty tensor.
    """
    first = logits.float().log_softmax(dim=-1)
    totals = [first[row, [ids[0] for ids in each.ids] if each else []] for row, each in enumerate(rows)]
    begins = [sum(map(len, totals[:row])) for row in range(len(totals))]
    total = torch.cat(totals)  # of all choices of all rows, from `begins` on
    ends = torch.tensor(sorted(stop_ids), device=first.device)
    most_tokens = min(_MOST_TOKENS, _MOST_LOGITS // first.shape[-1]) // len(rows)
    for group in _groups(rows, most_tokens if decoder.takes_masks else 0):
        width = max(sum(len(branch.computed) for branch in branches) for branches in group)
        ids, offsets, sees = _packed(group, width)
        places = offsets.to(first.device) + (begin if positions is None else positions[:, None])
        answer = decoder.continue_from(_fork(cache), begin, ids, places, sees if decoder.takes_masks else None)
        steps = _steps(group, begins)
        row, place, next_id, choice = torch.tensor(steps, device=first.device).T
        scores = answer[row, place].float()
        is_end = next_id < 0
        found = scores.gather(1, next_id.clamp(min=0)[:, None])[:, 0]
        found = torch.where(is_end, scores[:, ends].logsumexp(dim=-1), found)
        total.index_add_(0, choice, found - scores.logsumexp(dim=-1))
    return list(total.split(list(map(len, totals))))


def _steps(group: Sequence[Sequence[_Branch]], begins: Sequence[int]) -> list[tuple[int, int, int, int]]:
    """Return for each token that is computed its row, its place there, the next id, and the number of its choice.

    The next id is -1 where a choice ends.
    """
    steps = []
    for row, branches in enumerate(group):
        place = 0
        for branch in branches:
            following = (*branch.ids[1:], *([-1] if branch.has_end else ()))
            for next_id in following:
                steps.append((row, place, next_id, begins[row] + branch.choice))
                place += 1
    return steps


def _groups(rows: Sequence[Choices | None], most_tokens: int) -> Iterator[list[list[_Branch]]]:
    """Yield the branches of each row that one forward computes: at least one, and up to so many tokens of a row."""
    waiting = [
        [
            branch
            for number, (ids, has_end) in enumerate(zip(row.ids, row.has_end, strict=True))
            if (branch := _Branch(number, ids, has_end)).computed
        ]
        for row in (each or Choices((), ()) for each in rows)
    ]
    while any(waiting):
        group: list[list[_Branch]] = []
        for branches in waiting:
            taken: list[_Branch] = []
            tokens = 0
            while branches and (not taken or tokens + len(branches[0].computed) <= most_tokens):
                taken.append(branches.pop(0))
                tokens += len(taken[-1].computed)
            group.append(taken)
        yield group


def _packed(group: Sequence[Sequence[_Branch]], width: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the ids of each row's branches one behind the other, and how far each is behind the prompt.

    Both are int64 (rows, width). The last, bool (rows, width, width), tells which of these tokens each one sees: those
    of its own branch up to itself. What is left over at the end sees itself.
    """
    ids, offsets = torch.zeros(2, len(group), width, dtype=torch.int64)
    sees = torch.eye(width, dtype=torch.bool).repeat(len(group), 1, 1)
    for row, branches in enumerate(group):
        place = 0
        for branch in branches:
            part = slice(place, place + len(branch.computed))
            ids[row, part] = torch.tensor(branch.computed)
            offsets[row, part] = torch.arange(len(branch.computed))
            sees[row, part, part] = torch.ones(2 * (len(branch.computed),), dtype=torch.bool).tril()
            place = part.stop
    return ids, offsets, sees


def _fork(cache: Any) -> Any:
    """Return a cache that grows by itself: these layers replace their tensors when they do, others change theirs."""
    fork = copy.copy(cache)
    fork.layers = [
        copy.copy(layer) if isinstance(layer, DynamicLayer) else copy.deepcopy(layer) for layer in cache.layers
    ]
    return fork
