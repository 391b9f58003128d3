"""A long run on the command line: what is to be done, until it is done or stopped; what came of it, in a line."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Protocol

from ..conversation import Request
from ..errors import LlvidError
from ..model import Model
from ..runs.batches import BatchSize, Pace, run
from ..runs.ledger import Errors, Ledger
from ..runs.prefetch import Job
from ..runs.record import Failure, Record
from ..video.limits import Limits
from . import console
from .download import model_loader
from .meter import Meter
from .options import OutputFlags
from .settings import Settings

if TYPE_CHECKING:
    from types import FrameType

EXIT_SOME_FAILED = 3
EXIT_INTERRUPTED = 130


@dataclass(frozen=True)
class Plan:
    """What a run is to do. `noun` and `verb` are for its messages; `skipped` are done already.

    `jobs` makes the jobs of a loaded model. `wrote` is called with each record once it is safe in its file. `expected`
    are requests that take at least as much of the context as any job, `first` one that ends the run if it doesn't fit:
    either may have none.
    """

    total: int
    skipped: int
    failures: list[Failure]
    jobs: Callable[[Model], Iterable[Job]]
    wrote: Callable[[Record], None]
    is_fatal: Callable[[LlvidError], bool]
    noun: str = "videos"
    verb: str = "captioned"
    expected: Callable[[], Iterable[Request]] = tuple
    first: Callable[[], Iterable[Request]] = tuple


class Records(Protocol):
    """Where records go."""

    def append(self, record: Record) -> None:
        """Take one."""


class Failures(Protocol):
    """Where failures go."""

    @property
    def path(self) -> Path | str:
        """Where they can be read."""

    def append(self, failure: Failure) -> None:
        """Take one."""

    def succeeded(self, record: Record) -> None:
        """Forget an older one."""

    def close(self) -> None:
        """Write those that are left."""


@dataclass(frozen=True)
class Pacing:
    """How a run is paced; None finds the size of a batch by itself."""

    batch_size: int | None
    timeout_seconds: float


def carry_out(
    plan: Plan,
    settings: Settings,
    output: OutputFlags,
    pacing: Pacing,
    to: Ledger | None,
    errors: Errors | None,
    *,
    silent: bool = False,
) -> int:
    """Do what is to be done and return the exit code: 0, 3 if some failed, 130 after Ctrl-C.

    Records go to `to`, failures to `errors`; without them to stdout (unless `silent`) and stderr. Raises LlvidError
    for what ends a run: a model that can't be loaded, a disk that is full, an error that all videos would share.
    """
    pace = Pace(BatchSize(pacing.batch_size))
    stop = Event()
    meter = Meter(plan.total + len(plan.failures), plan.noun, pace, quiet=output.quiet)
    try:
        model = load(settings, output, plan.expected(), plan.first) if plan.total else None
        if to is not None:
            to.begin()
        with meter, one_more_chance(stop, output):
            for outcome in _outcomes(plan, model, Limits(seconds=pacing.timeout_seconds), stop, pace):
                if isinstance(outcome, Failure) and plan.is_fatal(outcome.cause):
                    raise outcome.cause
                write(outcome, to, errors, silent=silent)
                if isinstance(outcome, Record):
                    plan.wrote(outcome)
                meter.count(failed=isinstance(outcome, Failure))
    except LlvidError:
        if to is not None and meter.done and not output.quiet:
            console.note(f"{meter.done} {plan.verb} until then: the same command goes on")
        raise
    finally:
        if errors is not None:
            with suppress(LlvidError):  # what went wrong before is what the user should read
                errors.close()
    if not output.quiet:
        _sum_up(plan, meter, stop, to, errors)
    if stop.is_set():
        return EXIT_INTERRUPTED
    return EXIT_SOME_FAILED if meter.failed else 0


def load(
    settings: Settings,
    output: OutputFlags,
    expected: Iterable[Request] = (),
    first: Callable[[], Iterable[Request]] = tuple,
) -> Model:
    """Return the model, with a spinner; Ctrl-C leaves at once meanwhile. `expected` and `first` are as in `Plan`."""
    # Threads of a CPU's matrix products that wait in a loop take the cores from those that decode: a fifth of a run.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    with console.progress(output.quiet) as progress:
        for line in settings.notes if not output.quiet else ():
            console.note(line)
        loader = model_loader(settings, output, progress)
        loader.begin(expected)
        if not loader.has_begun:
            loader.insist(first())
        progress.say(settings.opening)
        return loader.result()


def _outcomes(plan: Plan, model: Model | None, limits: Limits, stop: Event, pace: Pace) -> Iterator[Record | Failure]:
    yield from plan.failures
    if model is not None:
        yield from run(plan.jobs(model), model, limits=limits, stop=stop, pace=pace)


def write(outcome: Record | Failure, to: Records | None, errors: Failures | None, *, silent: bool) -> None:
    """Put an outcome where it belongs: `to` and `errors`, or, without them, stdout and stderr."""
    if isinstance(outcome, Record):
        if to is None:
            if not silent:
                console.write_json(outcome.values)
        else:
            to.append(outcome)
        if errors is not None:
            errors.succeeded(outcome)
    elif errors is not None:
        errors.append(outcome)
    else:
        console.error(outcome.cause)


def _sum_up(plan: Plan, meter: Meter, stop: Event, to: Ledger | None, errors: Errors | None) -> None:
    if not (plan.total or plan.skipped or plan.failures):
        console.note(f"no {plan.noun} there")
        return
    parts = [f"{meter.done} {plan.verb}"]
    if plan.skipped:
        parts.append(f"{plan.skipped} done before")
    if meter.failed:
        parts.append(f"{meter.failed} failed" + (f" (see {errors.path})" if errors is not None else ""))
    left = plan.total + len(plan.failures) - meter.done - meter.failed
    if stop.is_set():
        parts.append(f"{left} left: the same command goes on" if to is not None else f"{left} left")
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
