"""What workers have begun, so that a video that makes workers crash is found and given up.

One `AttemptLog` runs on the node that started the run, and outlives every worker. Workers report what they begin and
what they finish. A unit that begins again without having finished was lost in a crash: it caused the crash, or was in
the same batch as the unit that did. From then on its video is processed alone, so that a second crash can only be its
own fault. The video is then given up.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

Stage = Literal["read", "answer"]
Unit: TypeAlias = tuple[str, int]  # a video's key, and the number of the question about it
MAX_CRASHES = 2
_ACTIVE_SECONDS = 60.0  # a worker that reported within this time counts as active


@dataclass(frozen=True)
class ClusterProgress:
    """The progress of a run.

    `to_do` counts the videos that the run has to process, `done_before` those that an earlier run did. By stage,
    `units` counts what workers have finished, `seconds` is their working time, and `workers` counts the active ones.
    `retried` counts the videos that are processed again because a worker died.
    """

    to_do: int = 0
    done_before: int = 0
    units: Counter[Stage] = field(default_factory=Counter)
    seconds: defaultdict[Stage, float] = field(default_factory=lambda: defaultdict(float))
    workers: Counter[Stage] = field(default_factory=Counter)
    retried: int = 0


class AttemptLog:
    """The record of all attempts. It is called from one thread at a time."""

    def __init__(self) -> None:
        self._open: defaultdict[Stage, set[Unit]] = defaultdict(set)
        self._crashes, self._loads = Counter[str](), Counter[str]()
        self._input_counts: dict[int, tuple[int, int]] = {}
        self._last_reports: dict[tuple[Stage, str], float] = {}
        self._progress, self._stopped = ClusterProgress(), False

    def begin(self, stage: Stage, worker: str, units: Collection[Unit]) -> dict[str, int] | None:
        """Begin a batch, except the units whose videos must be processed alone; return those videos' crash counts.

        Returns None if the run was stopped: then nothing may begin.
        """
        if self._stopped:
            return None
        self._last_reports[stage, worker] = time.monotonic()
        lost = self._open[stage].intersection(units)
        self._open[stage] -= lost
        self._crashes.update(key for key, _ in lost)
        alone = {key: self._crashes[key] for key, _ in units if key in self._crashes}
        self._open[stage].update(unit for unit in units if unit[0] not in alone)
        return alone

    def begin_alone(self, stage: Stage, worker: str, unit: Unit) -> bool:
        """Begin a unit that is processed alone; return False if the run was stopped."""
        if not self._stopped:
            self._last_reports[stage, worker] = time.monotonic()
            self._open[stage].add(unit)
        return not self._stopped

    def end(self, stage: Stage, worker: str, units: Collection[Unit], seconds: float) -> None:
        """Close units that a worker finished in that many seconds."""
        self._last_reports[stage, worker] = time.monotonic()
        self._open[stage].difference_update(units)
        self._progress.units[stage] += len(units)
        self._progress.seconds[stage] += seconds

    def begin_loading(self, worker: str) -> int:
        """Record that a worker loads its model; return how many times in a row it died while loading."""
        self._loads[worker] += 1
        return self._loads[worker] - 1

    def end_loading(self, worker: str) -> None:
        """Record that the worker's model is loaded."""
        del self._loads[worker]

    def count_input(self, part: int, to_do: int, done: int) -> None:
        """Record how many videos a part of the input has; a part that is listed again counts once."""
        self._input_counts[part] = to_do, done

    def stop(self) -> None:
        """Let nothing more begin; what is running may finish."""
        self._stopped = True

    def progress(self) -> ClusterProgress:
        """Return the progress of the run."""
        since = time.monotonic() - _ACTIVE_SECONDS
        counts = self._input_counts.values()
        return replace(
            self._progress,
            to_do=sum(to_do for to_do, _ in counts),
            done_before=sum(done for _, done in counts),
            workers=Counter(stage for (stage, _), at in self._last_reports.items() if at > since),
            retried=len(self._crashes),
        )
