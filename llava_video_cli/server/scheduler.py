"""The one who answers: requests wait here, and those of a kind are answered together by one thread."""

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
from ..model import Model
from ..video.image import Picture
from .metrics import Metrics
from .responses import RefusedError

_log = logging.getLogger(__name__)
_Kind: TypeAlias = tuple[Generation, tuple[int, ...], int]
Event: TypeAlias = Chunk | LlvidError
# After a batch its clients come back at about the same time: what share of its seconds they are waited for. Batches so
# stay whole, and nobody waits for two of them.
_GATHER_SHARE, _LONGEST_GATHER_SECONDS = 0.5, 0.05


@dataclass(eq=False)
class Ticket:
    """A request that waits or is being answered.

    `deliver` is called with what comes of it, from another thread: with each piece, or, without `in_pieces`, once.
    """

    request: Request
    deliver: Callable[[Event], None]
    in_pieces: bool = True
    arrived: float = field(default_factory=time.monotonic)
    gone: bool = False
    begun: bool = False
    held: str = ""  # of an answer that is delivered at once

    def take(self, chunk: Chunk) -> None:
        """Take a piece of the answer."""
        self.begun = True
        if self.in_pieces:
            self.deliver(chunk)
            return
        self.held += chunk.text
        if chunk.finish_reason is not None:
            self.deliver(replace(chunk, text=self.held))

    @property
    def most_tokens(self) -> int:
        """The longest answer that is allowed."""
        return self.request.generation.max_new_tokens

    @property
    def kind(self) -> _Kind:
        """What those have in common that may be answered together: a drawn answer would depend on its batch."""
        generation = self.request.generation
        drawn = id(self) if generation.temperature > 0 else 0
        sizes = tuple(0 if isinstance(medium, Picture) else len(medium.images) for medium in self.request.media)
        return replace(generation, max_new_tokens=1, seed=None), sizes, drawn


class Desk:
    """Answers with a model, the oldest request first, and others of its kind with it.

    `most_inside` bounds the requests that are anywhere between their arrival and their end, `most_together` those of a
    batch. What nobody waits for any more is not answered, and not answered further.

    A batch runs to its end. When one has run for `turn_seconds` and others wait, `express`, another model of the same
    weights, answers those of them that allow at most `short_tokens`: so however long the longest answer is, a short
    one waits no longer than that and a batch of short ones. Who allows more waits for the batch that runs.
    """

    def __init__(
        self,
        model: Model,
        metrics: Metrics,
        most_inside: int = 256,
        most_together: int | None = None,
        *,
        express: Model | None = None,
        turn_seconds: float = 5.0,
        short_tokens: int = 512,
    ) -> None:
        self._metrics, self._most_inside, self._most_together = metrics, most_inside, most_together
        self._turn_seconds, self._short_tokens = turn_seconds, short_tokens
        self._changed = threading.Condition()
        self._waiting: list[Ticket] = []
        self._inside, self._last_seconds, self._last_count = 0, 0.0, 0
        self._begun: float | None = None  # when the batch began that runs
        self._closed = False
        threading.Thread(target=self._work, args=(model, self._next), name="llvid-answer", daemon=True).start()
        if express is not None:
            work = (express, self._next_short)
            threading.Thread(target=self._work, args=work, name="llvid-answer-short", daemon=True).start()

    @property
    def waiting(self) -> int:
        """How many requests wait for their turn."""
        with self._changed:
            return len(self._waiting)

    @contextmanager
    def place(self) -> Iterator[None]:
        """Take a place in the house; raises `RefusedError` where all are taken, or nothing more is begun."""
        with self._changed:
            if self._closed:
                raise RefusedError(503, "the server is shutting down", headers={"retry-after": "5"})
            if self._inside >= self._most_inside:
                seconds = str(max(1, ceil(self._last_seconds)))
                message = f"{self._inside} requests wait already"
                raise RefusedError(429, message, code="queue_full", headers={"retry-after": seconds})
            self._inside += 1
            self._metrics.inside.set(self._inside)
        try:
            yield
        finally:
            with self._changed:
                self._inside -= 1
                self._metrics.inside.set(self._inside)

    def ask(self, ticket: Ticket) -> None:
        """Queue a request."""
        with self._changed:
            if self._closed:
                raise RefusedError(503, "the server is shutting down", headers={"retry-after": "5"})
            self._waiting.append(ticket)
            self._changed.notify_all()

    def leave(self, ticket: Ticket) -> None:
        """Give a request up."""
        with self._changed:
            ticket.gone = True
            if ticket in self._waiting:
                self._waiting.remove(ticket)

    def close(self) -> None:
        """Begin nothing more: those that wait are refused, those being answered are not."""
        with self._changed:
            self._closed = True
            waiting, self._waiting = self._waiting, []
            self._changed.notify_all()
        for ticket in waiting:
            ticket.deliver(RefusedError(503, "the server is shutting down", headers={"retry-after": "5"}))

    def _work(self, model: Model, next_batch: Callable[[Model], list[Ticket] | None]) -> None:
        while (batch := next_batch(model)) is not None:
            began = time.monotonic()
            for ticket in batch:
                self._metrics.wait_seconds.observe(began - ticket.arrived)
            self._metrics.batch_size.observe(len(batch))
            self._answer(model, batch)
            self._last_seconds, self._last_count = time.monotonic() - began, len(batch)

    def _next(self, model: Model) -> list[Ticket] | None:
        """Wait for requests; return the oldest and others of its kind, or None once closed."""
        with self._changed:
            self._begun = None
            until = time.monotonic() + min(_GATHER_SHARE * self._last_seconds, _LONGEST_GATHER_SECONDS)
            while not self._closed and len(self._waiting) < self._last_count and (left := until - time.monotonic()) > 0:
                self._changed.wait(left)
            while not self._waiting and not self._closed:
                self._changed.wait()
            if self._closed:
                return None
            self._begun = time.monotonic()
            batch = self._taken(self._waiting)
            self._changed.notify_all()
        return self._as_many_as_fit(model, batch)

    def _next_short(self, model: Model) -> list[Ticket] | None:
        """Wait until a batch takes long and short ones wait; return the oldest of these and others of its kind."""
        with self._changed:
            while not self._closed:
                short = [ticket for ticket in self._waiting if ticket.most_tokens <= self._short_tokens]
                left = None if self._begun is None else self._begun + self._turn_seconds - time.monotonic()
                if short and left is not None and left <= 0:
                    batch = self._taken(short)
                    break
                self._changed.wait(left if short and left is not None else None)
            else:
                return None
        return self._as_many_as_fit(model, batch)

    def _taken(self, tickets: Sequence[Ticket]) -> list[Ticket]:
        """Take the first of those who wait, and others of its kind."""
        batch = [ticket for ticket in tickets if ticket.kind == tickets[0].kind]
        taken = set(map(id, batch))
        self._waiting = [ticket for ticket in self._waiting if id(ticket) not in taken]
        return batch

    def _as_many_as_fit(self, model: Model, batch: list[Ticket]) -> list[Ticket]:
        """Return the first of a batch; the others wait again, before those who came later."""
        fits = 1
        if len(batch) > 1:
            longest = max(batch, key=lambda ticket: ticket.most_tokens)
            with suppress(LlvidError):  # answering will say what is wrong with it
                fits = model.fits(longest.request)
        fits = max(1, min(fits, self._most_together or fits))
        with self._changed:
            self._waiting[:0] = [ticket for ticket in batch[fits:] if not ticket.gone]
            self._changed.notify_all()
        return [ticket for ticket in batch[:fits] if not ticket.gone]

    def _answer(self, model: Model, batch: Sequence[Ticket]) -> None:
        """Answer together, and in halves where that fails; a single one is told what went wrong."""
        if not batch:
            return
        try:
            self._run(model, batch)
        except ModelError as error:
            if len(batch) > 1:
                left = [ticket for ticket in batch if not ticket.begun]
                self._answer(model, left[: len(left) // 2])
                self._answer(model, left[len(left) // 2 :])
                batch = [ticket for ticket in batch if ticket.begun]
            _tell(batch, error)
        except LlvidError as error:
            _tell(batch, error)
        except Exception:  # noqa: BLE001 - the thread must not end
            _log.exception("an answer failed")  # a bug: it keeps its traceback, and the server goes on
            _tell(batch, LlvidError("an error inside the server"))

    def _run(self, model: Model, batch: Sequence[Ticket]) -> None:
        requests = [ticket.request for ticket in batch]
        if len(batch) == 1:  # which may go on from the last prompt also where only its beginning is the same
            chunks = _alone(model, requests[0])
        else:
            chunks = model.stream_all(requests, lambda index: batch[index].gone)
        with closing(cast("Generator[tuple[int, Chunk], None, None]", chunks)):
            for index, chunk in chunks:
                ticket = batch[index]
                if not ticket.gone:
                    ticket.take(chunk)
                elif all(each.gone for each in batch):
                    return


def _alone(model: Model, request: Request) -> Iterator[tuple[int, Chunk]]:
    for chunk in model.stream(request):
        yield 0, chunk


def _tell(batch: Sequence[Ticket], error: LlvidError) -> None:
    for ticket in batch:
        if not ticket.gone:
            ticket.deliver(error)
