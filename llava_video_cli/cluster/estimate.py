"""What a run on a cluster would do and cost: its input is listed, and a sample of it is processed and measured."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

from ..errors import LlvidError
from ..model import Model
from ..runs.caption import Task
from ..runs.record import Failure
from ..video import Resize
from .pipeline import LiveProgress, list_inputs, run
from .session import ClusterSession

SAMPLE_VIDEOS = 64  # enough to fill a batch
_HOUR_SECONDS = 3600.0


@dataclass(frozen=True)
class ClusterEstimate:
    """What a run would do and cost.

    `todo` videos are left, `done` stand in the output, `unreadable` can't be found. `sample` videos were processed, and
    `failed` of them failed. On average a video took a reader `read_seconds`, and a worker with a model
    `answer_seconds`. The time that Ray and the model take to start is not included.
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
        return self.todo * self.answer_seconds / _HOUR_SECONDS

    @property
    def readers_per_worker(self) -> float:
        """How many readers, and so cores, keep one worker with a model busy."""
        return self.read_seconds / self.answer_seconds if self.answer_seconds else 0.0

    def hours(self, workers: int, readers: int) -> float:
        """How long so many workers and readers take; the slower stage decides."""
        return self.todo * max(self.answer_seconds / workers, self.read_seconds / readers) / _HOUR_SECONDS


def estimate(
    paths: Iterable[str],
    task: Task,
    session: ClusterSession,
    *,
    open_model: Callable[[], Model],
    open_resize: Callable[[], Resize],
    done: set[str],
    seed: int = 0,
    **options: Any,
) -> ClusterEstimate:
    """Return the estimate of a run; the arguments are those of `pipeline.run`. Nothing is written.

    Raises LlvidError as `run` does, and if every video of the sample failed.
    """
    progress, rng = LiveProgress(), random.Random(seed)
    listing = {name: options[name] for name in ("output_folder", "working_folder", "recursive") if name in options}
    todo = unreadable = 0
    sample: list[str] = []
    for video in list_inputs(paths, task, done=done, progress=progress, **listing):
        if video.error is not None:
            unreadable += 1
            continue
        todo += 1
        index = rng.randrange(todo)  # reservoir sampling: each video is as likely to be in the sample
        if len(sample) < SAMPLE_VIDEOS:
            sample.append(video.path)
        elif index < SAMPLE_VIDEOS:
            sample[index] = video.path
    counts = ClusterEstimate(todo, progress.latest.done_before, unreadable)
    if not sample:
        return counts
    one_worker = replace(session, min_workers=1, max_workers=1)
    options = {"batch_size": SAMPLE_VIDEOS} | {name: value for name, value in options.items() if value is not None}
    outcomes = list(
        run(
            sample, task, one_worker, open_model=open_model, open_resize=open_resize, done=set(), progress=progress,
            **options,
        )
    )  # fmt: skip
    failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    if len(failures) == len(outcomes):
        raise LlvidError(f"none of {len(sample)} videos could be processed, for example {failures[0].cause}")
    seconds, count = progress.latest.seconds, len(outcomes)
    return replace(
        counts,
        sample=count,
        failed=len(failures),
        read_seconds=seconds["read"] / count,
        answer_seconds=seconds["answer"] / (count - len(failures)),
    )
