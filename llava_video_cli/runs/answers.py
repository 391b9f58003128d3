"""Many videos, one model: read ahead, with as many requests under way as keep it busy."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from operator import itemgetter
from threading import Event

from ..conversation import Answer, Request, join
from ..errors import ModelError
from ..model import Event as ModelEvent
from ..model import Model, results
from ..video import Resize
from ..video.limits import Limits, cores
from .prefetch import Answered, Job, JobEnded, JobRequest, ReadAhead, RequestRead, Result
from .record import Failure, Record

_LAST_WORDS_SECONDS = 2.0  # how long a stopped run waits for readers to say that a job has ended
_READ_AHEAD_BYTES = 2**30
_TOGETHER, _TOGETHER_SECONDS = 16, 0.5  # requests that the model gets at once, and how long the first waits for others


@dataclass
class RunPace:
    """Where the time of a run goes, for its progress: waiting for frames, or generating.

    `most` is how many requests are under way at a time; None for as many as keep the model busy.
    """

    most: int | None = None
    waiting_seconds: float = 0.0
    generating_seconds: float = 0.0


def run(
    jobs: Iterable[Job],
    model: Model,
    *,
    limits: Limits | None = None,
    stop: Event | None = None,
    pace: RunPace | None = None,
    workers: int | None = None,
) -> Generator[Record | Failure, None, None]:
    """Yield what comes of each job, in the order in which they are done.

    With `stop` set, what the model is at is finished and nothing else. `limits` are those of each video; its cores are
    shared out.
    """
    ahead = read_ahead(jobs, model.shrink, limits or Limits(), workers)
    try:
        yield from Answers(ahead, model, stop or Event(), pace or RunPace()).outcomes()
    finally:
        ahead.stop()


def read_ahead(jobs: Iterable[Job], shrink: Resize, limits: Limits, workers: int | None = None) -> ReadAhead:
    """Start to read what the jobs ask about, in as many threads as there are cores; they share the cores out."""
    workers = workers or cores(limits)
    each = replace(limits, cores=max(1, cores(limits) // workers))
    return ReadAhead(jobs, shrink, each, workers, _READ_AHEAD_BYTES)


class Answers:
    """The requests that are under way, and the jobs that are not done; `outcomes` yields what comes of them."""

    def __init__(self, ahead: ReadAhead, model: Model, stop: Event, pace: RunPace) -> None:
        self._ahead, self._model, self._stop, self._pace = ahead, model, stop, pace
        self._read: list[RequestRead] = []  # that the model does not have yet
        self._read_at = 0.0  # when the first of them came
        self._cancels: dict[RequestRead, Callable[[], None]] = {}  # of those that it has
        self._results: dict[int, dict[int, tuple[JobRequest, Result]]] = {}  # by job and place, without the media
        self._ended: dict[int, JobEnded] = {}

    def outcomes(self) -> Iterator[Record | Failure]:
        """Answer until nothing is left."""
        try:
            while self._cancels or not (self._stop.is_set() or (self._ahead.drained and not self._read)):
                if not self._stop.is_set():
                    self._submit()
                self._take(0.2)
                yield from self._finished()
            self._await_ends()
            yield from self._finished()
        finally:
            for cancel in self._cancels.values():
                cancel()

    def _submit(self) -> None:
        most = self._pace.most or self._model.at_a_time
        self._ahead.most_questions = max(self._ahead.most_questions, 2 * most)
        are_few = len(self._read) < min(_TOGETHER, most) and time.monotonic() < self._read_at + _TOGETHER_SECONDS
        if are_few and self._ahead.is_reading:  # prompts cost less together, and on a CPU, readers get what is saved
            return
        while self._read and len(self._cancels) < most:
            ready = self._read.pop(0)
            self._cancels[ready] = self._model.submit(ready.question.request, partial(self._deliver, ready), False)

    def _deliver(self, ready: RequestRead, event: ModelEvent) -> None:
        result = event if isinstance(event, Exception) else join([event])
        self._ahead.post(Answered(ready, result))

    def _take(self, timeout_seconds: float) -> None:
        """Wait for what comes next: a request that was read, the end of a job, or an answer."""
        began, most = time.monotonic(), self._pace.most or self._model.at_a_time
        is_starved = len(self._cancels) <= most // 2 and self._ahead.is_reading
        event = self._ahead.next(timeout_seconds)
        seconds = time.monotonic() - began
        if is_starved:
            self._pace.waiting_seconds += seconds
        else:
            self._pace.generating_seconds += seconds
        if isinstance(event, RequestRead):
            self._read_at = self._read_at if self._read else time.monotonic()
            self._read.append(event)
        elif isinstance(event, JobEnded):
            self._ended[event.number] = event
        elif event is not None:
            self._ahead.release(event.read.question)
            del self._cancels[event.read]
            if not isinstance(event.result, Answer | ModelError):
                raise event.result  # of the whole run, as that of a server that is gone
            results = self._results.setdefault(event.read.number, {})
            results[event.read.place] = event.read.question.without_media, event.result

    def _finished(self) -> Iterator[Record | Failure]:
        for number in [number for number, ended in self._ended.items() if self._is_done(ended)]:
            ended, results = self._ended.pop(number), self._results.pop(number, {})
            yield from ended.job.outcomes([results[place] for place in range(ended.count)], ended.error)

    def _await_ends(self) -> None:
        """Learn which of the jobs that are answered so far have no further questions: readers tell a moment later."""
        self._ahead.begin_no_more()
        until = time.monotonic() + _LAST_WORDS_SECONDS
        unanswered = {ready.number for ready in self._read}
        while self._results.keys() - unanswered - self._ended.keys() and time.monotonic() < until:
            self._take(0.1)
            unanswered |= {ready.number for ready in self._read}

    def _is_done(self, ended: JobEnded) -> bool:
        return len(self._results.get(ended.number, ())) == ended.count


def answered(model: Model, requests: Sequence[Request], most: int | None = None) -> list[Answer | Exception]:
    """Return what comes of each request, with at most `most` under way at a time."""
    return [result for _, result in sorted(results(model.submit, requests, most or model.at_a_time), key=itemgetter(0))]
