"""How far a long run is: a bar on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

from ..runs.batches import RunPace
from ..video.sampling import clock
from . import console

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

_LINE_SECONDS = 60.0
_SLOW_WINDOW_SECONDS = 20.0  # over which the slow stage is told
_CLEAR = 0.6  # of that time, from which on one stage is the slow one


class Meter:
    """Counts what is done and what failed of `total`, and shows it for the length of a `with` block."""

    def __init__(self, total: int, noun: str, pace: RunPace, *, quiet: bool) -> None:
        self.done, self.failed = 0, 0
        self._total, self._noun, self._pace, self._quiet = total, noun, pace, quiet
        self._began = self._line_at = time.monotonic()
        self._stage, self._stage_since = "", (self._began, 0.0, 0.0)
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        if not quiet and console.stderr.is_terminal:
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                BarColumn(),
                TextColumn("{task.completed}/{task.total}"),
                TextColumn("{task.fields[words]}", markup=False),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=console.stderr, transient=True, refresh_per_second=4)
            self._task = self._bar.add_task("", total=total, words="")

    def expect(self, total: int) -> None:
        """Take note of how many there are in all, where that comes out on the way."""
        self._total = total
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, total=total)

    def count(self, *, failed: bool) -> None:
        """Take note of one more."""
        self.failed += failed
        self.done += not failed
        self.show()

    def show(self) -> None:
        """Bring the bar up to date, or write the line that is due."""
        if self._bar is not None and self._task is not None:
            speed = self._bar.tasks[0].speed
            self._bar.update(self._task, completed=self.done + self.failed, words=self._words(speed))
        elif not self._quiet and time.monotonic() - self._line_at >= _LINE_SECONDS:
            self._line_at = time.monotonic()
            seen = self.done + self.failed
            rate = seen / (self._line_at - self._began)
            left = f", {clock(max(0, self._total - seen) / rate)} left" if rate else ""
            console.note(f"{seen} of {self._total}, {self._words(rate)}{left}")

    def __enter__(self) -> Meter:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _words(self, rate: float | None) -> str:
        parts = [f"{self.failed} failed"] if self.failed else []
        if rate:
            parts.append(f"{rate:.1f} {self._noun}/s" if rate >= 1 else f"{rate * 60:.1f} {self._noun}/min")
        return ", ".join([*parts, *self._stages()])

    def _stages(self) -> list[str]:
        """Return what is to be said of the stages."""
        stage = self._slow_stage()
        return [f"slow: {stage}"] if stage else []

    def _slow_stage(self) -> str:
        """Return where most of the last seconds went: waiting for frames means that decoding is the slow stage."""
        since, waiting, generating = self._stage_since
        if time.monotonic() - since >= _SLOW_WINDOW_SECONDS or not self._stage:
            waited = self._pace.waiting_seconds - waiting
            generated = self._pace.generating_seconds - generating
            if waited + generated > 0:
                share = waited / (waited + generated)
                self._stage = "decoding" if share > _CLEAR else "generating" if share < 1 - _CLEAR else ""
            self._stage_since = (time.monotonic(), self._pace.waiting_seconds, self._pace.generating_seconds)
        return self._stage
