"""A long run on the command line: how far it is, how Ctrl-C ends it, and what came of it, in a line."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from ..conversation import Request
from ..errors import LlvidError
from ..model import Model
from ..runs.record import Failure, Record
from ..runs.resumable import ResumableRun, RunOptions, Summary
from ..video.limits import Limits
from . import console
from .download import model_loader, prefetch
from .meter import Meter
from .options import OutputFlags
from .settings import Settings

if TYPE_CHECKING:
    from types import FrameType

EXIT_SOME_FAILED = 3
EXIT_INTERRUPTED = 130


@dataclass(frozen=True)
class Pacing:
    """How a run is paced; None finds the size of a batch by itself."""

    batch_size: int | None
    timeout_seconds: float


def run_options(settings: Settings, output: OutputFlags, pacing: Pacing, spinner: console.Progress) -> RunOptions:
    """Return the options of a run whose download and notes are shown."""

    def download() -> None:
        prefetch(settings, spinner, quiet=output.quiet)
        spinner.say(settings.opening)

    notify = (lambda _: None) if output.quiet else console.note
    return RunOptions(pacing.batch_size, Limits(seconds=pacing.timeout_seconds), download=download, notify=notify)


def carry_out(
    run: ResumableRun,
    settings: Settings,
    output: OutputFlags,
    spinner: console.Progress,
    *,
    noun: str = "videos",
    verb: str = "captioned",
    to_stdout: bool = False,
) -> int:
    """Show how far a run is and what came of it; return the exit code: 0, 3 if some failed, 130 after Ctrl-C.

    With `to_stdout`, records are written there, and failures to stderr. Raises LlvidError for what ends a run: a model
    that can't be loaded, a full disk, an error that all videos would share.
    """
    with run:
        try:
            if run.needs_model:
                _load(run, settings, output, spinner)
            meter = Meter(run.summary.left, noun, run.pace, quiet=output.quiet)
            with meter, one_more_chance(run.stop, output):
                for outcome in run:
                    if to_stdout:
                        show_outcome(outcome)
                    meter.count(failed=isinstance(outcome, Failure))
        except LlvidError:
            if run.summary.done and not (to_stdout or output.quiet):
                console.note(f"{run.summary.done} {verb} until then: the same command goes on")
            raise
    if not output.quiet:
        _sum_up(run, noun, verb, can_resume=not to_stdout)
    if run.stop.is_set():
        return EXIT_INTERRUPTED
    return EXIT_SOME_FAILED if run.summary.failed else 0


def _load(run: ResumableRun, settings: Settings, output: OutputFlags, spinner: console.Progress) -> None:
    """Load the model, with a spinner; Ctrl-C leaves at once meanwhile."""
    _let_threads_sleep()
    for line in settings.notes if not output.quiet else ():
        console.note(line)
    try:
        run.begin()
    finally:
        spinner.stop()


def load(
    settings: Settings,
    output: OutputFlags,
    largest: Iterable[Request] = (),
    first: Callable[[], Iterable[Request]] = tuple,
) -> Model:
    """Return the model, with a spinner; Ctrl-C leaves at once meanwhile. The requests are as in `RunPlan`."""
    _let_threads_sleep()
    with console.progress(output.quiet) as progress:
        for line in settings.notes if not output.quiet else ():
            console.note(line)
        loader = model_loader(settings, output, progress)
        loader.begin(largest)
        if not loader.has_begun:
            loader.insist(first())
        progress.say(settings.opening)
        return loader.result()


def _let_threads_sleep() -> None:
    """Keep threads of a CPU's matrix products from waiting in a loop: decoding loses a fifth of its time to them."""
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch is imported


def show_outcome(outcome: Record | Failure) -> None:
    """Write a record to stdout, or a failure to stderr."""
    if isinstance(outcome, Record):
        console.write_json(outcome.values)
    else:
        console.error(outcome.cause)


def _sum_up(run: ResumableRun, noun: str, verb: str, *, can_resume: bool) -> None:
    summary = run.summary
    if summary == Summary():
        console.note(f"no {noun} there")
        return
    parts = [f"{summary.done} {verb}"]
    if summary.done_before:
        parts.append(f"{summary.done_before} done before")
    if summary.failed:
        where = f" (see {run.errors_path})" if run.errors_path is not None else ""
        parts.append(f"{summary.failed} failed{where}")
    if run.stop.is_set():
        parts.append(f"{summary.left} left" + (": the same command goes on" if can_resume else ""))
    console.note(", ".join(parts))


@contextmanager
def one_more_chance(stop: Event, output: OutputFlags) -> Iterator[None]:
    """Let the first Ctrl-C (or SIGTERM) finish what is running; the second one stops at once."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        del number, frame
        if stop.is_set():
            if sys.stderr.isatty():
                os.write(2, b"\r\x1b[K\x1b[?25h")  # the bar's line, and the cursor that it hid
            os._exit(EXIT_INTERRUPTED)
        stop.set()
        if not output.quiet:
            console.note("finishing what is running; Ctrl-C again stops at once")

    kinds = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(kind, interrupt) for kind in kinds]
    try:
        yield
    finally:
        for kind, handler in zip(kinds, before, strict=True):
            signal.signal(kind, handler)


def confirm_overwrite(path: Path, output: OutputFlags) -> None:
    """Ask on a terminal before a file with something in it is started anew. Raises LlvidError for a no."""
    if not (path.is_file() and path.stat().st_size and sys.stdin is not None and sys.stdin.isatty()):
        return
    if not console.stderr.is_terminal or output.quiet:
        return
    console.stderr.print(f"write over {console.shown(str(path), one_line=True)}? [y/N] ", end="")
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        raise LlvidError(f"{path} stays as it is")
