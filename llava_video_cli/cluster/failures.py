"""What the workers of a run on a cluster have begun: a worker that dies leaves it open, and that is a strike.

One `Book` is kept where the run was started, and outlives every worker. A worker writes down what it begins, as a
batch, and what it has done. What is begun again while it stands open took a worker down, or stood beside what did:
it is taken alone from then on, so that only the culprit gets a second strike, and is given up then.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal, TypeAlias

Stage = Literal["read", "answer"]
Unit: TypeAlias = tuple[str, int]  # a video's key, and the number of the question about it
MOST_STRIKES = 2
_ALIVE_SECONDS = 60.0  # within which a worker was heard of


@dataclass(frozen=True)
class Tally:
    """How far a run is.

    `found` are to be done, `done_before` are done already. `seconds` are those of workers at work, by stage, and
    `units` what they did in them. `workers` were heard of lately. `struck` are videos that stood open when a worker
    died.
    """

    found: int = 0
    done_before: int = 0
    units: dict[Stage, int] = field(default_factory=lambda: {"read": 0, "answer": 0})
    seconds: dict[Stage, float] = field(default_factory=lambda: {"read": 0.0, "answer": 0.0})
    workers: dict[Stage, int] = field(default_factory=lambda: {"read": 0, "answer": 0})
    struck: int = 0


class Book:
    """The book; all calls come from one thread at a time."""

    def __init__(self) -> None:
        self._open: dict[Stage, set[Unit]] = {"read": set(), "answer": set()}
        self._strikes: dict[str, int] = {}
        self._planned: dict[int, tuple[int, int]] = {}
        self._heard: dict[Stage, dict[str, float]] = {"read": {}, "answer": {}}
        self._tally = Tally()
        self._stopped = False
        self._loads: dict[str, int] = {}

    def begin(self, stage: Stage, worker: str, units: Iterable[Unit]) -> dict[str, int] | None:
        """Open the units of a batch; return the strikes of those videos that are to be taken alone instead.

        Returns None if nothing is to be begun any more.
        """
        if self._stopped:
            return None
        self._heard[stage][worker] = time.monotonic()
        alone: dict[str, int] = {}
        units = list(units)
        for unit in units:
            if unit in self._open[stage]:
                self._open[stage].discard(unit)
                self._strikes[unit[0]] = self._strikes.get(unit[0], 0) + 1
            if unit[0] in self._strikes:
                alone[unit[0]] = self._strikes[unit[0]]
        self._open[stage].update(unit for unit in units if unit[0] not in alone)
        return alone

    def begin_alone(self, stage: Stage, worker: str, unit: Unit) -> bool:
        """Open a unit that is taken alone; return whether it may be begun."""
        if not self._stopped:
            self._heard[stage][worker] = time.monotonic()
            self._open[stage].add(unit)
        return not self._stopped

    def end(self, stage: Stage, worker: str, units: Iterable[Unit], seconds: float) -> None:
        """Close units, which took a worker so many seconds."""
        self._heard[stage][worker] = time.monotonic()
        for unit in units:
            self._open[stage].discard(unit)
            self._tally.units[stage] += 1
        self._tally.seconds[stage] += seconds

    def begin_loading(self, worker: str) -> int:
        """Take note that a worker loads its model; return how often it died of that, one time after the other."""
        self._loads[worker] = self._loads.get(worker, -1) + 1
        return self._loads[worker]

    def end_loading(self, worker: str) -> None:
        """Take note that it is loaded."""
        self._loads.pop(worker, None)

    def planned(self, part: int, found: int, done: int) -> None:
        """Take note of what is in a part of the input; a part that is looked through again counts once."""
        self._planned[part] = found, done

    def stop(self) -> None:
        """Let nothing be begun any more; what is running is finished."""
        self._stopped = True

    def tally(self) -> Tally:
        """Return how far the run is."""
        since = time.monotonic() - _ALIVE_SECONDS
        counts = self._planned.values()
        return replace(
            self._tally,
            found=sum(found for found, _ in counts),
            done_before=sum(done for _, done in counts),
            workers={stage: sum(at > since for at in heard.values()) for stage, heard in self._heard.items()},
            struck=len(self._strikes),
        )
