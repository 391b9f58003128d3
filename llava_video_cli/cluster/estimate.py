"""What a run on a cluster would do and cost: its input is looked through, and a sample of it is done and measured."""

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
from .pipeline import Progress, entries_of, run
from .session import Joined

SAMPLE = 64  # videos: enough to fill a batch
_HOUR_SECONDS = 3600.0


@dataclass(frozen=True)
class Estimate:
    """A plan in numbers.

    `todo` videos are left, `done` stand in the output, `unreadable` can't be found. Of a `sample`, of which `failed`
    came to nothing, a video took `read_seconds` of a reader and `answer_seconds` of a worker with a model, without
    the time that Ray and the model take to start.
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
        """What all of it takes of a worker with a model, and so of a GPU."""
        return self.todo * self.answer_seconds / _HOUR_SECONDS

    @property
    def readers_each(self) -> float:
        """How many readers, and so cores, keep one worker with a model busy."""
        return self.read_seconds / self.answer_seconds if self.answer_seconds else 0.0

    def hours(self, workers: int, readers: int) -> float:
        """How long it takes with that many, the slower stage deciding."""
        return self.todo * max(self.answer_seconds / workers, self.read_seconds / readers) / _HOUR_SECONDS


def estimate(
    paths: Iterable[str],
    task: Task,
    joined: Joined,
    *,
    open_model: Callable[[], Model],
    open_resize: Callable[[], Resize],
    done: set[str],
    seed: int = 0,
    **options: Any,
) -> Estimate:
    """Return the estimate of a run; its arguments are those of `scale.run`. Nothing is written.

    Raises LlvidError as `scale.run` does, and if nothing of the sample could be answered.
    """
    progress, draw = Progress(), random.Random(seed)
    opened = {"open_model": open_model, "open_resize": open_resize}
    plan, sample = Estimate(0, 0, 0), list[str]()
    looked: dict[str, Any] = {name: options[name] for name in ("home", "folder", "recursive") if name in options}
    for entry in entries_of(paths, task, done=done, progress=progress, **looked):
        if entry.error is not None:
            plan = replace(plan, unreadable=plan.unreadable + 1)
            continue
        plan = replace(plan, todo=plan.todo + 1)
        at = draw.randrange(plan.todo)  # each is as likely to be in the sample
        if len(sample) < SAMPLE:
            sample.append(entry.path)
        elif at < SAMPLE:
            sample[at] = entry.path
    plan = replace(plan, done=progress.tally.done_before)
    if not sample:
        return plan
    fixed = {"batch_size": SAMPLE, **{name: value for name, value in options.items() if value is not None}}
    one = replace(joined, fewest=1, most=1)
    outcomes = list(run(sample, task, one, done=set(), progress=progress, **{**fixed, **opened}))
    failures = [outcome for outcome in outcomes if isinstance(outcome, Failure)]
    if len(failures) == len(outcomes):
        raise LlvidError(f"none of {len(sample)} videos could be done, such as {failures[0].cause}")
    seconds, count = progress.tally.seconds, len(outcomes)
    return replace(
        plan,
        sample=count,
        failed=len(failures),
        read_seconds=seconds["read"] / count,
        answer_seconds=seconds["answer"] / (count - len(failures)),
    )
