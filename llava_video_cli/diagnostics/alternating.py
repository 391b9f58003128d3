"""Things to be timed that take turns, as often as their time allows."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..errors import ContextError, LlvidError, OutOfMemoryError


@dataclass(frozen=True)
class Cell:
    """A figure: what was measured in which unit, of how many frames and videos together, and what each run gave.

    `precision` is that of the weights; what has nothing to do with a model, frames or batches has None there. Where
    nothing was measured, and where only a first run was, `note` says why.
    """

    what: str
    unit: str
    precision: str | None = None
    frames: int | None = None
    batch: int | None = None
    runs: tuple[float, ...] = ()
    note: str | None = None

    @property
    def median(self) -> float | None:
        """The median of the runs; None without any."""
        return statistics.median(self.runs) if self.runs else None

    @property
    def values(self) -> dict[str, Any]:
        """The JSON values."""
        return {**asdict(self), "runs": list(self.runs), "median": self.median}


@dataclass
class Series:
    """A cell that still grows."""

    what: str
    unit: str
    precision: str | None = None
    frames: int | None = None
    batch: int | None = None
    runs: list[float] = field(default_factory=list)
    note: str | None = None

    @property
    def cell(self) -> Cell:
        """What came of it so far."""
        return Cell(self.what, self.unit, self.precision, self.frames, self.batch, tuple(self.runs), self.note)


@dataclass(frozen=True, eq=False)
class Job:
    """Something to be timed: a call gives a value for each of its series, or None where it can't.

    `cost` tells about how long it takes next to the others.
    """

    series: tuple[Series, ...]
    run: Callable[[], Sequence[float | None]]
    cost: float


def take_turns(
    jobs: Sequence[Job], runs: int, seconds: float, say: Callable[[str], None], scale: float | None = None
) -> None:
    """Run each job once to warm up, then in turns until each has its runs or the time is over.

    A job that would take longer than what is left of the time is left out, and its cells say so; of one that has only
    time for a single run, the first one counts. `scale` is the seconds of a job of cost 1, if known beforehand.
    """
    until = time.perf_counter() + seconds
    taken: dict[Job, float] = {}
    first: dict[Job, Sequence[float | None]] = {}
    for job in sorted(jobs, key=lambda job: job.cost):
        guess = 0.0 if scale is None else scale * job.cost
        if guess > until - time.perf_counter():
            _close(job, f"too long: {_about(guess)}")
            continue
        say(f"{_name(job)}, warming up")
        began = time.perf_counter()
        if (values := _values(job)) is not None:
            first[job], taken[job] = values, time.perf_counter() - began
            scale = taken[job] / job.cost
    turning = list(taken)
    while turning and sum(taken[job] for job in turning) > until - time.perf_counter():
        job = max(turning, key=lambda job: taken[job])
        turning.remove(job)
        _add(job, first[job])
        _close(job, "one run, not warmed up: the time was over")
    for number in range(runs):
        if number and sum(taken[job] for job in turning) > until - time.perf_counter():
            break
        for job in tuple(turning):
            say(f"{_name(job)}, run {number + 1} of {runs}")
            if (values := _values(job)) is None:
                turning.remove(job)
            else:
                _add(job, values)


def _values(job: Job) -> Sequence[float | None] | None:
    """Run a job; None if it can't be done, and then its cells say why."""
    try:
        return job.run()
    except ContextError:
        _close(job, "doesn't fit the context")
    except OutOfMemoryError:
        _close(job, "out of memory")
    except LlvidError as error:
        _close(job, str(error))
    return None


def _add(job: Job, values: Sequence[float | None]) -> None:
    for series, value in zip(job.series, values, strict=True):
        if value is not None:
            series.runs.append(value)


def _close(job: Job, note: str) -> None:
    for series in job.series:
        series.note = note


def _name(job: Job) -> str:
    series = job.series[0]
    parts = [f"{series.frames} frames" if series.frames else "", f"batch {series.batch}" if series.batch else ""]
    return ", ".join([series.what, *(part for part in parts if part)])


def _about(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
