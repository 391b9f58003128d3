"""Many videos, one model: read ahead, answered together, each outcome handed on as it comes."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from threading import Event

from ..conversation import Generation
from ..errors import LlvidError, ModelError, OutOfMemoryError
from ..model import Model
from ..video import Resize
from ..video.limits import Limits, cores
from .prefetch import Job, JobEnded, JobRequest, ReadAhead, RequestRead, Result
from .record import Failure, Record

_PATIENCE_SECONDS = 3.0  # how long a batch waits to become whole
_BETTER = 1.05  # times as fast: what makes a batch of twice the size worth it
_MISSES = 2  # sizes in a row that were not better
_SHORTEST_SECONDS = 1.0  # of a batch that teaches something: what else goes on hides what shorter ones take
_LONGEST_SECONDS = 120.0  # of a batch: what it holds is lost if the run is killed
_LAST_WORDS_SECONDS = 2.0  # how long a stopped run waits for readers to say that a job has ended
_READ_AHEAD_BYTES = 2**30


@dataclass
class BatchSize:
    """How many requests are generated together: doubled as long as that pays, halved when memory runs out.

    `fixed` sets the number, and only running out of memory lowers it. `tried` is the size of the last batch.
    """

    fixed: int | None = None
    tried: int = 0
    _size: int = 1
    _most: int | None = None
    _settled: bool = False
    _misses: int = 0
    _rates: dict[int, float] = field(default_factory=dict)  # requests a second, the best seen of each size

    def wanted(self, fits: int) -> int:
        """Return how many to take where the memory that is free has room for `fits`."""
        size = self.fixed or min(self._size, fits)
        return max(1, min(size, self._most or size))

    def learn(self, count: int, seconds: float) -> None:
        """Take note of a batch that went well; one smaller than wanted teaches nothing.

        Times vary where decoding takes the same cores, so one slow batch does not end the search, but two do.
        """
        self.tried = count
        if self._settled or count < self._size:
            return
        if seconds < _SHORTEST_SECONDS:
            self._size = 2 * self._size
            return
        rate = count / seconds
        best = max(self._rates.values(), default=0.0)
        self._rates[count] = max(rate, self._rates.get(count, 0.0))
        self._misses = 0 if rate > _BETTER * best else self._misses + 1
        if self._misses >= _MISSES or seconds > _LONGEST_SECONDS:
            self._settled = True
            self._size = max(self._rates, key=lambda size: self._rates[size])
        else:
            self._size = 2 * self._size

    def too_many(self, count: int) -> None:
        """Take note of a batch that ran out of memory, and whose requests were answered in smaller ones."""
        self._most = max(1, min(count // 2, self._most or count))


@dataclass
class RunPace:
    """Where the time of a run goes, for its progress: waiting for frames, or generating."""

    size: BatchSize = field(default_factory=BatchSize)
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

    Questions of the same kind (as many frames, the same generation) are answered together, the oldest first. A request
    that fails in a batch is tried in smaller ones, and alone at last, so that it takes no other down. With `stop` set,
    what the model is at is finished and nothing else. `limits` are those of each video; its cores are shared out.
    """
    ahead = read_ahead(jobs, model.shrink, limits or Limits(), workers)
    try:
        yield from Batches(ahead, model, stop or Event(), pace or RunPace()).outcomes()
    finally:
        ahead.stop()


def read_ahead(jobs: Iterable[Job], shrink: Resize, limits: Limits, workers: int | None = None) -> ReadAhead:
    """Start to read what the jobs ask about, in as many threads as there are cores; they share the cores out."""
    workers = workers or cores(limits)
    each = replace(limits, cores=max(1, cores(limits) // workers))
    return ReadAhead(jobs, shrink, each, workers, _READ_AHEAD_BYTES)


class Batches:
    """The questions that wait, and the jobs that are not done; `outcomes` yields what comes of them, as `run` does."""

    def __init__(self, ahead: ReadAhead, model: Model, stop: Event, pace: RunPace) -> None:
        self._ahead, self._model, self._stop, self._pace = ahead, model, stop, pace
        self._waiting: list[RequestRead] = []
        self._results: dict[int, list[tuple[JobRequest, Result]]] = {}
        self._ended: dict[int, JobEnded] = {}
        self._fits: tuple[RequestRead | None, int] = (None, 1)

    def outcomes(self) -> Iterator[Record | Failure]:
        """Answer until nothing is left."""
        while not self._stop.is_set():
            batch = self._next_batch()
            if batch:
                self._answer(batch)
            yield from self._finished()
            if not batch and self._ahead.drained and not self._waiting:
                return
        self._await_ends()
        yield from self._finished()

    def _next_batch(self) -> list[RequestRead]:
        """Return the oldest question and others of its kind: as many as wanted, fewer when no more come soon.

        Returns none when a job has ended without a question, so that its outcome is told at once.
        """
        began = time.monotonic()
        try:
            while not self._stop.is_set():
                batch = self._of_one_kind()
                patient = time.monotonic() - began < _PATIENCE_SECONDS
                if batch and (len(batch) >= self._wanted(batch) or not patient or self._ahead.full):
                    return batch[: self._wanted(batch)]
                event = self._ahead.next(0.2)
                if isinstance(event, RequestRead):
                    self._waiting.append(event)
                elif isinstance(event, JobEnded):
                    self._ended[event.number] = event
                    if self._is_done(event):
                        return []
                elif self._ahead.drained:
                    return batch[: self._wanted(batch)] if batch else []
            return []
        finally:
            self._pace.waiting_seconds += time.monotonic() - began

    def _of_one_kind(self) -> list[RequestRead]:
        if not self._waiting:
            return []
        kind = kind_of(self._waiting[0].question)
        return [ready for ready in self._waiting if kind_of(ready.question) == kind]

    def _wanted(self, batch: Sequence[RequestRead]) -> int:
        first = batch[0]
        if self._fits[0] is not first:
            try:
                self._fits = first, self._model.fits(first.question.request)
            except LlvidError:
                self._fits = first, 1  # answering will say what is wrong with it
        wanted = self._pace.size.wanted(self._fits[1])
        self._ahead.most_questions = max(self._ahead.most_questions, 2 * wanted)
        return wanted

    def _answer(self, batch: list[RequestRead]) -> None:
        began = time.monotonic()
        results = answered(self._model, [ready.question for ready in batch], self._pace.size)
        self._pace.generating_seconds += (seconds := time.monotonic() - began)
        if not any(isinstance(result, LlvidError) for result in results):
            self._pace.size.learn(len(batch), seconds)
        self._waiting = [ready for ready in self._waiting if ready not in batch]
        for ready, result in zip(batch, results, strict=True):
            self._ahead.release(ready.question)
            without_media = replace(ready.question, request=replace(ready.question.request, turns=()))
            self._results.setdefault(ready.number, []).append((without_media, result))

    def _finished(self) -> Iterator[Record | Failure]:
        for number in [number for number, ended in self._ended.items() if self._is_done(ended)]:
            ended = self._ended.pop(number)
            yield from ended.job.outcomes(self._results.pop(number, []), ended.error)

    def _await_ends(self) -> None:
        """Learn which of the jobs that are answered so far have no further questions: readers tell a moment later."""
        self._ahead.begin_no_more()
        until = time.monotonic() + _LAST_WORDS_SECONDS
        unanswered = {ready.number for ready in self._waiting}
        while self._results.keys() - unanswered - self._ended.keys() and time.monotonic() < until:
            event = self._ahead.next(0.1)
            if isinstance(event, JobEnded):
                self._ended[event.number] = event
            elif isinstance(event, RequestRead):
                unanswered.add(event.number)

    def _is_done(self, ended: JobEnded) -> bool:
        return len(self._results.get(ended.number, ())) == ended.count


def answered(model: Model, questions: Sequence[JobRequest], size: BatchSize) -> list[Result]:
    """Answer questions of one kind together, and in halves where that fails; a single one's error is its result.

    A batch says that there were too many only if none of its questions runs out of memory alone.
    """
    try:
        return list(model.answer_all([question.request for question in questions]))
    except ModelError as error:
        if len(questions) == 1:
            return [error]
        failed = error
    half = len(questions) // 2
    results = answered(model, questions[:half], size) + answered(model, questions[half:], size)
    if isinstance(failed, OutOfMemoryError) and not any(isinstance(each, OutOfMemoryError) for each in results):
        size.too_many(len(questions))
    return results


def kind_of(question: JobRequest) -> tuple[Generation, tuple[int, ...]]:
    """Return what questions have to share to be answered together: the generation, and the frames of each medium."""
    return question.request.generation, tuple(medium.frame_count for medium in question.request.media)
