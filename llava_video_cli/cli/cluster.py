"""A long run on a Ray cluster: the same records and the same messages, but the work is done elsewhere."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

from ..cluster.estimate import Estimate, estimate
from ..cluster.failures import Stage, Tally
from ..cluster.pipeline import Progress, run
from ..cluster.session import Cluster, Joined
from ..errors import ContextError, UsageError
from ..inference import open_model, open_resize
from ..runs.batches import Pace
from ..runs.caption import Task
from ..runs.ledger import Errors, Ledger
from ..runs.parquet import check_parquet, write_parquet
from ..runs.parts import PartErrors, PartFiles, is_folder
from ..runs.record import Failure, Record
from ..runs.storage import is_address
from ..video.limits import Limits
from . import console
from .meter import Meter
from .options import ClusterFlags, OutputFlags
from .run import EXIT_INTERRUPTED, EXIT_SOME_FAILED, Failures, Pacing, confirm_overwrite, one_more_chance, write
from .settings import Settings

_TABLES = (".jsonl", ".csv", ".parquet")
_WINDOW_SECONDS = 10.0  # over which the rates of stages are told
_VERBS: dict[Stage, str] = {"read": "reading", "answer": "answering"}


def check_flags(flags: ClusterFlags, *, sidecars: bool, subtitles: bool) -> None:
    """Raise UsageError for flags that don't go together."""
    if flags.ray is None:
        given = next(name for name in ("gpus", "readers", "dry_run") if getattr(flags, name)).replace("_", "-")
        raise UsageError(f"--{given} is for a run on a cluster", "say which with --ray auto, or local")
    address = os.environ.get("RAY_ADDRESS", "") if flags.ray == "auto" else flags.ray
    if address.startswith("ray://"):
        host = address.removeprefix("ray://").rpartition(":")[0] or "HEAD"
        raise UsageError(
            f"llvid does not run through a Ray client ({address}): submit the command as a job of the cluster",
            f"ray job submit --address http://{host}:8265 -- "
            "llvid caption /shared/clips -o /shared/captions.jsonl --ray auto",
        )
    if flags.ray not in ("auto", "local"):
        raise UsageError(f"--ray must be auto or local, got {flags.ray!r}")
    if sidecars:
        raise UsageError(
            "--sidecar does not go with --ray", "the same command with -o and without --ray makes them after"
        )
    if subtitles:
        raise UsageError("--subtitles does not go with --ray: they are for one video")


def on_cluster(
    paths: Sequence[str],
    to: str | None,
    task: Task,
    settings: Settings,
    output: OutputFlags,
    pacing: Pacing,
    flags: ClusterFlags,
    recursive: bool,
    overwrite: bool,
) -> int:
    """Caption all that is not done yet; return the exit code."""
    if to is not None and not is_folder(to) and Path(to).suffix.lower() not in _TABLES:
        raise UsageError(
            f"{to} must end in {', '.join(_TABLES)}, or be a folder/ or an address such as s3://bucket/name"
        )
    cluster = _cluster(flags, settings.loading.device)
    with ExitStack() as opened:
        records = opened.enter_context(_output(to, output, overwrite=overwrite))
        joined = opened.enter_context(_joined(cluster, output))
        options: dict[str, Any] = {
            "open_model": partial(open_model, settings.model, settings.resolved().loading, settings.revision),
            "open_resize": partial(open_resize, settings.model, settings.revision),
            "done": records.done,
            "home": records.home,
            "folder": str(Path.cwd()),
            "recursive": recursive,
            "limits": Limits(seconds=pacing.timeout_seconds),
            "batch_size": pacing.batch_size,
        }
        if flags.dry_run:
            _show(estimate(paths, task, joined, **options), joined, output)
            return 0
        return _carry_out(partial(run, paths, task, joined, **options), task, output, records)


@dataclass(frozen=True)
class _Output:
    """Where records and failures go: a table, a folder, or stdout and stderr; `home` is what keys see paths from."""

    to: Ledger | PartFiles | None = None
    errors: Failures | None = None
    home: str = ""

    @property
    def done(self) -> set[str]:
        """The keys that stand there."""
        return self.to.done if self.to is not None else set()


@contextmanager
def _output(to: str | None, output: OutputFlags, *, overwrite: bool) -> Iterator[_Output]:
    if to is None:
        yield _Output(home=os.getcwd())  # noqa: PTH109 - as a run on one machine sees it
    elif is_folder(to):
        check_parquet()
        with PartFiles(to, overwrite=overwrite) as parts:
            yield _Output(parts, PartErrors(parts), "/" if is_address(to) else _whole(to))
    else:
        table = Path(to)
        is_parquet = table.suffix.lower() == ".parquet"
        if is_parquet:
            check_parquet()
        if overwrite:
            confirm_overwrite(table, output)
        with Ledger(table.with_name(f"{table.name}.jsonl") if is_parquet else table, overwrite=overwrite) as ledger:
            try:
                yield _Output(ledger, Errors(table, overwrite=overwrite), _whole(table.parent))
            finally:
                if is_parquet:
                    write_parquet(ledger.records(), table)


def _whole(path: str | Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100 - links in a path stay


def _carry_out(
    captioning: Callable[..., Iterator[Record | Failure]], task: Task, output: OutputFlags, records: _Output
) -> int:
    stop, progress = Event(), Progress()
    meter = _Meter(progress, quiet=output.quiet)
    if records.to is not None:
        records.to.begin()
    try:
        with meter, one_more_chance(stop, output):
            for outcome in captioning(stop=stop, progress=progress):
                if isinstance(outcome, Failure) and _is_fatal(outcome, task):
                    raise outcome.cause
                write(outcome, records.to, records.errors, silent=False)
                meter.count(failed=isinstance(outcome, Failure))
    finally:
        if records.errors is not None:
            records.errors.close()
    if not output.quiet:
        _sum_up(meter, progress.tally, stop, records.errors)
    if stop.is_set():
        return EXIT_INTERRUPTED
    return EXIT_SOME_FAILED if meter.failed else 0


def _show(plan: Estimate, joined: Joined, output: OutputFlags) -> None:
    """Write what would be done to stdout."""
    hours = plan.hours(joined.most, joined.readers)
    if output.json:
        values = asdict(plan) | {"workers": joined.most, "readers": joined.readers, "on_gpus": joined.on_gpus}
        console.write_json(values | {"worker_hours": plan.worker_hours, "hours": hours})
        return
    kind = "GPU" if joined.on_gpus else "worker"
    lines = [f"{plan.todo:,} videos to do, {plan.done:,} done before, {plan.unreadable:,} can't be found"]
    if plan.sample:
        lines += [
            f"measured on {plan.sample} of them, {plan.failed} failed: {plan.read_seconds:.3g} s of a core to read one,"
            f" {plan.answer_seconds:.3g} s of a {kind} to answer",
            f"{_span(plan.worker_hours)} of {kind}s; {_span(hours)} with {joined.most} of them and"
            f" {_count(joined.readers, 'reader')}; {plan.readers_each:.2g} readers keep one {kind} busy",
        ]
    console.write("\n".join(lines) + "\n")


def _span(hours: float) -> str:
    if hours >= 1:
        return f"{hours:,.3g} hours" if hours < 1000 else f"{hours:,.0f} hours"
    return f"{60 * hours:.3g} minutes" if hours >= 1 / 60 else f"{3600 * hours:.3g} seconds"


def _is_fatal(failure: Failure, task: Task) -> bool:
    return isinstance(failure.cause, ContextError) and task.preset.sampling.fps is None


def _cluster(flags: ClusterFlags, device: str) -> Cluster:
    fewest, most = 1, None
    if flags.gpus is not None:
        low, dash, high = flags.gpus.partition("-")
        if not (low.isdigit() and (high.isdigit() if dash else not high)) or int(low) < 1:
            raise UsageError(f"--gpus must be a number or MIN-MAX, got {flags.gpus!r}")
        fewest, most = int(low), int(high or low)
        if most < fewest:
            raise UsageError(f"--gpus must be MIN-MAX, got {flags.gpus!r}")
    return Cluster(flags.ray or "auto", fewest, most, flags.readers, device)


@contextmanager
def _joined(cluster: Cluster, output: OutputFlags) -> Iterator[Joined]:
    with ExitStack() as left:
        with console.progress(output.quiet) as spinner:
            spinner.say("joining the Ray cluster" if cluster.address != "local" else "starting Ray")
            joined = left.enter_context(cluster.joined())
        if not output.quiet:
            console.note(_described(joined))
        yield joined


def _described(joined: Joined) -> str:
    pool = str(joined.most) if joined.fewest == joined.most else f"{joined.fewest} to {joined.most}"
    kind = "a GPU each" if joined.on_gpus else "on CPUs"
    where = f"; dashboard: http://{joined.dashboard}" if joined.dashboard else ""
    return (
        f"Ray, {_count(joined.nodes, 'node')}: {pool} worker{'s' * (pool != '1')} with a model, {kind};"
        f" {_count(joined.readers, 'reader')}{where}"
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


class _Meter(Meter):
    """Counts as the other one does, and tells the rates of the stages."""

    def __init__(self, progress: Progress, *, quiet: bool) -> None:
        super().__init__(0, "videos", Pace(), quiet=quiet)
        self._progress = progress
        self._at, self._then, self._told = time.monotonic(), Tally(), list[str]()

    def show(self) -> None:
        """Bring what is shown up to date."""
        self.expect(self._progress.tally.found)
        super().show()

    def _stages(self) -> list[str]:
        tally, passed = self._progress.tally, time.monotonic() - self._at
        if passed >= _WINDOW_SECONDS or not self._told:
            self._told = [
                f"{verb} {(tally.units[stage] - self._then.units[stage]) / passed:.1f}/s by {tally.workers[stage]}"
                for stage, verb in _VERBS.items()
                if tally.workers[stage]
            ]
            if tally.struck:
                self._told.append(f"{tally.struck} videos tried again after a worker died")
            self._at, self._then = time.monotonic(), replace(tally, units=dict(tally.units))
        return self._told


def _sum_up(meter: Meter, tally: Tally, stop: Event, errors: Failures | None) -> None:
    parts = [f"{meter.done} captioned"]
    if tally.done_before:
        parts.append(f"{tally.done_before} done before")
    if meter.failed:
        parts.append(f"{meter.failed} failed" + (f" (see {errors.path})" if errors is not None else ""))
    if stop.is_set():
        parts.append("stopped: the same command goes on")
    console.note(", ".join(parts))
