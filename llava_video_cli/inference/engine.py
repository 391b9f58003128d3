"""A batch to tokens: a thread of its own generates them, and its reader iterates over them."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch

from ..conversation import FinishReason
from ..errors import ModelError
from .decode_step import BatchInputs, Decoder, DecodingBatch
from .sampler import NOT_FINITE, Sampler

# An answer ends when it repeats a block of up to 48 tokens, at least 6 times and over at least 64 tokens.
_LEAST_REPEATS, _LEAST_REPEATED_TOKENS, _LONGEST_BLOCK_TOKENS = 6, 64, 48
_CHECK_EVERY_TOKENS = 16
# How long a reader that leaves waits for the step under way; a prefill on a CPU may take minutes.
_LEAVE_SECONDS = 2.0


class FairLock:
    """A lock that goes to the threads that wait for it in the order in which they came.

    A `threading.Lock` that is released and acquired again at once would keep all others waiting.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._waiting: deque[threading.Lock] = deque()
        self._is_locked = False

    def __enter__(self) -> None:
        with self._mutex:
            if not self._is_locked:
                self._is_locked = True
                return
            own = threading.Lock()
            own.acquire()
            self._waiting.append(own)
        own.acquire()  # until the thread before releases it

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._mutex:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._is_locked = False


@dataclass(frozen=True)
class Token:
    """A new token of a row, and, if it is the row's last, why.

    The id `NOT_FINITE` ends a row whose logits hold a NaN or an infinity.
    """

    row: int
    id: int
    finish_reason: FinishReason | None
    at_seconds: float  # of time.perf_counter


class TokenStream:
    """The tokens of a batch's rows as they are generated.

    They come from a thread that hands its exception to the reader, and stops when the reader leaves. Row n gets at most
    `limits[n]` new tokens; one for which `is_cancelled` is true ends without a last token. The device is used under
    `lock` alone, which models that share their weights have in common.
    """

    def __init__(
        self,
        decoder: Decoder,
        lock: FairLock,
        batch: BatchInputs,
        limits: Sequence[int],
        stop_ids: Sequence[int],
        sampler: Sampler,
        is_cancelled: Callable[[int], bool],
    ) -> None:
        self._decoder, self._lock, self._batch, self._sampler = decoder, lock, batch, sampler
        self._limits, self._stop_ids, self._is_cancelled = limits, frozenset(stop_ids), is_cancelled
        self.new_ids: list[list[int]] = [[] for _ in limits]
        self._queue: queue.SimpleQueue[list[Token] | BaseException | None] = queue.SimpleQueue()
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._work, name="llvid-generate", daemon=True)
        self.cache: Any = None

    def __enter__(self) -> TokenStream:
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

    @torch.inference_mode()
    def _work(self) -> None:
        """Generate; at the end `cache` is set: it holds the prompt and the new tokens, perhaps without the last."""
        decoder, lock = self._decoder, self._lock
        active = {row: row for row in range(len(self._limits))}  # rows, and their place in the batch, which shrinks
        width = len(active)
        try:
            with lock:
                decoding = DecodingBatch(decoder, self._batch, max(self._limits))
                logits = decoder.prefill(self._batch)
            while not self._left.is_set():
                with lock:
                    new_ids, checked_ids = self._sampler.sample(logits)
                    wait = _copy_to_host(checked_ids)
                    if decoder.runs_ahead and self._needs_more(active):  # launched before these tokens are read
                        logits = decoding.advance(new_ids)
                active = self._hand_over(active, wait())
                if not active:
                    break
                with lock:
                    if len(active) <= width // 2:  # rows that have ended cost as much as the others
                        places = torch.tensor(list(active.values()), device=new_ids.device)
                        decoding.select(places)
                        self._sampler.select(places)
                        logits, new_ids = logits[places], new_ids[places]
                        active, width = {row: place for place, row in enumerate(active)}, len(active)
                    if not decoder.runs_ahead:
                        logits = decoding.advance(new_ids)
            decoding.finish()
            self.cache = decoding.cache
            self._queue.put(None)
        except BaseException as error:  # noqa: BLE001 - the reader gets it, whatever it is
            self._queue.put(error)

    def _needs_more(self, active: Iterable[int]) -> bool:
        """Whether the limit of any row allows more than the token that was just sampled."""
        return any(len(self.new_ids[row]) + 1 < self._limits[row] for row in active)

    def _hand_over(self, active: dict[int, int], ids: Sequence[int]) -> dict[int, int]:
        """Queue the new tokens, one for each place in the batch; return the rows that continue."""
        now = time.perf_counter()
        tokens, left = [], {}
        for row, place in active.items():
            if self._is_cancelled(row):
                continue
            if ids[place] == NOT_FINITE:
                tokens.append(Token(row, NOT_FINITE, None, now))
                continue
            new_ids = self.new_ids[row]
            new_ids.append(ids[place])
            reason = finish_reason(new_ids, self._stop_ids, self._limits[row])
            tokens.append(Token(row, ids[place], reason, now))
            if reason is None:
                left[row] = place
        self._queue.put(tokens)
        return left


def finish_reason(ids: Sequence[int], stop_ids: Container[int], limit: int) -> FinishReason | None:
    """Return why an answer ends with these new ids; None if it does not."""
    if ids[-1] in stop_ids:
        return "stop"
    is_over = len(ids) >= limit
    if (is_over or len(ids) % _CHECK_EVERY_TOKENS == 0) and ends_in_repetition(ids):
        return "repetition"
    return "length" if is_over else None


def ends_in_repetition(ids: Sequence[int]) -> bool:
    """Return whether the ids end in one block of tokens, repeated."""
    for length in range(1, _LONGEST_BLOCK_TOKENS + 1):
        span = max(_LEAST_REPEATS * length, _LEAST_REPEATED_TOKENS)
        if len(ids) < span:
            continue
        tail = ids[-span:]
        if all(tail[i] == tail[i + length] for i in range(span - length)):
            return True
    return False


def stop_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Return the tokens that end an answer: those of the generation config, the text config, the tokenizer.

    Raises `ModelError` for what can't be a token.
    """
    all_ids: list[int] = []
    for source in (model.generation_config, model.config.get_text_config(), tokenizer):
        ids = source.eos_token_id
        all_ids += ids if isinstance(ids, list) else [] if ids is None else [ids]
    for each in all_ids:
        if type(each) is not int or each.bit_length() > 31:
            raise ModelError(f"the checkpoint's eos_token_id must be the number of a token, got {each!r}")
    return tuple(dict.fromkeys(all_ids))


def _copy_to_host(ids: torch.Tensor) -> Callable[[], list[int]]:
    """Begin to copy ids, int64 (rows), to the host; the call returned waits for them, and for no later work."""
    if ids.device.type != "cuda":
        return ids.tolist
    host = torch.empty(ids.shape, dtype=ids.dtype, pin_memory=True)
    host.copy_(ids, non_blocking=True)
    is_copied = torch.cuda.Event()
    is_copied.record(torch.cuda.current_stream(ids.device))

    def wait() -> list[int]:
        is_copied.synchronize()
        return host.tolist()

    return wait
