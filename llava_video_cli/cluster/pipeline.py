"""The stages of a run as a Ray Data pipeline: its workers list the input, read the videos, and answer.

Where the jobs are known, as those of a file of requests, nothing is listed.

Ray Data streams between the stages, slows a stage down when the next one is slower, changes the number of actors, and
repeats what was lost with a worker or a node. The `AttemptLog` (failures.py) decides which videos to give up. Only
records reach the process that started the run.
"""

from __future__ import annotations

import pickle
import sys
import threading
import uuid
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from ..conversation import Request
from ..errors import LlvidError, first_line, last_line
from ..model import Model
from ..preset import Preset
from ..prompt.budget import Budget
from ..runs.caption import CaptionJob, Task
from ..runs.inputs import Part, parts
from ..runs.prefetch import Job, JobRequest, Result
from ..runs.record import Failure, Record, path_to_text
from ..video.fit import FrameResize
from ..video.limits import Limits
from ..video.sampling import Sampling
from .failures import AttemptLog, ClusterProgress
from .session import ClusterSession

_WATCH_SECONDS, _ASK_SECONDS = 0.5, 5.0
_KEY_DIGITS = 32
_MIN_QUESTIONS, _MAX_QUESTIONS = 8, 64  # that an actor gets at a time
_QUESTIONS_BYTES = 2**29
_READER_BYTES = 2**29  # of a reader's process; a memory figure of its own keeps Ray from fusing the two stages
_SPEECH_BYTES = 2**30  # of its speech model: `small` and an hour of sound take 0.6 GB
_FRAME_BYTES = 336 * 336 * 3  # of the published checkpoints
_COLUMN = "row"
_TABLES: dict[str, Any] = {"batch_format": "pyarrow", "zero_copy_batch": True}


@dataclass(frozen=True)
class StageContext:
    """What every worker of a run gets.

    `run_id` differs between runs that share a worker. Relative paths start at `working_folder`, where the run was
    started; keys use paths as seen from `output_folder`. `attempts` is the Ray actor that holds the `AttemptLog`,
    `done` a Ray reference to the packed keys of finished videos. `task` is what is asked about each video, None where
    each brings its job. `speech_models` are those that readers need.
    """

    run_id: str
    task: Task | None
    preset: Preset
    working_folder: str
    output_folder: str
    limits: Limits
    open_model: Callable[[], Model]
    open_resize: Callable[[], FrameResize]
    attempts: Any
    done: Any
    batch_size: int | None
    as_video: bool = False
    speech_models: tuple[str, ...] = ()


@dataclass(frozen=True)
class InputVideo:
    """A video of the input, with the key of its record; one that can't be found has an error and no key.

    `job` says what is asked about it, unless that is the task of the run. Only readers have it.
    """

    path: str
    key: str
    error: LlvidError | None = None
    job: Job | None = None


@dataclass(frozen=True)
class VideoMessage:
    """A question about a video; after the last stage without its frames, and with its result.

    The last question of a video has the `count` of all of them, and the error that ended the reading, if any. A video
    without questions has one such message, with a count of 0 and no `question`. An LlvidError in the place of messages
    ends the run.
    """

    video: InputVideo
    number: int = 0
    question: JobRequest | None = None
    count: int | None = None
    error: LlvidError | None = None
    result: Result | None = None
    settings: Mapping[str, Any] | None = None


Listing: TypeAlias = Callable[[set[str]], Any]  # the data set of a run's videos, without those of these keys
JobOf: TypeAlias = Callable[[InputVideo, Mapping[str, Any]], Job]  # of a video, with the settings for its record


def table(values: Iterable[Any]) -> Any:
    """Return values as a table of pickles."""
    import pyarrow as arrow

    return arrow.table({_COLUMN: arrow.array([pickle.dumps(value, 5) for value in values], arrow.large_binary())})


def values_of(rows: Any) -> list[Any]:
    """Return the values of a table that another process of the same run made."""
    return [pickle.loads(row.as_buffer()) for row in rows.column(_COLUMN)]


class PackedKeys:
    """A set of keys as sorted blocks of 16 bytes, searched by bisection."""

    def __init__(self, content: memoryview) -> None:
        self._content = content

    def __contains__(self, key: str) -> bool:
        packed, count = bytes.fromhex(key), len(self._content) // 16
        index = bisect_left(range(count), packed, key=self._key)
        return index < count and self._key(index) == packed

    def _key(self, index: int) -> bytes:
        return bytes(self._content[16 * index : 16 * index + 16])


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
    open_resize: Callable[[], FrameResize],
    done: set[str],
    output_folder: str,
    recursive: bool = False,
    as_video: bool = False,
    limits: Limits | None = None,
    batch_size: int | None = None,
    stop: threading.Event | None = None,
    progress: LiveProgress | None = None,
) -> Generator[Record | Failure, None, None]:
    """Yield the outcome of each video that the paths name and whose key is not in `done`; new keys are added to it.

    Keys use paths as seen from `output_folder`. Call this in the block of `Cluster.connected`. `open_model` and
    `open_resize` (which is its `shrink` without the weights) are called in the workers. Once `stop` is set, what is
    running is finished and nothing more begins. Raises LlvidError for what ends a run: a model that can't be loaded, a
    cluster that is lost.
    """
    sampling = task.preset.sampling
    with _attempt_log(stop or threading.Event(), progress or LiveProgress()) as attempts:
        context = StageContext(
            uuid.uuid4().hex, task, task.preset, str(Path.cwd()), output_folder, replace(limits or Limits(), cores=1),
            open_model, open_resize, attempts, None, batch_size, as_video,
            (sampling.speech_model,) if sampling.speech else (),
        )  # fmt: skip

        def listing(finished: set[str]) -> Any:
            inputs = list(enumerate(parts(paths, recursive=recursive, as_video=as_video)))
            return _listing(inputs, replace(context, done=_shared_keys(finished))) if inputs else None

        yield from _tried(listing, partial(_caption_job, task), context, session, done)


def run_jobs(
    jobs: Iterable[Job],
    settings: dict[str, Any],
    preset: Preset,
    session: ClusterSession,
    *,
    open_model: Callable[[], Model],
    open_resize: Callable[[], FrameResize],
    limits: Limits,
    batch_size: int | None = None,
    speech_models: tuple[str, ...] = (),
    stop: threading.Event,
    progress: LiveProgress | None = None,
) -> Generator[Record | Failure, None, None]:
    """Yield the outcomes of jobs, whose requests count by `no_limit`, and whose records have these `settings`.

    The model's own are added to them. The other arguments, and what is raised, are as of `run`.
    """
    import ray

    by_key = {f"{number:0{_KEY_DIGITS}x}": job for number, job in enumerate(jobs)}

    def listing(finished: set[str]) -> Any:
        left = [InputVideo(job.name, key, job=job) for key, job in by_key.items() if key not in finished]
        return ray.data.from_arrow([table(left)]) if left else None

    def job_of(video: InputVideo, known: Mapping[str, Any]) -> Job:
        settings.update(known)
        return by_key[video.key]

    with _attempt_log(stop, progress or LiveProgress()) as attempts:
        context = StageContext(
            uuid.uuid4().hex, None, preset, str(Path.cwd()), "", replace(limits, cores=1), open_model, open_resize,
            attempts, None, batch_size, speech_models=speech_models,
        )  # fmt: skip
        yield from _tried(listing, job_of, context, session, set())


def no_limit(request: Request) -> Budget:
    """Stand in for `Model.budget` where there is no model: all that is said goes along, for the model to choose."""
    return Budget(0, request.generation.max_new_tokens, sys.maxsize)


def _caption_job(task: Task, video: InputVideo, settings: Mapping[str, Any]) -> Job:
    return CaptionJob(video.path, video.key, task, settings, no_limit)


def _tried(
    listing: Listing, job_of: JobOf, context: StageContext, session: ClusterSession, done: set[str]
) -> Iterator[Record | Failure]:
    """Yield the outcomes; what Ray Data can't recover is run again, with what is left."""
    import ray

    failed: set[str] = set()
    while True:
        count = 0
        try:
            videos = listing(done | {key for key in failed if len(key) == _KEY_DIGITS})
            messages = _answers(videos, context, session) if videos is not None else ()
            for outcome in _outcomes(messages, job_of, done, failed):
                count += 1
                yield outcome
            return
        except ray.exceptions.RayError as error:
            _check_can_retry(error, count)


def list_inputs(
    paths: Iterable[str],
    task: Task,
    *,
    done: set[str],
    output_folder: str,
    recursive: bool = False,
    as_video: bool = False,
    progress: LiveProgress,
) -> Iterator[InputVideo]:
    """Yield the videos that `run` would process; at the end, `progress` has the number of those that are done."""
    import ray

    def not_opened() -> Any:
        raise AssertionError("the input is only listed")

    inputs = list(enumerate(parts(paths, recursive=recursive, as_video=as_video)))
    with _attempt_log(threading.Event(), progress) as attempts:
        context = StageContext(
            "", task, task.preset, str(Path.cwd()), output_folder, Limits(), not_opened, not_opened, attempts,
            _shared_keys(done), None, as_video,
        )  # fmt: skip
        try:
            for rows in _listing(inputs, context).iter_batches(batch_size=None, batch_format="pyarrow"):
                yield from values_of(rows)
        except ray.exceptions.RayError as error:
            _check_can_retry(error, 0)


def _outcomes(
    messages: Iterable[VideoMessage | LlvidError], job_of: JobOf, done: set[str], failed: set[str]
) -> Iterator[Record | Failure]:
    """Join the answers about each video to its outcomes, and drop what an earlier attempt has yielded."""
    results: defaultdict[str, list[tuple[JobRequest, Result]]] = defaultdict(list)
    last: dict[str, VideoMessage] = {}
    settings: Mapping[str, Any] = {}
    for each in messages:
        if isinstance(each, LlvidError):
            raise each
        video = each.video
        name = video.key or video.path
        if name in done or name in failed:
            continue
        if video.error is not None:
            failed.add(name)
            yield Failure({"video_path": path_to_text(video.path)}, video.error)
            continue
        settings = each.settings or settings
        if each.question is not None and each.result is not None:
            results[name].append((each.question, each.result))
        if each.count is not None:
            last[name] = each
        if name in last and len(results[name]) == last[name].count:
            for outcome in job_of(video, settings).outcomes(results.pop(name), last.pop(name).error):
                (done if isinstance(outcome, Record) else failed).add(name)
                yield outcome


def _listing(inputs: list[tuple[int, Part]], context: StageContext) -> Any:
    """Return the first stage, as a data set of videos."""
    import ray

    from .workers import list_videos

    tables = ray.data.from_arrow([table([numbered_part]) for numbered_part in inputs])
    return tables.map_batches(list_videos, batch_size=1, fn_args=(context,), num_cpus=1, **_TABLES)


def _answers(videos: Any, context: StageContext, session: ClusterSession) -> Iterator[VideoMessage | LlvidError]:
    """Yield the output of the last stage, as it comes."""
    import ray

    from .workers import VIDEOS_PER_READ_TASK, ModelWorker, read

    model_worker = {"num_gpus": 1} if session.on_gpus else {"num_cpus": session.cores_per_worker}
    questions = videos.repartition(target_num_rows_per_block=VIDEOS_PER_READ_TASK).map_batches(
        read,
        batch_size=VIDEOS_PER_READ_TASK,
        fn_args=(context,),
        num_cpus=1,
        memory=_READER_BYTES + _SPEECH_BYTES * len(context.speech_models),
        concurrency=session.readers,
        **_TABLES,
    )
    answers = questions.map_batches(
        ModelWorker,
        batch_size=context.batch_size or _questions_per_call(context.preset.sampling),
        fn_constructor_args=(context,),
        compute=ray.data.ActorPoolStrategy(min_size=session.min_workers, max_size=session.max_workers),
        **model_worker,
        **_TABLES,
    )
    # no prefetch: an answer is written at once and does not wait for the next one
    for rows in answers.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        if _COLUMN in rows.column_names:
            yield from values_of(rows)


@contextmanager
def _attempt_log(stop: threading.Event, progress: LiveProgress) -> Iterator[Any]:
    """Give the actor with the AttemptLog, on the node that started the run: it lives as long as the run."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    attempts: Any = ray.remote(AttemptLog).options(num_cpus=0, scheduling_strategy=here).remote()
    finished = threading.Event()

    def watch() -> None:
        stop_sent = False
        while not finished.wait(_WATCH_SECONDS):
            with suppress(ray.exceptions.RayError):
                if stop.is_set() and not stop_sent:
                    ray.get(attempts.stop.remote())
                    stop_sent = True
                progress.latest = ray.get(attempts.progress.remote(), timeout=_ASK_SECONDS)

    watcher = threading.Thread(target=watch, name="llvid-watch", daemon=True)
    watcher.start()
    try:
        yield attempts
        with suppress(ray.exceptions.RayError):
            progress.latest = ray.get(attempts.progress.remote(), timeout=_ASK_SECONDS)
    finally:
        finished.set()
        watcher.join()
        ray.kill(attempts)


def _shared_keys(keys: Iterable[str]) -> Any:
    """Return a Ray reference to packed keys."""
    import ray

    return ray.put(memoryview(b"".join(sorted(map(bytes.fromhex, keys)))))


def _check_can_retry(error: Exception, outcomes: int) -> None:
    """Raise an error that ends the run; return if the rest may be tried again, after so many outcomes."""
    from ray.exceptions import RaySystemError, RayTaskError

    if isinstance(error, RayTaskError) and isinstance(error.cause, RaySystemError):
        raise LlvidError(
            f"the workers can't read their tasks: {last_line(error.cause)}", "install the same version on every node"
        ) from None
    if isinstance(error, RayTaskError):
        raise error  # a bug of ours
    if not outcomes:
        raise LlvidError(f"the cluster failed: {first_line(error)}", "run the same command to continue") from None


def _questions_per_call(sampling: Sampling) -> int:
    """Return how many questions an actor gets at a time: the fewest where `fps` may make any number of frames."""
    if sampling.fps is not None:
        return _MIN_QUESTIONS
    return max(_MIN_QUESTIONS, min(_MAX_QUESTIONS, _QUESTIONS_BYTES // (sampling.frames * _FRAME_BYTES)))
