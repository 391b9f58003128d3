"""The scheduler: requests wait here, and one thread answers those that can share a batch together."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from math import ceil
from typing import TypeAlias, cast

from ..conversation import Chunk, Generation, Request
from ..errors import LlvidError, ModelError
from ..inference import LocalModel
from . import MAX_REQUESTS
from .metrics import Metrics
from .responses import RequestError

_log = logging.getLogger(__name__)
_BatchKey: TypeAlias = tuple[Generation, tuple[int, ...], int]
Event: TypeAlias = Chunk | LlvidError
# After a batch, its clients send their next requests at about the same time. The scheduler waits for them for this
# share of the batch's seconds: so batches stay whole, and no request waits for two of them.
_GATHER_SHARE, _MAX_GATHER_SECONDS = 0.5, 0.05


@dataclass(eq=False)
class Ticket:
    """A request that waits or is being answered.

    `deliver` is called from another thread: with each chunk and with an error, or, if not `streamed`, only once.
    """

    request: Request
    deliver: Callable[[Event], None]
    streamed: bool = True
    arrival_time: float = field(default_factory=time.monotonic)
    is_cancelled: bool = False
    has_started: bool = False
    text: str = ""  # so far, of an answer that is not streamed

    def add(self, chunk: Chunk) -> None:
        """Add a chunk of the answer."""
        self.has_started = True
        if self.streamed:
            self.deliver(chunk)
            return
        self.text += chunk.text
        if chunk.finish_reason is not None:
            self.deliver(replace(chunk, text=self.text))

    @property
    def max_new_tokens(self) -> int:
        """The length limit of the answer."""
        return self.request.generation.max_new_tokens

    @property
    def batch_key(self) -> _BatchKey:
        """Requests with the same key may share a batch. A sampled answer would depend on its batch, so it has none."""
        generation = self.request.generation
        own = id(self) if generation.temperature > 0 else 0
        frame_counts = tuple(medium.frame_count for medium in self.request.media)
        return replace(generation, max_new_tokens=1, seed=None), frame_counts, own


class Scheduler:
    """Has a model answer requests: the oldest first, and others that can share its batch.

    `max_requests` bounds the requests between arrival and end, `max_batch` those of a batch. A request whose client
    has disconnected is not started, and not finished.

    A batch runs to its end. If one has run for `long_batch_seconds` while others wait, `second_model`, which shares the
    weights, answers those whose limit is at most `short_tokens`. So a short answer waits at most for these seconds
    and for a batch of short ones, however long the longest answer is. Requests with a higher limit wait for the batch.
    """

    def __init__(
        self,
        model: LocalModel,
        metrics: Metrics,
        max_requests: int = MAX_REQUESTS,
        max_batch: int | None = None,
        *,
        second_model: LocalModel | None = None,
        long_batch_seconds: float = 5.0,
        short_tokens: int = 512,
    ) -> None:
        self._metrics, self._max_requests, self._max_batch = metrics, max_requests, max_batch
        self._long_batch_seconds, self._short_tokens = long_batch_seconds, short_tokens
        self._changed = threading.Condition()
        self._waiting: list[Ticket] = []
        self._active, self._last_seconds, self._last_count = 0, 0.0, 0
        self._batch_start: float | None = None  # of the batch that is running
        self._closed = False
        threading.Thread(target=self._work, args=(model, self._next), name="llvid-answer", daemon=True).start()
        if second_model is not None:
            work = (second_model, self._next_short)
            threading.Thread(target=self._work, args=work, name="llvid-answer-short", daemon=True).start()

    @property
    def waiting(self) -> int:
        """How many requests wait for a batch."""
        with self._changed:
            return len(self._waiting)

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Count a request as active for the block; raises `RequestError` if there are too many, or after `close`."""
        with self._changed:
            if self._closed:
                raise _shutting_down()
            if self._active >= self._max_requests:
                seconds = str(max(1, ceil(self._last_seconds)))
                message = f"{self._active} requests are already waiting"
                raise RequestError(429, message, code="queue_full", headers={"retry-after": seconds})
            self._active += 1
            self._metrics.active.set(self._active)
        try:
            yield
        finally:
            with self._changed:
                self._active -= 1
                self._metrics.active.set(self._active)

    def submit(self, ticket: Ticket) -> None:
        """Queue a request."""
        with self._changed:
            if self._closed:
                raise _shutting_down()
            self._waiting.append(ticket)
            self._changed.notify_all()

    def cancel(self, ticket: Ticket) -> None:
        """Take a request back: it is not started, or not finished."""
        with self._changed:
            ticket.is_cancelled = True
            if ticket in self._waiting:
                self._waiting.remove(ticket)

    def close(self) -> None:
        """Start nothing more: waiting requests get an error, running answers go on."""
        with self._changed:
            self._closed = True
            waiting, self._waiting = self._waiting, []
            self._changed.notify_all()
        for ticket in waiting:
            ticket.deliver(_shutting_down())

    def _work(self, model: LocalModel, next_batch: Callable[[LocalModel], list[Ticket] | None]) -> None:
        while (batch := next_batch(model)) is not None:
            start = time.monotonic()
            for ticket in batch:
                self._metrics.wait_seconds.observe(start - ticket.arrival_time)
            self._metrics.batch_size.observe(len(batch))
            self._answer(model, batch)
            self._last_seconds, self._last_count = time.monotonic() - start, len(batch)

    def _next(self, model: LocalModel) -> list[Ticket] | None:
        """Wait for requests; return the oldest and others for its batch, or None after `close`."""
        with self._changed:
            self._batch_start = None
            until = time.monotonic() + min(_GATHER_SHARE * self._last_seconds, _MAX_GATHER_SECONDS)
            while not self._closed and len(self._waiting) < self._last_count and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)
            while not self._waiting and not self._closed:
                self._changed.wait()
            if self._closed:
                return None
            self._batch_start = time.monotonic()
            batch = self._pop_batch(self._waiting)
            self._changed.notify_all()
        return self._limit(model, batch)

    def _next_short(self, model: LocalModel) -> list[Ticket] | None:
        """Wait until a batch runs long while short requests wait; return the oldest of these and others like it."""
        with self._changed:
            while not self._closed:
                short = [ticket for ticket in self._waiting if ticket.max_new_tokens <= self._short_tokens]
                start = self._batch_start
                left = None if start is None else start + self._long_batch_seconds - time.monotonic()
                if short and left is not None and left <= 0:
                    batch = self._pop_batch(short)
                    break
                self._changed.wait(left if short and left is not None else None)
            else:
                return None
        return self._limit(model, batch)

    def _pop_batch(self, tickets: Sequence[Ticket]) -> list[Ticket]:
        """Take the first ticket, and those with its batch key, out of the queue."""
        key = tickets[0].batch_key
        batch = [ticket for ticket in tickets if ticket.batch_key == key]
        ids = set(map(id, batch))
        self._waiting = [ticket for ticket in self._waiting if id(ticket) not in ids]
        return batch

    def _limit(self, model: LocalModel, batch: list[Ticket]) -> list[Ticket]:
        """Return the first tickets of a batch, as many as fit the memory; put the others back at the queue's head."""
        fits = 1
        if len(batch) > 1:
            longest = max(batch, key=lambda ticket: ticket.max_new_tokens)
            with suppress(LlvidError):  # the answer will have the same error
                fits = model.fits(longest.request)
        fits = max(1, min(fits, self._max_batch or fits))
        with self._changed:
            self._waiting[:0] = [ticket for ticket in batch[fits:] if not ticket.is_cancelled]
            self._changed.notify_all()
        return [ticket for ticket in batch[:fits] if not ticket.is_cancelled]

    def _answer(self, model: LocalModel, batch: Sequence[Ticket]) -> None:
        """Answer a batch; if it fails, answer it in halves. A request that fails alone gets the error."""
        if not batch:
            return
        try:
            self._run(model, batch)
        except ModelError as error:
            if len(batch) > 1:
                rest = [ticket for ticket in batch if not ticket.has_started]
                self._answer(model, rest[: len(rest) // 2])
                self._answer(model, rest[len(rest) // 2 :])
                batch = [ticket for ticket in batch if ticket.has_started]
            _deliver(batch, error)
        except LlvidError as error:
            _deliver(batch, error)
        except Exception:  # noqa: BLE001 - the thread must not end
            _log.exception("an answer failed")  # a bug: the log has its traceback, and the server goes on
            _deliver(batch, LlvidError("internal server error"))

    def _run(self, model: LocalModel, batch: Sequence[Ticket]) -> None:
        requests = [ticket.request for ticket in batch]
        if len(batch) == 1:  # `stream` also reuses a prefix that only a part of the last prompt shares
            chunks: Iterator[tuple[int, Chunk]] = ((0, chunk) for chunk in model.stream(requests[0]))
        else:
            chunks = model.stream_all(requests, lambda index: batch[index].is_cancelled)
        with closing(cast("Generator[tuple[int, Chunk], None, None]", chunks)):
            for index, chunk in chunks:
                ticket = batch[index]
                if not ticket.is_cancelled:
                    ticket.add(chunk)
                elif all(each.is_cancelled for each in batch):
                    return


def _deliver(batch: Sequence[Ticket], error: LlvidError) -> None:
    for ticket in batch:
        if not ticket.is_cancelled:
            ticket.deliver(error)


def _shutting_down() -> RequestError:
    return RequestError(503, "the server is shutting down", headers={"retry-after": "5"})
