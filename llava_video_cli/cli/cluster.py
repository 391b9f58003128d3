"""`--ray`: the same records and messages, from a Ray cluster."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

from ..cluster import ClusterEstimate, ClusterOutput, ClusterRun, caption_on_cluster, estimate, open_output
from ..cluster.failures import ClusterProgress, Stage
from ..cluster.pipeline import LiveProgress
from ..cluster.session import Cluster, ClusterSession
from ..errors import MediaError, UsageError
from ..inference import open_model, open_resize
from ..runs.answers import RunPace
from ..runs.caption import Task
from ..runs.parts import is_folder
from ..runs.record import CutNote, Record
from ..runs.table import parse_where
from ..video.limits import Limits
from . import console
from .options import ClusterFlags, OutputFlags, RunFlags
from .run import Executor, Meter, confirm_overwrite, cut_off, exit_code, one_more_chance, show_outcome
from .settings import Settings

_RATE_WINDOW_SECONDS = 10.0
_VERBS: dict[Stage, str] = {"read": "reading", "answer": "answering"}


def cluster_executor(flags: ClusterFlags, settings: Settings, output: OutputFlags) -> Executor:
    """Return what answers requests on the cluster that flags name; raises UsageError."""
    check_flags(flags, settings)
    if flags.dry_run:
        raise UsageError("--dry-run is for `llvid caption`")
    progress = LiveProgress()
    connect = partial(_connect, _cluster(flags, settings.loading.device), output)
    make_run = partial(ClusterRun, connect=connect, progress=progress)
    return Executor(make_run, partial(_ClusterMeter, progress), Settings.resolved)


def check_flags(flags: ClusterFlags, settings: Settings) -> None:
    """Raise UsageError for flags that don't go together."""
    if settings.remote is not None:
        raise UsageError("use --ray or --server, not both", "several servers share a folder without Ray")
    if flags.ray is None:
        given = next(name for name in ("gpus", "readers", "dry_run") if getattr(flags, name)).replace("_", "-")
        raise UsageError(f"--{given} needs --ray", "add --ray auto or --ray local")
    address = os.environ.get("RAY_ADDRESS", "") if flags.ray == "auto" else flags.ray
    if address.startswith("ray://"):
        host = address.removeprefix("ray://").rpartition(":")[0] or "HEAD"
        raise UsageError(
            f"llvid can't use a Ray client address ({address}): submit the command as a job of the cluster",
            f"ray job submit --address http://{host}:8265 -- "
            "llvid caption /shared/clips -o /shared/captions.jsonl --ray auto",
        )
    if flags.ray not in ("auto", "local"):
        raise UsageError(f"--ray must be auto or local, got {flags.ray!r}")


def on_cluster(
    paths: Sequence[str],
    to: str | None,
    task: Task,
    settings: Settings,
    output: OutputFlags,
    pacing: RunFlags,
    flags: ClusterFlags,
    *,
    recursive: bool,
    as_video: bool,
    where: str | None = None,
) -> int:
    """Caption the videos that are not done yet; return the exit code. `where` is as in `caption_folder`."""
    cluster = _cluster(flags, settings.loading.device)
    if pacing.overwrite and to is not None and not is_folder(to):
        confirm_overwrite(Path(to), output)
    with ExitStack() as stack:
        choices = task.preset.generation.choices
        condition = None if where is None else parse_where(where, choices)
        records = stack.enter_context(
            open_output(to, overwrite=pacing.overwrite, scored=bool(choices), where=condition)
        )
        session = _connect(cluster, output, stack)
        options: dict[str, Any] = {
            "open_model": partial(open_model, settings.model, settings.resolved().loading, settings.revision),
            "open_resize": partial(open_resize, settings.model, settings.revision),
            "recursive": recursive,
            "as_video": as_video,
            "limits": Limits(seconds=pacing.timeout),
            "batch_size": pacing.batch_size,
        }
        if flags.dry_run:
            result = estimate(paths, task, session, done=records.done, output_folder=records.folder, **options)
            _show(result, session, output)
            return 0
        stop, progress = Event(), LiveProgress()
        meter, cut = _ClusterMeter(progress, 0, "videos", RunPace(), quiet=output.quiet), CutNote()
        run = caption_on_cluster(paths, task, session, records, stop=stop, progress=progress, **options)
        with closing(run) as outcomes, meter, meter.lines(), one_more_chance(stop, output) as signals:
            for outcome in outcomes:
                if records.files is None:
                    show_outcome(outcome, as_json=output.json)
                meter.count(outcome)
                output.note(*(cut.lines(outcome.values.get("frames")) if isinstance(outcome, Record) else ()))
        output.note(_summary(meter, progress.latest, stop, records))
    if not (signals or meter.done or meter.failed or progress.latest.done_before):
        raise MediaError("there are no videos or pictures in the given paths")
    return exit_code(signals, meter.failed)


def _show(result: ClusterEstimate, session: ClusterSession, output: OutputFlags) -> None:
    """Write the estimate to stdout."""
    workers, readers = session.max_workers, session.readers
    hours = result.hours(workers, readers)
    if output.json:
        values = asdict(result) | {"workers": workers, "readers": readers, "on_gpus": session.on_gpus}
        console.write_json(values | {"worker_hours": result.worker_hours, "hours": hours})
        return
    kind = "GPU" if session.on_gpus else "worker"
    lines = [f"{result.todo:,} videos to do, {result.done:,} done before, {result.unreadable:,} not found"]
    if result.sample:
        lines += [
            f"measured on {result.sample} of them ({result.failed} failed): a video takes {result.read_seconds:.3g} s"
            f" of a core to read, {result.answer_seconds:.3g} s of a {kind} to answer",
            f"in total {_duration(result.worker_hours)} of one {kind}, or {_duration(hours)} with"
            f" {_count(workers, kind)} and {_count(readers, 'reader')};"
            f" {result.readers_per_worker:.2g} readers keep one {kind} busy",
        ]
    console.write("\n".join(lines) + "\n")


def _duration(hours: float) -> str:
    if hours >= 1:
        return f"{hours:,.3g} hours" if hours < 1000 else f"{hours:,.0f} hours"
    return f"{60 * hours:.3g} minutes" if hours >= 1 / 60 else f"{3600 * hours:.3g} seconds"


def _cluster(flags: ClusterFlags, device: str) -> Cluster:
    lowest, highest = 1, None
    if flags.gpus is not None:
        match = re.fullmatch(r"(\d+)(?:-(\d+))?", flags.gpus)
        lowest, highest = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
        if not 1 <= lowest <= highest:
            raise UsageError(f"--gpus must be a number above 0, or MIN-MAX, got {flags.gpus!r}")
    return Cluster(flags.ray or "auto", lowest, highest, flags.readers, device)


def _connect(cluster: Cluster, output: OutputFlags, stack: ExitStack) -> ClusterSession:
    """Connect until the stack is closed, and note what the run uses."""
    with console.progress(output.quiet) as spinner:
        spinner.say("connecting to the Ray cluster" if cluster.address != "local" else "starting Ray")
        session = stack.enter_context(cluster.connected())
    low, high = session.min_workers, session.max_workers
    workers = _count(high, "worker") if low == high else f"{low} to {high} workers"
    kind = "a GPU each" if session.on_gpus else "on CPUs"
    dashboard = f"; dashboard: http://{session.dashboard}" if session.dashboard else ""
    readers = _count(session.readers, "reader")
    output.note(f"Ray, {_count(session.nodes, 'node')}: {workers} with a model, {kind}; {readers}{dashboard}")
    return session


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


class _ClusterMeter(Meter):
    """A meter that also shows the rate of each stage."""

    def __init__(self, progress: LiveProgress, total: int, noun: str, pace: RunPace, *, quiet: bool) -> None:
        super().__init__(total, noun, pace, quiet=quiet)
        self._progress = progress
        self._before, self._before_at, self._words_shown = ClusterProgress(), time.monotonic(), list[str]()

    def show(self) -> None:
        """Update the display."""
        if self._progress.latest.to_do:  # videos that workers have listed
            self.expect(self._progress.latest.to_do)
        super().show()

    def _stages(self) -> list[str]:
        now, seconds = self._progress.latest, time.monotonic() - self._before_at
        if seconds >= _RATE_WINDOW_SECONDS or not self._words_shown:
            self._words_shown = [
                f"{verb} {(now.units[stage] - self._before.units[stage]) / seconds:.1f}/s ({_count(workers, 'worker')})"
                for stage, verb in _VERBS.items()
                if (workers := now.workers[stage])
            ]
            if now.retried:
                self._words_shown.append(f"{now.retried} videos tried again after a worker died")
            self._before, self._before_at = now, time.monotonic()
        return self._words_shown


def _summary(meter: Meter, progress: ClusterProgress, stop: Event, records: ClusterOutput) -> str:
    parts = [f"{meter.done} captioned{cut_off(meter.cut)}"]
    if progress.done_before:
        parts.append(f"{progress.done_before} done before")
    if meter.failed:
        parts.append(f"{meter.failed} failed" + (f" (see {records.files[1].path})" if records.files else ""))
    if stop.is_set():
        parts.append("stopped: run the same command to continue")
    return ", ".join(parts)
