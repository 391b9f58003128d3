"""Media read ahead of the model: a pool of decoding threads, bounded by bytes, that gives up on what hangs."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeAlias

from ..conversation import Answer, Request
from ..errors import LlvidError, MediaError, described
from ..prompt.subtitles import Count
from ..video import Resize
from ..video.limits import Limits
from .record import Failure, Record

_MOST_GRACE_SECONDS = 5.0  # behind its limit, a reader that lives gives a file up by itself
_LOOK_SECONDS = 0.5  # how often hanging readers are looked for
FEWEST_REQUESTS = 64  # that may wait, however few are under way
Result: TypeAlias = Answer | LlvidError


def first_error(results: Sequence[tuple[JobRequest, Result]]) -> LlvidError | None:
    """Return the error of the first request that failed."""
    return next((result for _, result in results if isinstance(result, LlvidError)), None)


def why_failed(name: str, results: Sequence[tuple[JobRequest, Result]], error: LlvidError | None) -> LlvidError | None:
    """Return why a job of that name has no record, if that is so: each of its requests, and one at least, counts."""
    error = error or first_error(results)
    return error or (None if results else MediaError(f"{name}: it was not read"))


@dataclass(frozen=True, eq=False)
class JobRequest:
    """A request ready for the model, and what the record will say of its media once they are gone.

    Where lines of speech had to fit, `refit` makes it anew by another count: who reads may have no model to count with.
    """

    request: Request
    about: Any = None
    refit: Callable[[Count], JobRequest] | None = None

    @property
    def bytes(self) -> int:
        """What its media hold in memory."""
        return sum(medium.bytes for medium in self.request.media)

    @property
    def without_media(self) -> JobRequest:
        """What is kept of it once it is answered."""
        return replace(self, request=replace(self.request, turns=()), refit=None)


class Job(Protocol):
    """One entry of a long run: media that are read together, and what is asked about them."""

    @property
    def name(self) -> str:
        """What messages call it."""

    def questions(self, shrink: Resize, limits: Limits) -> Iterator[JobRequest | None]:
        """Read the media and yield what is to be asked; runs in a thread of the pool. Raises MediaError.

        None is no question but a sign of life, where something takes longer than the limits allow for reading.
        """

    def outcomes(
        self, results: Sequence[tuple[JobRequest, Result]], error: LlvidError | None
    ) -> Iterable[Record | Failure]:
        """Return what came of it: the questions without their media, and the error that ended the reading, if any."""


@dataclass(frozen=True, eq=False)
class RequestRead:
    """A question of job `number`, the one at `place` among its own."""

    number: int
    question: JobRequest
    place: int = 0


@dataclass(frozen=True, eq=False)
class Answered:
    """What the model made of a question; an exception that is no `LlvidError` is a bug."""

    read: RequestRead
    result: Answer | Exception


@dataclass(frozen=True, eq=False)
class JobEnded:
    """Job `number` has no more questions than the `count` that came before; `error` is what ended its reading."""

    number: int
    job: Job
    count: int
    error: LlvidError | None


@dataclass
class _ReadTask:
    """A job that a thread is reading."""

    number: int
    job: Job
    count: int = 0
    touched: float = field(default_factory=time.monotonic)  # when it last showed life


class ReadAhead:
    """The pool. `next` gives what is ready; `release` says that a question's media are gone from memory.

    Bounded are the bytes of all questions that were not released (one larger than `most_bytes` waits until it is
    alone), and their number. A job that shows no life for its limit of seconds, and some grace, has ended with an
    error; its thread, which nothing can stop, is left to itself and another one takes its place.
    """

    def __init__(self, jobs: Iterable[Job], shrink: Resize, limits: Limits, workers: int, most_bytes: int) -> None:
        self._jobs, self._shrink, self._limits, self._most_bytes = iter(jobs), shrink, limits, most_bytes
        self._changed = threading.Condition()
        self._events: deque[RequestRead | JobEnded | Answered] = deque()
        self._tasks: dict[int, _ReadTask] = {}
        # twice what is under way: what lies further ahead takes memory, and is lost work when the run is stopped
        self.most_questions = FEWEST_REQUESTS
        self._begun = self._held = self._count = 0
        self._exhausted = self._stopped = False
        for _ in range(workers):
            self._start_worker()

    @property
    def drained(self) -> bool:
        """Whether nothing more will come."""
        with self._changed:
            return not self._events and not self._tasks and (self._exhausted or self._stopped)

    @property
    def is_reading(self) -> bool:
        """Whether a job is being read."""
        with self._changed:
            return bool(self._tasks)

    def post(self, event: RequestRead | JobEnded | Answered) -> None:
        """Queue what is read, or an answer; in any thread."""
        with self._changed:
            self._events.append(event)
            self._changed.notify_all()

    def next(self, timeout_seconds: float) -> RequestRead | JobEnded | Answered | None:
        """Return what is ready, or None after a time, or at once when nothing more will come.

        More comes as long as a job is being read, and until all questions are released: answers to them.
        """
        until = time.monotonic() + timeout_seconds
        with self._changed:
            while not self._events:
                self._give_up_hanging()
                left = until - time.monotonic()
                ended = not self._tasks and not self._count and (self._exhausted or self._stopped)
                if self._events or ended or left <= 0:
                    break
                self._changed.wait(min(left, _LOOK_SECONDS))
            return self._events.popleft() if self._events else None

    def release(self, question: JobRequest) -> None:
        """Make room for others."""
        with self._changed:
            self._held -= question.bytes
            self._count -= 1
            self._changed.notify_all()

    def begin_no_more(self) -> None:
        """Begin nothing more; what is being read goes on."""
        with self._changed:
            self._stopped = True

    def stop(self) -> None:
        """Begin nothing more, and drop what is being read."""
        with self._changed:
            self._stopped = True
            self._tasks.clear()
            self._changed.notify_all()

    def _start_worker(self) -> None:
        threading.Thread(target=self._work, name="llvid-read", daemon=True).start()

    def _work(self) -> None:
        while (task := self._begin()) is not None:
            error: LlvidError | None = None
            try:
                for question in task.job.questions(self._shrink, self._limits):
                    if question is None:
                        task.touched = time.monotonic()
                    elif not self._hand_over(task, question):
                        break
            except LlvidError as failure:
                error = failure
            except Exception as failure:  # noqa: BLE001 - one odd file must not end the run
                error = MediaError(f"{task.job.name}: can't be read: {described(failure)}")
            with self._changed:
                if task.number not in self._tasks:
                    return  # given up: another thread has taken this one's place
                del self._tasks[task.number]
                self.post(JobEnded(task.number, task.job, task.count, error))

    def _begin(self) -> _ReadTask | None:
        with self._changed:
            job = None if self._stopped else next(self._jobs, None)
            if job is None:
                self._exhausted = True
                self._changed.notify_all()
                return None
            task = self._tasks[self._begun] = _ReadTask(self._begun, job)
            self._begun += 1
            return task

    def _hand_over(self, task: _ReadTask, question: JobRequest) -> bool:
        """Queue a question once there is room for it; return whether the task is still wanted."""
        with self._changed:
            while task.number in self._tasks and not self._has_room(question):
                task.touched = time.monotonic()  # it is not its fault
                self._changed.wait(_LOOK_SECONDS)
            if task.number not in self._tasks:
                return False
            task.touched = time.monotonic()
            self._held += question.bytes
            self._count += 1
            self.post(RequestRead(task.number, question, task.count))
            task.count += 1
            return True

    def _has_room(self, question: JobRequest) -> bool:
        return not self._count or (
            self._held + question.bytes <= self._most_bytes and self._count < self.most_questions
        )

    def _give_up_hanging(self) -> None:
        seconds = self._limits.seconds
        if seconds is None:
            return
        late = time.monotonic() - seconds - min(seconds, _MOST_GRACE_SECONDS)
        for task in [task for task in self._tasks.values() if task.touched < late]:
            del self._tasks[task.number]
            error = MediaError(f"{task.job.name}: given up after {seconds:g} seconds: its decoder hangs")
            self.post(JobEnded(task.number, task.job, task.count, error))
            self._start_worker()
