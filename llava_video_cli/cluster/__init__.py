"""Runs on a Ray cluster, with the same records as on one machine, and an estimate of the cost of captions.

For captions, connect with `Cluster.connected`, open the output with `open_output`, and iterate over
`caption_on_cluster`. A `ClusterRun` takes the place of the `AnsweredRun` of a file of requests or a question set.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

from ..errors import LlvidError, UsageError
from ..inference import open_model as _open_model
from ..inference import open_resize as _open_resize
from ..model import Model
from ..preset import Preset
from ..runs.caption import Task
from ..runs.formats import TABLES, check_parquet
from ..runs.ledger import Errors
from ..runs.parts import PartErrors, PartFiles, is_folder
from ..runs.preflight import ModelSource
from ..runs.record import Failure, Record
from ..runs.resumable import ResumableRun, RunOptions, RunPlan
from ..runs.storage import is_address
from ..runs.table import Table, Where, open_table
from ..video.fit import FrameResize
from .pipeline import LiveProgress, list_inputs, no_limit, run, run_jobs
from .session import ClusterSession

_SAMPLE_VIDEOS = 64  # that an estimate is measured on: enough to fill a batch


@dataclass(frozen=True)
class ClusterOutput:
    """Where outcomes are written, if anywhere. Keys use paths as seen from `folder`."""

    folder: str
    files: tuple[Table, Errors] | tuple[PartFiles, PartErrors] | None = None

    @property
    def done(self) -> set[str]:
        """The keys of the records that it holds."""
        return self.files[0].done if self.files else set()


@contextmanager
def open_output(
    to: str | None, *, overwrite: bool = False, scored: bool = False, where: Where | None = None
) -> Iterator[ClusterOutput]:
    """Open the output of a run: a file, a folder of parts, or a bucket; with None, nothing is written.

    `scored` and `where` are as in `open_table`. Raises UsageError for a file of another kind, and LlvidError for one
    that can't be written.
    """
    if where and (to is None or is_folder(to)):
        raise UsageError("--where needs a table: a file with -o")
    if to is None:
        yield ClusterOutput(os.getcwd())  # noqa: PTH109 - as a run on one machine sees it
    elif is_folder(to):
        check_parquet()
        with PartFiles(to, overwrite=overwrite) as parts:
            folder = "/" if is_address(to) else os.path.abspath(to)  # noqa: PTH100 - links in a path stay
            yield ClusterOutput(folder, (parts, PartErrors(parts)))
    elif Path(to).suffix.lower() not in TABLES:
        raise UsageError(
            f"{to} must end in {', '.join(TABLES)}, or be a folder/ or an address such as s3://bucket/name"
        )
    else:
        with open_table(Path(to), overwrite=overwrite, scored=scored, where=where) as ledger:
            if overwrite:
                ledger.begin()  # anew: which records of an earlier run this one would make isn't known
            folder = os.path.abspath(Path(to).parent)  # noqa: PTH100
            yield ClusterOutput(folder, (ledger, Errors(Path(to), overwrite=overwrite)))


def caption_on_cluster(
    paths: Iterable[str],
    task: Task,
    session: ClusterSession,
    output: ClusterOutput,
    *,
    stop: Event | None = None,
    **options: Any,
) -> Generator[Record | Failure, None, None]:
    """Caption the videos that are not done yet, and yield each outcome once it is written.

    The other arguments are those of `pipeline.run`. Raises LlvidError for what ends the run: a model that can't be
    loaded, a lost cluster, a full disk, a prompt that is too long for any video.
    """
    records, failures = output.files or (None, None)
    if records and failures:
        records.begin()
        failures.begin()
    try:
        for outcome in run(paths, task, session, done=output.done, output_folder=output.folder, stop=stop, **options):
            if isinstance(outcome, Failure):
                if task.is_fatal(outcome.cause):
                    raise outcome.cause
                if records and failures:
                    records.replace(outcome.request_key)
                    failures.append(outcome)
            elif records and failures:
                records.append(outcome)
                failures.succeeded(outcome)
            yield outcome
        if records and not (stop and stop.is_set()):
            records.complete()
    finally:
        if failures:
            failures.close()


class ClusterRun(ResumableRun):
    """A run whose requests are read and answered on a cluster; the first arguments are those of `AnsweredRun`.

    `connect` is called if there is something to answer; what it opens is closed with the run. Workers load the model of
    `source`, unless `open_model` and `open_resize` are given.
    """

    def __init__(
        self,
        plan: RunPlan,
        source: ModelSource,
        preset: Preset,
        output: tuple[Table, Errors] | None = None,
        *,
        options: RunOptions,
        opened: ExitStack | None = None,
        connect: Callable[[ExitStack], ClusterSession],
        progress: LiveProgress | None = None,
        open_model: Callable[[], Model] | None = None,
        open_resize: Callable[[], FrameResize] | None = None,
    ) -> None:
        super().__init__(plan, output, options=options, opened=opened)
        self._preset, self._connect, self._progress = preset, connect, progress
        self._open_model = open_model or partial(_open_model, source.name, source.loading, source.revision)
        self._open_resize = open_resize or partial(_open_resize, source.name, source.revision)
        self._session: ClusterSession | None = None

    def _load(self) -> None:
        self._session = self._connect(self._opened)

    def _outcomes(self) -> Iterable[Record | Failure]:
        if self._session is None:
            return ()
        settings: dict[str, Any] = {}
        return run_jobs(
            self._plan.jobs(settings, no_limit), settings, self._preset, self._session,
            open_model=self._open_model, open_resize=self._open_resize, limits=self._options.limits,
            batch_size=self._options.batch_size, stop=self.stop, progress=self._progress,
            speech_models=tuple(dict.fromkeys(part.speech_model for _, part in self._plan.said)),
        )  # fmt: skip


@dataclass(frozen=True)
class ClusterEstimate:
    """What a run would do, and how long it would take, without the time that Ray and the model need to start.

    `todo` videos are left, `done` are in the output, `unreadable` can't be found. `sample` videos were processed, of
    which `failed` failed. The average video took a reader `read_seconds`, and a worker with a model `answer_seconds`.
    """

    todo: int
    done: int
    unreadable: int
    sample: int = 0
    failed: int = 0
    read_seconds: float = 0.0
    answer_seconds: float = 0.0

    @property
    def worker_hours(self) -> float:
        """The time that one worker with a model, and so one GPU, takes for all videos."""
        return self.todo * self.answer_seconds / 3600

    @property
    def readers_per_worker(self) -> float:
        """How many readers, and so cores, keep one worker with a model busy."""
        return self.read_seconds / self.answer_seconds if self.answer_seconds else 0.0

    def hours(self, workers: int, readers: int) -> float:
        """How long so many workers and readers take; the slower stage decides."""
        return self.todo * max(self.answer_seconds / workers, self.read_seconds / readers) / 3600


def estimate(
    paths: Iterable[str],
    task: Task,
    session: ClusterSession,
    *,
    done: set[str],
    output_folder: str,
    recursive: bool = False,
    as_video: bool = False,
    **options: Any,
) -> ClusterEstimate:
    """List the input, run a sample of it, and return the estimate; the arguments are those of `pipeline.run`.

    Nothing is written. Raises LlvidError as `run` does, and if every video of the sample failed.
    """
    progress, rng = LiveProgress(), random.Random(0)
    todo = unreadable = 0
    sample: list[str] = []
    for video in list_inputs(
        paths, task, done=done, output_folder=output_folder, recursive=recursive, as_video=as_video, progress=progress
    ):
        if video.error is not None:
            unreadable += 1
            continue
        todo += 1
        if len(sample) < _SAMPLE_VIDEOS:
            sample.append(video.path)
        elif (index := rng.randrange(todo)) < _SAMPLE_VIDEOS:  # each video is as likely to be in the sample
            sample[index] = video.path
    counts = ClusterEstimate(todo, progress.latest.done_before, unreadable)
    if not sample:
        return counts
    options |= {"batch_size": options.get("batch_size") or _SAMPLE_VIDEOS, "as_video": as_video}
    one_worker = replace(session, min_workers=1, max_workers=1)
    outcomes = list(
        run(sample, task, one_worker, done=set(), output_folder=output_folder, progress=progress, **options)
    )
    causes = [outcome.cause for outcome in outcomes if isinstance(outcome, Failure)]
    if len(causes) == len(outcomes):
        raise LlvidError(f"none of {len(sample)} videos could be processed; the first error: {causes[0]}")
    seconds, count = progress.latest.seconds, len(outcomes)
    return replace(
        counts,
        sample=count,
        failed=len(causes),
        read_seconds=seconds["read"] / count,
        answer_seconds=seconds["answer"] / (count - len(causes)),
    )
