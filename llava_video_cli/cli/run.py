"""A long run on the command line: how far it is, how Ctrl-C ends it, and its result in a line."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING

from ..conversation import Request
from ..errors import LlvidError
from ..model import Model
from ..runs.answers import RunPace
from ..runs.record import Failure, Record
from ..runs.resumable import AnsweredRun, MakeRun, ResumableRun, RunOptions, Summary
from ..system.files import remove_temporary
from ..video.limits import Limits
from ..video.sampling import clock
from . import console, decisions
from .download import model_loader, prefetch
from .options import ClusterFlags, OutputFlags, RunFlags
from .settings import Settings

if TYPE_CHECKING:
    from rich.progress import Progress

EXIT_SOME_FAILED = 3
_SLOW_WINDOW_SECONDS = 20.0  # over which the slow stage is measured
_CLEAR = 0.6  # of that time, from which on one stage is the slow one


class Meter:
    """Counts what is done and what failed of `total`, and shows it for the length of a `with` block."""

    def __init__(self, total: int, noun: str, pace: RunPace, *, quiet: bool) -> None:
        self.done = self.failed = self.cut = 0
        self._total, self._noun, self._pace, self._quiet = total, noun, pace, quiet
        self._began = time.monotonic()
        self._stage, self._stage_since = "", (self._began, 0.0, 0.0)
        self._bar: Progress | None = None
        self.first_failure: Failure | None = None
        if not quiet and console.stderr.is_terminal:
            from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

            columns = (
                BarColumn(),
                TextColumn("{task.completed}/{task.total}"),
                TextColumn("{task.fields[words]}", markup=False),
                TimeRemainingColumn(),
            )
            self._bar = Progress(*columns, console=console.stderr, transient=True, refresh_per_second=4)
            self._bar.add_task("", total=total, words="")

    def expect(self, total: int) -> None:
        """Take note of how many there are in all, where that comes out on the way."""
        self._total = total
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], total=total)

    def count(self, outcome: Record | Failure | None = None) -> None:
        """Take note of one more; None for what is no record."""
        if isinstance(outcome, Failure):
            self.failed += 1
            self.first_failure = self.first_failure or outcome
        else:
            self.done += 1
            self.cut += outcome is not None and outcome.is_cut
        if self._bar is not None:
            self.show()

    def show(self) -> None:
        """Bring the bar up to date; without one, write a line."""
        seen = self.done + self.failed
        if self._bar is not None:
            words = self._words(self._bar.tasks[0].speed)
            self._bar.update(self._bar.task_ids[0], completed=seen, words=words)
            return
        rate = seen / (time.monotonic() - self._began)
        left = f"{clock(max(0, self._total - seen) / rate)} left" if rate else ""
        console.note(", ".join(filter(None, (f"{seen} of {self._total}", self._words(rate), left))))

    @contextmanager
    def lines(self, first_seconds: float = 30.0, most_seconds: float = 60.0) -> Iterator[None]:
        """Without a terminal, write a line now and then: after the first seconds, then more seldom."""
        ended = Event()

        def write() -> None:
            seconds = first_seconds
            while not ended.wait(seconds):
                self.show()
                seconds = min(2 * seconds, most_seconds)

        if self._bar is None and not self._quiet:
            Thread(target=write, name="llvid-lines", daemon=True).start()
        try:
            yield
        finally:
            ended.set()

    def __enter__(self) -> Meter:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def _words(self, rate: float | None) -> str:
        parts = [f"{self.failed} failed"] if self.failed else []
        if rate:
            parts.append(f"{rate:.1f} {self._noun}/s" if rate >= 1 else f"{rate * 60:.1f} {self._noun}/min")
        return ", ".join([*parts, *self._stages()])

    def _stages(self) -> list[str]:
        """Return where most of the last seconds went: waiting for frames means that decoding is the slow stage."""
        since, waiting, generating = self._stage_since
        if time.monotonic() - since >= _SLOW_WINDOW_SECONDS or not self._stage:
            waited = self._pace.waiting_seconds - waiting
            generated = self._pace.generating_seconds - generating
            if waited + generated > 0:
                share = waited / (waited + generated)
                self._stage = "decoding" if share > _CLEAR else "generating" if share < 1 - _CLEAR else ""
            self._stage_since = (time.monotonic(), self._pace.waiting_seconds, self._pace.generating_seconds)
        return [f"slow: {self._stage}"] if self._stage else []


@dataclass(frozen=True)
class Executor:
    """Where requests are answered: on this machine, or on a cluster. `settled` returns the settings that it needs."""

    make_run: MakeRun = AnsweredRun
    meter_of: Callable[..., Meter] = Meter
    settled: Callable[[Settings], Settings] = lambda settings: settings


def executor(flags: ClusterFlags, settings: Settings, output: OutputFlags) -> Executor:
    """Return where requests are answered; raises UsageError for flags that don't go together."""
    if flags == ClusterFlags():
        return Executor()
    from .cluster import cluster_executor

    return cluster_executor(flags, settings, output)


def run_options(settings: Settings, output: OutputFlags, flags: RunFlags, spinner: console.Progress) -> RunOptions:
    """Return the options of a run whose download and notes are shown."""

    def download() -> None:
        prefetch(settings, spinner, quiet=output.quiet)
        spinner.say(settings.opening)

    return RunOptions(
        flags.batch_size,
        Limits(seconds=flags.timeout),
        download=download,
        notify=output.note,
        loaded=lambda model: output.detail(*decisions.loaded(model, settings)),
    )


def carry_out(
    run: ResumableRun,
    notes: Sequence[str],
    output: OutputFlags,
    spinner: console.Progress,
    *,
    noun: str = "videos",
    verb: str = "captioned",
    to_stdout: bool = False,
    show: Callable[[Record | Failure], object] | None = None,
    meter_of: Callable[..., Meter] = Meter,
) -> int:
    """Show how far a run is and what came of it; return the exit code, that of `exit_code`.

    With `to_stdout`, records are written there, and failures to stderr, or as `show` does it. `meter_of` makes the
    display. Raises LlvidError for what ends a run: a model that can't be loaded, a full disk, an error that all videos
    would share.
    """
    meter = meter_of(run.summary.left, noun, run.pace, quiet=output.quiet)
    with run, meter.lines():
        try:
            if run.needs_model:
                _let_threads_sleep()
                output.note(*notes)
                try:
                    run.begin()
                finally:
                    spinner.stop()
            with meter, one_more_chance(run.stop, output) as signals:
                for outcome in run:
                    if to_stdout:
                        if show is not None:
                            show(outcome)
                        else:
                            show_outcome(outcome, as_json=output.json)
                    meter.count(outcome)
        except LlvidError:
            if run.summary.done and not (to_stdout or output.quiet):
                console.note(f"{run.summary.done} {verb} so far: run the same command to continue")
            raise
    summary = run.summary
    if meter.first_failure is not None and summary.done == summary.done_before == 0 and not to_stdout:
        console.error(meter.first_failure.cause)  # it may be that of all: the model's
    if not output.quiet:
        _sum_up(run, noun, verb, can_resume=not to_stdout)
    return exit_code(signals, summary.failed)


def exit_code(signals: Sequence[int], failed: int) -> int:
    """Return the exit code of a run that has ended, of which so many failed, and that these signals stopped."""
    return 128 + signals[0] if signals else EXIT_SOME_FAILED if failed else 0


def load(
    settings: Settings,
    output: OutputFlags,
    largest: Iterable[Request] = (),
    first: Callable[[], Iterable[Request]] = tuple,
) -> Model:
    """Return the model, with a spinner; Ctrl-C leaves at once meanwhile. The requests are as in `RunPlan`."""
    _let_threads_sleep()
    with console.progress(output.quiet) as progress:
        output.note(*settings.notes)
        loader = model_loader(settings, output, progress)
        loader.begin(largest)
        if not loader.has_begun:
            loader.insist(first())
        progress.say(settings.opening)
        return loader.result()


def _let_threads_sleep() -> None:
    """Keep threads of a CPU's matrix products from waiting in a loop: decoding loses a fifth of its time to them."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported


def show_outcome(outcome: Record | Failure, *, as_json: bool) -> None:
    """Write a record to stdout, or a failure to stderr. On a terminal, a record is its name and its text."""
    if isinstance(outcome, Failure):
        console.error(outcome.cause)
    elif as_json or not console.stdout_is_terminal():
        console.write_json(outcome.values)
    else:
        name = console.shown(outcome.path, one_line=True)
        parts = outcome.segments if len(outcome.segments) > 1 else ()
        lines = [f"{name} {clock(each.start_seconds)}-{clock(each.end_seconds)}: {each.text}" for each in parts]
        for line in lines or [f"{name}: {outcome.text}"]:
            prose = console.Prose()
            prose.write(line)
            prose.end()


def _sum_up(run: ResumableRun, noun: str, verb: str, *, can_resume: bool) -> None:
    summary = run.summary
    if summary == Summary():
        console.note(f"no {noun} to process")
        return
    parts = [f"{summary.done} {verb}{cut_off(summary.cut)}"]
    if summary.done_before:
        parts.append(f"{summary.done_before} done before")
    if summary.failed:
        where = f" (see {run.errors_path})" if run.errors_path is not None else ""
        parts.append(f"{summary.failed} failed{where}")
    if run.stop.is_set() and summary.left:
        parts.append(f"{summary.left} left" + (": run the same command to continue" if can_resume else ""))
    console.note(", ".join(parts))
    if summary.replaced:
        console.note(f"older records removed, because their videos were replaced: {summary.replaced}")
    if run.is_pending:
        console.note("the old records stay until all new ones are there")


def cut_off(count: int) -> str:
    """Return what is said of so many answers that ended at the limit."""
    return f" ({count} cut off: --max-new-tokens was reached)" if count else ""


@contextmanager
def one_more_chance(stop: Event, output: OutputFlags) -> Iterator[Sequence[int]]:
    """Let the first Ctrl-C (or SIGTERM) finish what is running; the second one stops at once. Gives those that came."""
    signals: list[int] = []

    def interrupt(kind: int, _: object) -> None:
        signals.append(kind)
        if stop.is_set():
            if os.isatty(2):
                os.write(2, b"\r\x1b[K\x1b[?25h")  # the bar's line, and the cursor that it hid
            remove_temporary()
            os._exit(128 + kind)
        stop.set()
        if not output.quiet:
            console.note("finishing what is running; press Ctrl-C again to stop at once")

    kinds = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(kind, interrupt) for kind in kinds]
    try:
        yield signals
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)


def confirm_overwrite(path: Path, output: OutputFlags) -> None:
    """Ask on a terminal before a file with something in it is started anew. Raises LlvidError for a no."""
    if not (path.is_file() and path.stat().st_size and sys.stdin is not None and sys.stdin.isatty()):
        return
    if not console.stderr.is_terminal or output.quiet:
        return
    if not console.confirmed(f"replace {path}?"):
        raise LlvidError(f"{path} is unchanged")
