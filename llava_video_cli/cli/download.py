"""How far a download is: a bar on a terminal, a line a minute elsewhere."""

from __future__ import annotations

import time
from types import TracebackType
from typing import TYPE_CHECKING

from ..models.fetch import Progress
from ..sampling import clock
from . import console

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID

_LINE_SECONDS = 60.0


class Download:
    """Shows a download for the length of a `with` block."""

    def __init__(self, model: str, *, quiet: bool) -> None:
        self._model, self._quiet = model, quiet
        self._began = self._line_at = time.monotonic()
        self._bar: Bar | None = None
        self._task: TaskID | None = None
        self._spinner = console.Progress(quiet)

    def show(self, progress: Progress) -> None:
        """Bring the bar up to date, or write the line that is due."""
        left_bytes = progress.total_bytes - progress.done_bytes
        if self._quiet or (self._bar is None and not left_bytes):
            return
        if not console.stderr.is_terminal:
            self._line(progress, left_bytes)
            return
        if self._bar is None or self._task is None:
            self._spinner.stop()
            self._bar = _bar()
            # What was there before is no sign of speed: the bar begins with it.
            name = console.shown(self._model, one_line=True)
            self._task = self._bar.add_task(name, total=progress.total_bytes, completed=progress.done_bytes)
            self._bar.start()
        self._bar.update(self._task, completed=progress.done_bytes)

    def _line(self, progress: Progress, left_bytes: int) -> None:
        now = time.monotonic()
        if now - self._line_at < _LINE_SECONDS:
            return
        self._line_at = now
        rate = progress.came_bytes / (now - self._began)
        left = f", {rate / 1e6:.1f} MB/s, {clock(left_bytes / rate)} left" if rate else ""
        console.note(f"{progress.done_bytes / 1e9:.2f} of {progress.total_bytes / 1e9:.2f} GB{left}")

    def __enter__(self) -> Download:
        self._spinner.say(f"asking the hub for {self._model}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._spinner.stop()
        if self._bar is not None:
            self._bar.stop()


def _bar() -> Bar:
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bar

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    return Bar(*columns, console=console.stderr, transient=True, refresh_per_second=4, speed_estimate_period=30)
