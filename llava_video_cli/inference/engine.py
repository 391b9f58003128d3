"""One thread that has the device: rows join and leave between two steps.

A request waits, is prefilled (by chunks while the answers of others are being read), has a slot of the KV cache as long
as it runs, and leaves. A second thread prepares prompts, a third one writes text, so that no step waits for these.
"""

from __future__ import annotations

import atexit
import logging
import math
import queue
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

from ..conversation import FinishReason
from . import device_memory as memory
from .choices import log_probabilities
from .decode_step import Decoder, Inputs, InputSource, PromptBatch
from .prefix_cache import PrefixCache, Prompt
from .row import Row
from .sampler import sample
from .speed import choose_threads

_log = logging.getLogger(__name__)
# The most rows at a time, and the most tokens of prompts together: on a CPU, more gain little, or nothing.
_MOST_ROWS, _MOST_ROWS_ELSEWHERE = {"cpu": 48}, 256
_TOGETHER_TOKENS, _TOGETHER_TOKENS_ELSEWHERE = {"cpu": 2048}, 8192
# The room of slots grows in steps of this.
_ROOM_TOKENS = 256
# The tokens of a prefill while answers are read, which must not stall.
_CHUNK_TOKENS = 512
# How far the lengths of prompts that are computed together may differ: a forward costs more than so much padding.
_MOST_PADDING_TOKENS = 32
# After this time of the oldest answer under way, no others join: what is under way is lost if a run is killed.
_RUN_SECONDS = 60.0
_EXIT_SECONDS = 10.0  # for a step or a prefill under way at exit
_GROWTH = 1.03  # with each answer, of the bound that is lowered after an error
# New tokens of a row, why its answer ends or the error that ends it, if it does, and when they came.
_NewTokens: TypeAlias = "tuple[Row, Sequence[int], FinishReason | Exception | None, float]"


@dataclass(eq=False)
class _Prefill:
    """Rows whose prompts are being computed, from `done` of the new tokens on; `cache` is transformers' own.

    `sources` are the held prompts that have the first `cached` tokens of each, if any.
    """

    rows: list[Row] = field(default_factory=list)
    sources: list[Prompt | None] = field(default_factory=list)
    cached: list[int] = field(default_factory=list)
    batch: PromptBatch = field(init=False)
    inputs: Inputs = field(init=False)
    cache: Any = None
    done: int = 0


class Engine:
    """The rows of a model, and the threads that take them on; they begin with the first request.

    `slots` is how many slots the cache has at least: what earlier requests left in them serves prompts that begin with
    the same, if `prefix_reuse`. `told` returns what a request's sender is told of an error. `close` ends the threads.
    """

    def __init__(
        self,
        decoder: Decoder,
        vision: InputSource,
        stop_ids: Sequence[int],
        answer_bytes: Callable[[int], int],
        told: Callable[[Row, Exception], Exception],
        prefix_reuse: bool = True,
        slots: int = 1,
    ) -> None:
        self._decoder, self._vision, self._answer_bytes, self._told = decoder, vision, answer_bytes, told
        self._stop_ids, self._least_slots = frozenset(stop_ids), slots
        self._prefix_reuse = prefix_reuse and decoder.slots.is_plain
        self.most_rows = _MOST_ROWS.get(decoder.device.type, _MOST_ROWS_ELSEWHERE)
        self._together_tokens = _TOGETHER_TOKENS.get(decoder.device.type, _TOGETHER_TOKENS_ELSEWHERE)
        self._asked: queue.SimpleQueue[Row | None] = queue.SimpleQueue()
        self._new: queue.SimpleQueue[Row | None] = queue.SimpleQueue()
        self._written: queue.SimpleQueue[list[_NewTokens] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._asked_count = self._new_count = 0  # of what was put there, and taken from here
        self._waiting: deque[Row] = deque()
        self._running: list[Row] = []  # the row of slot n is number n
        self._prefill: _Prefill | None = None
        self._unread: list[tuple[list[Row], Callable[[], list[int]]]] = []  # tokens that are on their way to the host
        self._prefixes = PrefixCache()
        self._most_tokens = math.inf  # of all slots that rows have: less after an error
        self._may_send = True  # pixels ahead: no more once memory has run out

    @property
    def cached_bytes(self) -> int:
        """The size of the KV cache, which stays allocated."""
        return self._decoder.slots.allocated_bytes

    def submit(self, row: Row) -> None:
        """Queue a request. Raises `RuntimeError` if no thread can be started."""
        with self._lock:
            works = {"text": self._write, "engine": self._work, "prepare": self._prepare}
            for name in list(works)[len(self._threads) :]:
                thread = threading.Thread(target=works[name], name=f"llvid-{name}", daemon=True)
                thread.start()
                self._threads.append(thread)
                _threads.add(thread)
            _with_threads.add(self)
            self._asked_count += 1
        self._asked.put(row)

    def close(self) -> None:
        """End the threads, when they have nothing left to do."""
        self._asked.put(None)

    def leave(self) -> None:
        """End the threads after what each is doing now."""
        for line in (self._asked, self._new, self._written):
            line.put(None)

    def _prepare(self) -> None:
        while (row := self._asked.get()) is not None:
            try:
                row.prepare(row)
                if self._prefix_reuse:
                    row.prompt.media_key  # noqa: B018 - frames are hashed here, so that no step waits for it
                if self._may_send and not self._prefixes.has_media(row.prompt):
                    row.sent = self._vision.send(span.medium for span in row.prompt.spans)
            except Exception as error:  # noqa: BLE001 - who asked gets it, whatever it is
                self._fail(row, error)
            self._new.put(row)
            del row
        self._new.put(None)

    @torch.inference_mode()
    def _work(self) -> None:
        choose_threads(self._decoder.model)
        failure: Exception | None = None
        while self._take_new():
            try:
                self._turn()
            except Exception as error:  # noqa: BLE001 - those who asked get it, whatever it is
                failure = error
            if failure is not None:  # outside the handler: the error holds the frames, and so the tensors
                self._recover(failure)
                failure = None  # its traceback holds this frame
        for row in (*self._waiting, *self._running):
            row.has_left.set()  # somebody may yet let go of its stream
        self._written.put(None)

    def _take_new(self) -> bool:
        """Queue what has come; wait for it if there is nothing else to do. Returns false at the end.

        Prompts cost less together: where nobody reads along, those that are being prepared are awaited.
        """
        while True:
            are_coming = self._new_count < self._asked_count and len(self._waiting) < self.most_rows
            may_wait = not self._waiting or (are_coming and not self._is_read())
            try:
                row = self._new.get(block=may_wait and not self._running and not self._prefill)
            except queue.Empty:
                return True
            if row is None:
                return False
            self._new_count += 1
            row.sent = row.sent if self._may_send else {}
            if not row.has_left.is_set():
                self._waiting.append(row)

    def _is_read(self) -> bool:
        """Whether somebody reads along with an answer, who should not wait for others."""
        return any(row.reads_each for row in (*self._waiting, *self._running))

    def _turn(self) -> None:
        for row in [row for row in self._waiting if row.is_cancelled]:
            self._waiting.remove(row)
            row.has_left.set()
        for row in [row for row in self._running if row.is_cancelled or row.text.is_stopped]:
            self._leave(row)
        while self._prefill or (self._waiting and self._begin_prefill()):
            self._advance_prefill()
            if any(row.reads_each for row in self._running):
                break
        # which token comes next may hang on the last one
        runs_ahead = self._decoder.runs_ahead and not any(row.sampler.constraint for row in self._running)
        if not runs_ahead:
            self._read()
        has_more = any(row.sampled < row.limit for row in self._running)
        if has_more:
            self._step()
        self._read(left=int(has_more and runs_ahead))
        if not self._running:
            self._unread.clear()  # rows hold the model, which would keep this thread

    def _write(self) -> None:
        while (rows := self._written.get()) is not None:
            for each in rows:
                self._write_one(*each)
            del rows, each  # or the last one would be kept until the next comes

    def _write_one(self, row: Row, ids: Sequence[int], end: FinishReason | Exception | None, at: float) -> None:
        """Turn new tokens of a row into text, or deliver its error."""
        if row.is_cancelled:
            return
        try:
            event = self._told(row, end) if isinstance(end, Exception) else row.written_out(ids, end, at)
        except Exception as error:  # noqa: BLE001 - a tokenizer's, perhaps
            event = error
        if isinstance(event, Exception):
            row.cancel()
        try:
            if event is not None:
                row.deliver(event)
        except Exception:  # noqa: BLE001 - of who asked: the others' answers go on
            row.cancel()
            _log.exception("an answer could not be delivered")

    # Letting rows in

    def _begin_prefill(self) -> bool:
        """Take the oldest rows that wait and go together, as many as there is room for; false if they have to wait."""
        places = self.most_rows - len(self._running)
        if not places:
            return False
        is_read = self._is_read()
        if self._running and not is_read:
            oldest_seconds = time.perf_counter() - min(row.joined_at for row in self._running)
            # a short prompt costs nearly as much as several
            if places < self.most_rows // 4 or oldest_seconds > _RUN_SECONDS:
                return False
        most_tokens = _CHUNK_TOKENS if is_read and self._running else self._together_tokens
        prefill = _Prefill()
        rows, longest = prefill.rows, 0
        for row in self._waiting:
            if len(rows) >= places or (len(rows) + 1) * longest > most_tokens:
                break
            # the cost of one of many answers should not depend on which video came before
            source, cached = self._prefixes.best(row.prompt, same_media=row.prompt.is_whole or not row.in_pieces)
            if rows and not self._goes_with(prefill, row, cached, most_tokens):
                continue
            if self._size([*rows, row]) is None:
                break
            prefill.cached.append(cached)
            prefill.sources.append(source)
            rows.append(row)
            longest = max(longest, len(row.prompt.ids) - cached)
        for row in rows:
            self._waiting.remove(row)
        self._prefill = prefill if rows else None
        return bool(rows)

    def _goes_with(self, prefill: _Prefill, row: Row, cached: int, most_tokens: int) -> bool:
        """Whether a row is computed together with others, so many tokens with the padding at most."""
        rows = list(zip((*prefill.rows, row), (*prefill.cached, cached), strict=True))
        new = [len(each.prompt.ids) - start for each, start in rows]
        is_even = len({start for _, start in rows}) == 1
        is_whole = any(each.prompt.is_whole and each.prompt.media_end > start for each, start in rows)
        waits = self._prefix_reuse and row.prompt.media_end > cached  # if others compute the same media
        if is_whole or (waits and any(other.prompt.key.startswith(row.prompt.media_key) for other in prefill.rows)):
            return False
        is_alike = is_even and len({*new}) == 1
        may_differ = self._decoder.slots.is_plain and not any(each.choices for each, _ in rows)
        if not (is_alike or (may_differ and (is_even or self._decoder.takes_masks))):
            return False
        return max(new) - min(new) <= _MOST_PADDING_TOKENS and len(new) * max(new) <= most_tokens

    def _size(self, rows: Sequence[Row]) -> tuple[int, int] | None:
        """Return the slots and their room for these rows beside those that run; None if memory does not suffice.

        One row alone always gets what it takes.
        """
        slots, everyone = self._decoder.slots, (*self._running, *rows)
        is_alone = len(everyone) == 1
        needed, room = self._decoder.size(len(everyone), max(row.room for row in everyone))
        if needed * room > self._most_tokens and not is_alone:
            return None
        if needed <= slots.slots and room <= slots.room:
            return slots.slots, slots.room
        free = memory.free_bytes(self._decoder.device) + self.cached_bytes
        # each growth copies everything
        grown = min(2 * slots.slots, self.most_rows) if needed > slots.slots else slots.slots
        wanted = max(needed, self._least_slots, grown)
        for tokens in (max(-(-room // _ROOM_TOKENS) * _ROOM_TOKENS, slots.room), room):
            fit = int(min(wanted, free // self._answer_bytes(tokens)))
            if fit >= needed:
                return fit, tokens
        return (needed, room) if is_alone else None

    def _advance_prefill(self) -> None:
        """Compute a part of the prompts, all of them if nobody reads an answer under way; then the rows join."""
        prefill = self._prefill
        assert prefill is not None
        for row in [row for row in prefill.rows if row.is_cancelled]:
            row.has_left.set()
        if all(row.is_cancelled for row in prefill.rows):
            self._prefill = None
            return
        if prefill.cache is None:
            self._begin(prefill)
        end = tokens = max(prefill.batch.new)
        if len(prefill.rows) == 1 and any(row.reads_each for row in self._running):
            end = max(min(tokens, prefill.done + _CHUNK_TOKENS), prefill.inputs.together)
        logits = prefill.inputs.compute(prefill.done, end, prefill.cache)
        prefill.done = end
        if end == tokens:
            self._score(prefill, logits)
            first = len(self._running)
            self._prefill = None
            self._running += prefill.rows
            for number in range(len(prefill.rows)):
                self._join(prefill, number, first + number)
            self._note_peak()
            self._sample(prefill.rows, logits, first)

    def _begin(self, prefill: _Prefill) -> None:
        """Allocate slots, begin the prefill's cache, and encode what its prompts hold."""
        slots, rows = self._decoder.slots, prefill.rows
        size = self._size(rows)
        assert size is not None
        if size != (slots.slots, slots.room):
            self._prefixes.keep_within(*size)
            self._decoder.reserve(*size)
        sources = list(map(self._prefixes.slot_of, prefill.sources))
        if any(cached and slot is None for cached, slot in zip(prefill.cached, sources, strict=True)):
            self._waiting.extendleft(reversed(rows[1:]))  # without what was lost, they may not go together
            del rows[1:], sources[1:], prefill.sources[1:], prefill.cached[1:]
            prefill.cached[0] = 0 if sources[0] is None else prefill.cached[0]
        prefill.cache = slots.prefix(sources, prefill.cached, self._decoder.model.config)
        sent = {medium: pixels for row in rows for medium, pixels in row.sent.items()}
        for row in rows:
            row.sent = {}
        prompts = [row.prompt for row in rows]
        prefill.batch = self._decoder.batch(prompts, prefill.cached)
        prefill.inputs = self._vision.inputs(self._decoder, prompts, prefill.batch, sent)

    def _join(self, prefill: _Prefill, number: int, slot: int) -> None:
        """Give a row that is prefilled its slot; what that holds is moved to the one that is missed least."""
        slots, row, cached = self._decoder.slots, prefill.rows[number], prefill.cached[number]
        source = self._prefixes.slot_of(prefill.sources[number])
        free = self._prefixes.oldest(range(slot, slots.slots))
        if source is not None and source >= slot and 2 * cached >= len(self._prefixes[source].ids):
            free = source  # the prompt continues most of what stands there
        if free != slot and slot in self._prefixes:
            slots.copy(slot, free, len(self._prefixes[slot].ids))
            self._prefixes.exchange(slot, free)
        length = len(row.prompt.ids)
        begin, padding = cached if source == slot == free else 0, max(prefill.batch.new) - prefill.batch.new[number]
        slots.fill(slot, prefill.cache, number, length, begin, padding)
        slots.shifts[slot] = row.prompt.shift
        self._prefixes.pop(slot, None)
        if self._prefix_reuse:
            self._prefixes[slot] = row.prompt
        row.cached_tokens = cached if not row.ids else row.cached_tokens
        row.joined_at = time.perf_counter()

    def _score(self, prefill: _Prefill, logits: torch.Tensor) -> None:
        """Compute how likely the choices of the prefill's rows are."""
        choices = [row.choices for row in prefill.rows]
        if any(choices):
            length, new = len(prefill.rows[0].prompt.ids), prefill.batch.new[0]
            positions, ends = prefill.batch.starts + new, tuple(self._stop_ids)
            found = log_probabilities(self._decoder, prefill.cache, length, logits, choices, ends, positions)
            for row, logprobs in zip(prefill.rows, found, strict=True):
                row.logprobs = memory.copy_to_host(logprobs) if row.choices else None

    # Taking rows on

    def _step(self) -> None:
        """Do a decode step of all rows."""
        rows = list(self._running)
        longest = max(row.length for row in rows) + 1
        are_alike = all(row.length + 1 == longest for row in rows)
        self._sample(rows, self._decoder.advance(len(rows), longest, are_alike=are_alike), 0)

    def _sample(self, rows: list[Row], logits: torch.Tensor, first: int) -> None:
        """Pick the next tokens of rows, from the slot `first` on, and begin to copy them to the host."""
        new_ids, checked_ids = sample(logits, [row.sampler for row in rows])
        self._decoder.slots.last_ids[first : first + len(rows)] = new_ids
        for row in rows:
            row.sampled += 1
        self._unread.append((rows, memory.copy_to_host(checked_ids)))

    def _read(self, left: int = 0) -> None:
        """Wait for tokens and pass them on to be written, until so many steps are left; rows that end leave."""
        while len(self._unread) > left:
            rows, wait = self._unread.pop(0)
            ids, now = wait(), time.perf_counter()
            written: list[_NewTokens] = []
            for row, new_id in zip(rows, ids, strict=True):
                if row.has_left.is_set() or row.is_cancelled:
                    continue
                row.first_at = row.first_at or now
                end = row.take(new_id, self._stop_ids)
                if end is not None or row.reads_each:
                    written.append((row, (new_id,) if row.reads_each else row.ids, end, now))
            ended = [row for row, _, end, _ in written if end is not None]
            if ended:
                self._note_peak()
            if written:
                self._written.put(written)
            for row in sorted(ended, key=self._running.index, reverse=True):  # the last ones leave without a move
                self._leave(row)

    # Letting rows out

    def _leave(self, row: Row) -> None:
        """End a row: the last one takes its slot; what the slot holds serves later prompts, if it is sound."""
        row.has_left.set()
        self._most_tokens *= _GROWTH
        slots, slot, last = self._decoder.slots, self._running.index(row), len(self._running) - 1
        if not row.is_sound:
            self._prefixes.pop(slot, None)
            slots.clear(slot)  # a mask would not hide a NaN from the next row
        elif slot in self._prefixes:
            self._prefixes[slot] = row.prompt.extended(row.ids[row.in_prompt : -1])
        if slot != last:
            longest = max(row.length, self._running[last].length) + 1
            slots.copy(last, slot, min(longest, slots.room), swap=slot in self._prefixes)
            self._prefixes.exchange(slot, last)
            self._running[slot] = self._running[last]
        self._running.pop()

    def _fail(self, row: Row, error: Exception) -> None:
        row.has_left.set()
        self._written.put([(row, (), error, 0.0)])

    def _note_peak(self) -> None:
        """Count the peak of the memory since the last time for all rows that are here."""
        peak_bytes = memory.peak_bytes(self._decoder.device)
        for row in (*self._running, *(self._prefill.rows if self._prefill else ())):
            row.peak_bytes = max(row.peak_bytes, peak_bytes)
        memory.reset_peak(self._decoder.device)

    def _recover(self, error: Exception) -> None:
        """After an error, put back the rows that were computed, and let fewer in; a row that fails alone ends with it.

        Rows that ran beside a prefill go on. Nothing here needs the device: it may be of no more use.
        """
        slots, is_memory = self._decoder.slots, memory.is_out_of_memory(error)
        prefill, self._prefill = self._prefill, None
        rows = prefill.rows if prefill else []
        everyone = [*self._running, *rows]
        is_alone = len(everyone) == 1
        if not prefill or not slots.slots or (is_memory and not self._running):
            rows = everyone  # what the slots hold may be incomplete, or takes the memory
            self._running.clear()
            self._unread.clear()
            self._prefixes.clear()
            self._decoder.reserve(0, 0)
        rows = [row for row in rows if not row.has_left.is_set()]
        if not is_alone:
            self._most_tokens = len(everyone) * max(row.room for row in everyone) // 2
        if len(rows) == 1 and (not is_memory or (is_alone and rows[0].was_alone)):
            self._fail(rows.pop(), error)
        for row in reversed(rows):
            row.was_alone = is_alone  # then without what others have left in the slots
            try:
                row.put_back()
                self._waiting.appendleft(row)
            except Exception as lost:  # noqa: BLE001 - its sampler can't be reached on the device
                self._fail(row, lost)
        if is_memory:
            self._may_send, error.__traceback__ = False, None
            for row in self._waiting:
                row.sent = {}
            memory.give_back(self._decoder.device)


_with_threads: weakref.WeakSet[Engine] = weakref.WeakSet()
# The last threads of a model that is gone free its weights.
_threads: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


@atexit.register
def _leave() -> None:
    """End all threads: one that came back from torch while the interpreter ends would abort the process."""
    deadline = time.monotonic() + _EXIT_SECONDS
    for engine in list(_with_threads):
        engine.leave()
    for thread in list(_threads):
        thread.join(max(0.0, deadline - time.monotonic()))
