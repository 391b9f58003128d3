"""Embeddings to tokens: a batch's rows, answered by a thread of their own, as an iterator."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch

from ..conversation import FinishReason
from .decoder import Decoder, Rows
from .sampler import Choice

# An answer that ends in the same tokens this often, and for this long, goes round in circles.
_CIRCLES, _CIRCLING_TOKENS, _LONGEST_CIRCLE = 6, 64, 48
_CHECK_EVERY = 16  # tokens
# How long a reader that leaves waits for the step under way; a prefill on a CPU may take minutes.
_LEAVE_SECONDS = 2.0


@dataclass(frozen=True)
class Token:
    """A new token of a row, and, if it is the row's last, why."""

    row: int
    id: int
    finish_reason: FinishReason | None
    at_seconds: float  # of time.perf_counter


class Run:
    """Rows that are answered together.

    Iterated, it yields the tokens of all rows as they come, from a thread that hands its exception over and stops when
    the reader leaves. Row n gets at most `limits[n]` new tokens; one that is `gone` is given up, without a last token.
    """

    def __init__(
        self,
        decoder: Decoder,
        rows: Rows,
        limits: Sequence[int],
        stops: Sequence[int],
        choice: Choice,
        gone: Callable[[int], bool] | None = None,
    ) -> None:
        self._decoder, self._rows, self._choice, self._stops = decoder, rows, choice, frozenset(stops)
        self._limits, self._gone = limits, gone
        self.new_ids: list[list[int]] = [[] for _ in limits]
        self._queue: queue.SimpleQueue[list[Token] | BaseException | None] = queue.SimpleQueue()
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._work, name="llvid-generate", daemon=True)
        self.cache: Any = None

    def __enter__(self) -> Run:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        self._thread.join(_LEAVE_SECONDS)

    def __iter__(self) -> Iterator[Token]:
        while (item := self._queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield from item

    def _work(self) -> None:
        try:
            self._generate()
            self._queue.put(None)
        except BaseException as error:  # noqa: BLE001 - the reader gets it, whatever it is
            self._queue.put(error)

    @torch.inference_mode()
    def _generate(self) -> None:
        """Answer the rows; `cache` is set at the end, and holds the prompt and the new tokens, perhaps but the last."""
        ahead, turns = self._decoder.is_ahead, self._decoder.turns
        living = {row: row for row in range(len(self._limits))}  # rows of the run, and where they stand in the batch
        width = len(living)
        with turns:
            decoding = self._decoder.begin(self._rows, max(self._limits))
            logits = decoding.prefill()
        while not self._left.is_set():
            with turns:
                chosen = self._choice.choose(logits)
                there = _on_its_way(chosen)
                if ahead and self._goes_on(living):  # the next step is under way while these tokens are looked at
                    logits = decoding.advance(chosen)
            living = self._take(living, there())
            if not living:
                break
            with turns:
                if len(living) <= width // 2:  # rows that have ended cost as much as the others
                    places = torch.tensor(list(living.values()), device=chosen.device)
                    decoding.select(places)
                    self._choice.select(places)
                    logits, chosen = logits[places], chosen[places]
                    living, width = {row: place for place, row in enumerate(living)}, len(living)
                if not ahead:
                    logits = decoding.advance(chosen)
        decoding.finish()
        self.cache = decoding.cache

    def _goes_on(self, living: Iterable[int]) -> bool:
        """Whether any row may get more than the token that is about to come."""
        return any(len(self.new_ids[row]) + 1 < self._limits[row] for row in living)

    def _take(self, living: dict[int, int], ids: Sequence[int]) -> dict[int, int]:
        """Hand over the new tokens, one of each place in the batch; return the rows that go on."""
        now = time.perf_counter()
        tokens, left = [], {}
        for row, place in living.items():
            if self._gone is not None and self._gone(row):
                continue
            mine = self.new_ids[row]
            mine.append(ids[place])
            reason = finish_reason(mine, self._stops, self._limits[row])
            tokens.append(Token(row, ids[place], reason, now))
            if reason is None:
                left[row] = place
        self._queue.put(tokens)
        return left


def finish_reason(ids: Sequence[int], stops: Container[int], limit: int) -> FinishReason | None:
    """Return why an answer ends with these new ids, if it does."""
    if ids[-1] in stops:
        return "stop"
    is_over = len(ids) >= limit
    if (is_over or len(ids) % _CHECK_EVERY == 0) and circles(ids):
        return "repetition"
    return "length" if is_over else None


def circles(ids: Sequence[int]) -> bool:
    """Tell whether the ids end in one block of tokens, repeated."""
    for length in range(1, _LONGEST_CIRCLE + 1):
        span = max(_CIRCLES * length, _CIRCLING_TOKENS)
        if len(ids) < span:
            continue
        tail = ids[-span:]
        if all(tail[i] == tail[i + length] for i in range(span - length)):
            return True
    return False


def stop_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Return the tokens that end an answer: those of the generation config, the text config, the tokenizer."""
    found: list[int] = []
    for source in (model.generation_config, model.config.get_text_config(), tokenizer):
        ids = source.eos_token_id
        found += ids if isinstance(ids, list) else [] if ids is None else [ids]
    return tuple(dict.fromkeys(found))


def _on_its_way(chosen: torch.Tensor) -> Callable[[], list[int]]:
    """Return a call that waits for the tokens, int64 (rows), and for nothing that is asked of the device after them."""
    if chosen.device.type != "cuda":
        return chosen.tolist
    host = torch.empty(chosen.shape, dtype=chosen.dtype, pin_memory=True)
    host.copy_(chosen, non_blocking=True)
    there = torch.cuda.Event()
    there.record(torch.cuda.current_stream(chosen.device))

    def wait() -> list[int]:
        there.synchronize()
        return host.tolist()

    return wait
