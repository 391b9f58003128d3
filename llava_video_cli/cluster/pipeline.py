"""The same Records, made by Ray Data on a cluster: its workers look through the input, read, and answer.

Ray Data streams, holds stages back that are ahead of the next one, grows and shrinks the pool of actors, and starts
again what died with a worker or a node; the Book (strikes.py) tells it which videos not to start a third time. Only
records come to the process that started the run, which writes them down as any run does: so there is one output,
without duplicates, and the same command goes on after that process died.
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
from ..runs.prefetch import Question, Result
from ..runs.record import Failure, Record, path_to_text
from ..video import Resize
from ..video.limits import Limits
from .failures import Book, Tally
from .session import Joined
from .stage_messages import COLUMN, Entry, Fatal, Said, Work, pack, table, values_of

_LOOK_SECONDS, _LAST_SECONDS = 0.5, 5.0
_KEY_DIGITS = 32
_FEWEST_TOGETHER, _MOST_TOGETHER = 8, 64  # questions that an actor is handed at a time
_HANDED_BYTES = 2**29
_READER_BYTES = 2**29  # what a reader's process takes; its own figure keeps Ray from joining the two stages
_FRAME_BYTES = 336 * 336 * 3  # of the published checkpoints


@dataclass
class Progress:
    """How far a run is, brought up to date twice a second."""

    tally: Tally = field(default_factory=Tally)


def run(
    paths: Iterable[str],
    task: Task,
    joined: Joined,
    *,
    open_model: Callable[[], Model],
    open_resize: Callable[[], Resize],
    done: set[str],
    home: str,
    folder: str | None = None,
    recursive: bool = False,
    limits: Limits | None = None,
    batch_size: int | None = None,
    stop: threading.Event | None = None,
    progress: Progress | None = None,
) -> Generator[Record | Failure, None, None]:
    """Yield what comes of each video that the paths stand for and whose key is not in `done`, to which keys are added.

    `home` is the folder of the output, `folder` what relative paths are seen from. Must run in a `Cluster.joined`
    block. `open_model` and `open_resize` (which is its `shrink` without the weights) are called in the workers. With
    `stop` set, what is running is finished and nothing else. Raises LlvidError for what ends a run: a model that can't
    be loaded, a cluster that is gone.
    """
    import ray

    stop, progress = stop or threading.Event(), progress or Progress()
    each, there = replace(limits or Limits(), cores=1), folder or str(Path.cwd())
    failed: set[str] = set()
    with _book(stop, progress) as book:
        work = Work(uuid.uuid4().hex, task, there, home, each, open_model, open_resize, book, None, batch_size)
        while True:
            joining, came = _Joining(task, done, failed), 0
            inputs = list(enumerate(parts(paths, recursive=recursive)))
            now = replace(work, done=_packed(done | {key for key in failed if len(key) == _KEY_DIGITS}))
            try:
                for outcome in joining.outcomes(_pieces(inputs, now, joined, batch_size or _together(task))):
                    came += 1
                    yield outcome
                return
            except ray.exceptions.RayError as error:
                _check_going_on(error, came)  # what Ray Data could not make good by itself: what is left is another run


def entries_of(
    paths: Iterable[str],
    task: Task,
    *,
    done: set[str],
    home: str,
    folder: str | None = None,
    recursive: bool = False,
    progress: Progress,
) -> Iterator[Entry]:
    """Yield the videos that `run` would do; `progress` tells at the end how many are done already."""
    import ray

    inputs = list(enumerate(parts(paths, recursive=recursive)))
    with _book(threading.Event(), progress) as book:
        there = folder or str(Path.cwd())
        work = Work("", task, there, home, Limits(), _nothing, _nothing, book, _packed(done), None)
        try:
            for rows in _looked_through(inputs, work).iter_batches(batch_size=None, batch_format="pyarrow"):
                yield from values_of(rows)
        except ray.exceptions.RayError as error:
            _check_going_on(error, 0)
        progress.tally = ray.get(book.tally.remote())


class _Joining:
    """Puts together what is said of each video, and leaves out what came before."""

    def __init__(self, task: Task, done: set[str], failed: set[str]) -> None:
        self._task, self._done, self._failed = task, done, failed
        self._results: dict[str, list[tuple[Question, Result]]] = {}
        self._ended: dict[str, Said] = {}
        self._settings: Mapping[str, Any] = {}

    def outcomes(self, pieces: Iterable[Said | Fatal]) -> Iterator[Record | Failure]:
        for said in pieces:
            if isinstance(said, Fatal):
                raise said.error
            entry = said.entry
            name = entry.key or entry.path
            if name in self._done or name in self._failed:
                continue
            if entry.error is not None:
                self._failed.add(name)
                yield Failure({"video_path": path_to_text(entry.path)}, entry.error)
                continue
            self._settings = said.settings or self._settings
            if said.question is not None and said.result is not None:
                self._results.setdefault(name, []).append((said.question, said.result))
            if said.count is not None:
                self._ended[name] = said
            yield from self._finished(name)

    def _finished(self, name: str) -> Iterator[Record | Failure]:
        from .workers import uncounted

        ended = self._ended.get(name)
        if ended is None or len(self._results.get(name, ())) != ended.count:
            return
        del self._ended[name]
        job = CaptionJob(ended.entry.path, name, self._task, self._settings, uncounted)
        for outcome in job.outcomes(self._results.pop(name, []), ended.error):
            (self._done if isinstance(outcome, Record) else self._failed).add(name)
            yield outcome


def _looked_through(inputs: list[tuple[int, Part]], work: Work) -> Any:
    """Return the first stage, as a data set of entries."""
    import ray

    from .workers import look_through

    tables: dict[str, Any] = {"batch_format": "pyarrow", "zero_copy_batch": True}
    parts_of_it = ray.data.from_arrow([table([each]) for each in inputs])
    return parts_of_it.map_batches(look_through, batch_size=1, fn_args=(work,), num_cpus=1, **tables)


def _pieces(inputs: list[tuple[int, Part]], work: Work, joined: Joined, together: int) -> Iterator[Said | Fatal]:
    """Yield what comes out of the pipeline, as it comes."""
    import ray

    from .workers import ENTRIES, Answerer, read

    if not inputs:
        return
    tables: dict[str, Any] = {"batch_format": "pyarrow", "zero_copy_batch": True}
    answering = {"num_gpus": 1} if joined.on_gpus else {"num_cpus": joined.cores_each}
    frames = (
        _looked_through(inputs, work)
        .repartition(target_num_rows_per_block=ENTRIES)
        .map_batches(
            read,
            batch_size=ENTRIES,
            fn_args=(work,),
            num_cpus=1,
            memory=_READER_BYTES,
            concurrency=joined.readers,
            **tables,
        )
    )
    answers = frames.map_batches(
        Answerer,
        batch_size=together,
        fn_constructor_args=(work,),
        compute=ray.data.ActorPoolStrategy(min_size=joined.fewest, max_size=joined.most),
        **answering,
        **tables,
    )
    # nothing ahead: what has come is to be written down, not to wait for the next
    for rows in answers.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        if COLUMN in rows.column_names:
            yield from values_of(rows)


def _watch(book: Any, stop: threading.Event, over: threading.Event, progress: Progress) -> None:
    import ray

    told = False
    while not over.wait(_LOOK_SECONDS):
        try:
            if stop.is_set() and not told:
                ray.get(book.stop.remote())
                told = True
            progress.tally = ray.get(book.tally.remote(), timeout=5)
        except ray.exceptions.RayError:
            continue


@contextmanager
def _book(stop: threading.Event, progress: Progress) -> Iterator[Any]:
    """Give the actor with the Book, on the node that the run was started on: it lives as long as the run."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    book: Any = ray.remote(Book).options(num_cpus=0, scheduling_strategy=here).remote()
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(book, stop, over, progress), name="llvid-watch", daemon=True)
    watcher.start()
    try:
        yield book
        with suppress(ray.exceptions.RayError):
            progress.tally = ray.get(book.tally.remote(), timeout=_LAST_SECONDS)
    finally:
        over.set()
        watcher.join()
        ray.kill(book)


def _packed(keys: Iterable[str]) -> Any:
    """Return a reference to keys as workers look them up."""
    import ray

    return ray.put(memoryview(pack(keys)))


def _check_going_on(error: Exception, came: int) -> None:
    """Raise what ends a run; return if what is left may be begun anew, after `came` outcomes."""
    from ray.exceptions import RaySystemError, RayTaskError

    if isinstance(error, RayTaskError) and isinstance(error.cause, RaySystemError):
        words = last_line(error.cause)
        raise LlvidError(
            f"the workers can't take the work: {words}", "the same llvid has to be installed on every node"
        ) from None
    if isinstance(error, RayTaskError):
        raise error  # a mistake of ours
    if not came:
        raise LlvidError(f"the cluster can't go on: {first_line(error)}", "run again to go on") from None


def _together(task: Task) -> int:
    frames = task.preset.sampling.frames or 32
    return max(_FEWEST_TOGETHER, min(_MOST_TOGETHER, _HANDED_BYTES // (frames * _FRAME_BYTES)))


def _nothing() -> Any:
    """Stand in for what looking through the input does not need."""
    raise AssertionError("only looked through")
