"""The scheduler: how many requests may come, how many the model gets at a time, and in which order."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from math import ceil
from typing import TypeAlias

from ..conversation import Chunk, Request, TokenLogprob
from ..errors import LlvidError
from ..model import Event as ModelEvent
from ..model import Model
from . import MAX_REQUESTS
from .metrics import Metrics
from .responses import RequestError

_log = logging.getLogger(__name__)
Event: TypeAlias = Chunk | LlvidError


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
    stop: Callable[[], None] = lambda: None
    text: str = ""  # so far, of an answer that is not streamed
    logprobs: tuple[TokenLogprob, ...] = ()  # the same

    def add(self, chunk: Chunk) -> None:
        """Add a chunk of the answer."""
        if self.streamed:
            self.deliver(chunk)
            return
        self.text += chunk.text
        self.logprobs += chunk.logprobs
        if chunk.finish_reason is not None:
            self.deliver(replace(chunk, text=self.text, logprobs=self.logprobs))


class Scheduler:
    """Gives a model requests, the oldest first, as many at a time as it answers together.

    `max_requests` bounds the requests between arrival and end, `max_batch` those that are answered at a time. A request
    whose client has disconnected is not started, and not finished.
    """

    def __init__(
        self, model: Model, metrics: Metrics, max_requests: int = MAX_REQUESTS, max_batch: int | None = None
    ) -> None:
        self._model, self._metrics, self._max_requests, self._max_batch = model, metrics, max_requests, max_batch
        self._lock = threading.Lock()
        self._waiting: deque[Ticket] = deque()
        self._running: set[Ticket] = set()
        self._active, self._last_seconds = 0, 0.0
        self._closed = False

    @property
    def waiting(self) -> int:
        """How many requests wait."""
        with self._lock:
            return len(self._waiting)

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Count a request as active for the block; raises `RequestError` if there are too many, or after `close`."""
        with self._lock:
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
            with self._lock:
                self._active -= 1
                self._metrics.active.set(self._active)

    def submit(self, ticket: Ticket) -> None:
        """Queue a request."""
        with self._lock:
            if self._closed:
                raise _shutting_down()
            self._waiting.append(ticket)
        self._begin()

    def cancel(self, ticket: Ticket) -> None:
        """Take a request back: it is not started, or not finished."""
        with self._lock:
            ticket.is_cancelled = True
            if ticket in self._waiting:
                self._waiting.remove(ticket)
        ticket.stop()
        self._end(ticket)

    def close(self) -> None:
        """Start nothing more: waiting requests get an error, running answers go on."""
        with self._lock:
            self._closed = True
            waiting, self._waiting = self._waiting, deque()
        for ticket in waiting:
            ticket.deliver(_shutting_down())

    def _begin(self) -> None:
        """Give the model what waits, as far as it has places."""
        while True:
            with self._lock:
                if not self._waiting or len(self._running) >= (self._max_batch or self._model.at_a_time):
                    return
                ticket = self._waiting.popleft()
                self._running.add(ticket)
                self._metrics.wait_seconds.observe(time.monotonic() - ticket.arrival_time)
                self._metrics.batch_size.observe(len(self._running))
            ticket.stop = self._model.submit(ticket.request, partial(self._deliver, ticket))
            if ticket.is_cancelled:
                ticket.stop()

    def _end(self, ticket: Ticket) -> None:
        with self._lock:
            if ticket not in self._running:
                return
            self._running.remove(ticket)
            self._last_seconds = time.monotonic() - ticket.arrival_time
        self._begin()

    def _deliver(self, ticket: Ticket, event: ModelEvent) -> None:
        if isinstance(event, Exception) or event.finish_reason is not None:
            self._end(ticket)
        if ticket.is_cancelled:
            return
        if isinstance(event, Chunk):
            ticket.add(event)
        elif isinstance(event, LlvidError):
            ticket.deliver(event)
        else:  # a bug: the log has its traceback, and the server goes on
            _log.error("an answer failed", exc_info=event)
            ticket.deliver(LlvidError("internal server error"))


def _shutting_down() -> RequestError:
    return RequestError(503, "the server is shutting down", headers={"retry-after": "5"})
