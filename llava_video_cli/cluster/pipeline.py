"""The stages of a run as a Ray Data pipeline: its workers list the input, read the videos, and answer.

Ray Data streams between the stages, holds a stage back when the next one is slower, grows and shrinks the pool of
actors, and starts again what was lost with a worker or a node. The `AttemptLog` (failures.py) tells it which videos to
give up. Only records reach the process that started the run.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import LlvidError, first_line, last_line
from ..model import Model
from ..runs.caption import CaptionJob, Task
from ..runs.inputs import Part, parts
from ..runs.prefetch import JobRequest, Result
from ..runs.record import Failure, Record, path_to_text
from ..video import Resize
from ..video.limits import Limits
from .failures import AttemptLog, ClusterProgress
from .session import ClusterSession
from .stage_messages import COLUMN, FatalError, InputVideo, StageContext, VideoAnswer, pack, table, values_of

_WATCH_SECONDS, _LAST_WATCH_SECONDS = 0.5, 5.0
_KEY_DIGITS = 32
_MIN_QUESTIONS, _MAX_QUESTIONS = 8, 64  # that an actor gets at a time
_QUESTIONS_BYTES = 2**29
_READER_BYTES = 2**29  # of a reader's process; a memory figure of its own keeps Ray from fusing the two stages
_FRAME_BYTES = 336 * 336 * 3  # of the published checkpoints
_TABLES: dict[str, Any] = {"batch_format": "pyarrow", "zero_copy_batch": True}


@dataclass
class LiveProgress:
    """The progress of a run, updated twice a second."""

    latest: ClusterProgress = field(default_factory=ClusterProgress)


def run(
    paths: Iterable[str],
    task: Task,
    session: ClusterSession,
    *,
    open_model: Callable[[], Model],
    open_resize: Callable[[], Resize],
    done: set[str],
    output_folder: str,
    working_folder: str | None = None,
    recursive: bool = False,
    limits: Limits | None = None,
    batch_size: int | None = None,
    stop: threading.Event | None = None,
    progress: LiveProgress | None = None,
) -> Generator[Record | Failure, None, None]:
    """Yield the outcome of each video that the paths name and whose key is not in `done`; new keys are added to it.

    Relative paths are relative to `working_folder`, keys use paths as seen from `output_folder`. Call this in the block
    of `Cluster.connected`. `open_model` and `open_resize` (which is its `shrink` without the weights) are called in the
    workers. Once `stop` is set, what is running is finished and nothing more begins. Raises LlvidError for what ends a
    run: a model that can't be loaded, a cluster that is lost.
    """
    import ray

    stop, progress = stop or threading.Event(), progress or LiveProgress()
    limits = replace(limits or Limits(), cores=1)
    folder = working_folder or str(Path.cwd())
    failed: set[str] = set()
    with _attempt_log(stop, progress) as attempts:
        context = StageContext(
            uuid.uuid4().hex, task, folder, output_folder, limits, open_model, open_resize, attempts, None, batch_size
        )
        while True:
            assembler, count = _OutcomeAssembler(task, done, failed), 0
            inputs = list(enumerate(parts(paths, recursive=recursive)))
            finished = done | {key for key in failed if len(key) == _KEY_DIGITS}
            attempt = replace(context, done=_shared_keys(finished))
            try:
                answers = _answers(inputs, attempt, session, batch_size or _questions_per_call(task))
                for outcome in assembler.outcomes(answers):
                    count += 1
                    yield outcome
                return
            except ray.exceptions.RayError as error:
                _check_can_retry(error, count)  # Ray Data could not recover by itself: run again with what is left


def list_inputs(
    paths: Iterable[str],
    task: Task,
    *,
    done: set[str],
    output_folder: str,
    working_folder: str | None = None,
    recursive: bool = False,
    progress: LiveProgress,
) -> Iterator[InputVideo]:
    """Yield the videos that `run` would process; at the end, `progress` has the number of those that are done."""
    import ray

    inputs = list(enumerate(parts(paths, recursive=recursive)))
    with _attempt_log(threading.Event(), progress) as attempts:
        folder = working_folder or str(Path.cwd())
        context = StageContext(
            "", task, folder, output_folder, Limits(), _not_opened, _not_opened, attempts, _shared_keys(done), None
        )
        try:
            for rows in _listing(inputs, context).iter_batches(batch_size=None, batch_format="pyarrow"):
                yield from values_of(rows)
        except ray.exceptions.RayError as error:
            _check_can_retry(error, 0)
        progress.latest = ray.get(attempts.progress.remote())


class _OutcomeAssembler:
    """Joins the answers about each video to its outcome, and drops what an earlier attempt has yielded."""

    def __init__(self, task: Task, done: set[str], failed: set[str]) -> None:
        self._task, self._done, self._failed = task, done, failed
        self._results: dict[str, list[tuple[JobRequest, Result]]] = {}
        self._last_answers: dict[str, VideoAnswer] = {}
        self._settings: Mapping[str, Any] = {}

    def outcomes(self, answers: Iterable[VideoAnswer | FatalError]) -> Iterator[Record | Failure]:
        for answer in answers:
            if isinstance(answer, FatalError):
                raise answer.error
            video = answer.video
            name = video.key or video.path
            if name in self._done or name in self._failed:
                continue
            if video.error is not None:
                self._failed.add(name)
                yield Failure({"video_path": path_to_text(video.path)}, video.error)
                continue
            self._settings = answer.settings or self._settings
            if answer.question is not None and answer.result is not None:
                self._results.setdefault(name, []).append((answer.question, answer.result))
            if answer.count is not None:
                self._last_answers[name] = answer
            yield from self._complete(name)

    def _complete(self, name: str) -> Iterator[Record | Failure]:
        from .workers import no_budget

        last = self._last_answers.get(name)
        if last is None or len(self._results.get(name, ())) != last.count:
            return
        del self._last_answers[name]
        job = CaptionJob(last.video.path, name, self._task, self._settings, no_budget)
        for outcome in job.outcomes(self._results.pop(name, []), last.error):
            (self._done if isinstance(outcome, Record) else self._failed).add(name)
            yield outcome


def _listing(inputs: list[tuple[int, Part]], context: StageContext) -> Any:
    """Return the first stage, as a data set of videos."""
    import ray

    from .workers import list_videos

    tables = ray.data.from_arrow([table([numbered_part]) for numbered_part in inputs])
    return tables.map_batches(list_videos, batch_size=1, fn_args=(context,), num_cpus=1, **_TABLES)


def _answers(
    inputs: list[tuple[int, Part]], context: StageContext, session: ClusterSession, questions_per_call: int
) -> Iterator[VideoAnswer | FatalError]:
    """Yield the output of the last stage, as it comes."""
    import ray

    from .workers import VIDEOS_PER_READ_TASK, ModelWorker, read

    if not inputs:
        return
    model_worker = {"num_gpus": 1} if session.on_gpus else {"num_cpus": session.cores_per_worker}
    questions = (
        _listing(inputs, context)
        .repartition(target_num_rows_per_block=VIDEOS_PER_READ_TASK)
        .map_batches(
            read,
            batch_size=VIDEOS_PER_READ_TASK,
            fn_args=(context,),
            num_cpus=1,
            memory=_READER_BYTES,
            concurrency=session.readers,
            **_TABLES,
        )
    )
    answers = questions.map_batches(
        ModelWorker,
        batch_size=questions_per_call,
        fn_constructor_args=(context,),
        compute=ray.data.ActorPoolStrategy(min_size=session.min_workers, max_size=session.max_workers),
        **model_worker,
        **_TABLES,
    )
    # no prefetch: an answer is written at once and does not wait for the next one
    for rows in answers.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        if COLUMN in rows.column_names:
            yield from values_of(rows)


def _watch(attempts: Any, stop: threading.Event, finished: threading.Event, progress: LiveProgress) -> None:
    import ray

    stop_sent = False
    while not finished.wait(_WATCH_SECONDS):
        try:
            if stop.is_set() and not stop_sent:
                ray.get(attempts.stop.remote())
                stop_sent = True
            progress.latest = ray.get(attempts.progress.remote(), timeout=5)
        except ray.exceptions.RayError:
            continue


@contextmanager
def _attempt_log(stop: threading.Event, progress: LiveProgress) -> Iterator[Any]:
    """Give the actor with the AttemptLog, on the node that started the run: it lives as long as the run."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    attempts: Any = ray.remote(AttemptLog).options(num_cpus=0, scheduling_strategy=here).remote()
    finished = threading.Event()
    watcher = threading.Thread(
        target=_watch, args=(attempts, stop, finished, progress), name="llvid-watch", daemon=True
    )
    watcher.start()
    try:
        yield attempts
        with suppress(ray.exceptions.RayError):
            progress.latest = ray.get(attempts.progress.remote(), timeout=_LAST_WATCH_SECONDS)
    finally:
        finished.set()
        watcher.join()
        ray.kill(attempts)


def _shared_keys(keys: Iterable[str]) -> Any:
    """Return a Ray reference to packed keys."""
    import ray

    return ray.put(memoryview(pack(keys)))


def _check_can_retry(error: Exception, outcomes: int) -> None:
    """Raise an error that ends the run; return if the rest may be tried again, after so many outcomes."""
    from ray.exceptions import RaySystemError, RayTaskError

    if isinstance(error, RayTaskError) and isinstance(error.cause, RaySystemError):
        raise LlvidError(
            f"the workers can't read their tasks: {last_line(error.cause)}", "install the same llvid on every node"
        ) from None
    if isinstance(error, RayTaskError):
        raise error  # a bug of ours
    if not outcomes:
        raise LlvidError(f"the cluster failed: {first_line(error)}", "run the same command again to resume") from None


def _questions_per_call(task: Task) -> int:
    frames = task.preset.sampling.frames or 32
    return max(_MIN_QUESTIONS, min(_MAX_QUESTIONS, _QUESTIONS_BYTES // (frames * _FRAME_BYTES)))


def _not_opened() -> Any:
    """Stand in for the model, which the listing of the input does not need."""
    raise AssertionError("the input is only listed")
