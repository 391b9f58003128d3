"""The same Records, made by Ray Data on a cluster: its workers look through the input, read, and answer.

Ray Data streams, holds stages back that are ahead of the next one, grows and shrinks the pool of actors, and starts
again what died with a worker or a node; the Book (strikes.py) tells it which videos not to start a third time. Only
records come to the process that started the run, which writes them down as any run does: so there is one output,
without duplicates, and the same command goes on after that process died.
"""

from __future__ import annotations

import logging
import os
import threading
import uuid
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .caption import CaptionJob, Task
from .entries import Part, parts
from .errors import LlvidError
from .limits import Limits, cores
from .models import Model
from .readahead import Question, Result
from .record import Failure, Record, path_to_text
from .strikes import Book, Tally
from .video import Resize

_LOOK_SECONDS = 0.5
_FEWEST_TOGETHER, _MOST_TOGETHER = 8, 64  # questions that an actor is handed at a time
_HANDED_BYTES = 2**29
_READER_BYTES = 2**29  # what a reader's process takes; its own figure keeps Ray from joining the two stages
_FRAME_BYTES = 336 * 336 * 3  # of the published checkpoints
# Ray reads these as it is imported.
_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "^",  # what it tells of workers that died would go to stdout
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "OMP_WAIT_POLICY": "passive",
}


@dataclass(frozen=True)
class Cluster:
    """Where a run takes place, and on how much of it.

    `address` is `local` (a cluster on this machine, for this run), `auto` (the one that this machine is part of) or
    that of a Ray client server, ray://host:10001. The pool holds `fewest` to `most` actors with a model, each with a
    GPU where there are GPUs; `readers` read at a time. None takes what is there.
    """

    address: str = "auto"
    fewest: int = 1
    most: int | None = None
    readers: int | None = None
    memory_bytes: int | None = None

    @contextmanager
    def joined(self) -> Iterator[Joined]:
        """Be part of the cluster for the length of a block. Raises LlvidError if it can't be reached."""
        ray = _ray()
        if ray.is_initialized():
            yield self._sized(ray, "")
            return
        try:
            with _hushed():
                context = ray.init(**self._options())
        except (ConnectionError, ValueError, RuntimeError, TimeoutError, OSError) as error:
            raise LlvidError(
                f"no Ray cluster at {self.address}: {_first_line(error)}",
                "`ray start --head` makes one; `--ray local` needs none",
            ) from None
        try:
            yield self._sized(ray, str(getattr(context, "dashboard_url", "") or ""))
        finally:
            ray.shutdown()

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL, "address": self.address}
        if self.address == "local":
            options["include_dashboard"] = None  # if it is installed
            # CPUs are what Ray gives work out by; the system shares the real ones out
            options["num_cpus"] = (self.readers or cores(Limits())) + (self.most or cores(Limits())) + 1
            if self.memory_bytes:
                options["object_store_memory"] = self.memory_bytes
        return options

    def _sized(self, ray: Any, dashboard: str) -> Joined:
        there = ray.cluster_resources()
        gpus, cpus = int(there.get("GPU", 0)), int(there.get("CPU", 0))
        most = self.most or gpus or 1
        on_gpus = gpus > 0
        readers = self.readers or max(1, cores(Limits()) if self.address == "local" else cpus - most)
        if not on_gpus and cpus < 2:
            raise LlvidError(f"the cluster has {cpus} CPUs: one to read and one to answer are needed")
        nodes = sum(bool(node["Alive"]) for node in ray.nodes())
        return Joined(min(self.fewest, most), most, readers, on_gpus, nodes, gpus, cpus, dashboard)


@dataclass(frozen=True)
class Joined:
    """A cluster that was reached, and what a run takes of it."""

    fewest: int
    most: int
    readers: int
    on_gpus: bool
    nodes: int
    gpus: int
    cpus: int
    dashboard: str


@dataclass
class Progress:
    """How far a run is, brought up to date twice a second."""

    tally: Tally = field(default_factory=Tally)
    looked_through: bool = False


def run(
    paths: Iterable[str],
    task: Task,
    joined: Joined,
    *,
    open_model: Callable[[], Model],
    open_resize: Callable[[], Resize],
    done: set[str],
    home: str,
    recursive: bool = False,
    limits: Limits | None = None,
    batch_size: int | None = None,
    stop: threading.Event | None = None,
    progress: Progress | None = None,
) -> Generator[Record | Failure, None, None]:
    """Yield what comes of each video that the paths stand for and whose key is not in `done`, to which keys are added.

    `home` is the folder of the output. Must run in a `Cluster.joined` block. `open_model` and `open_resize` (which is
    its `shrink` without the weights) are called in the workers. With `stop` set, what is running is finished and
    nothing else. Raises LlvidError for what ends a run: a model that can't be loaded, a cluster that is gone.
    """
    import ray

    from .stages import Work, pack

    stop, progress = stop or threading.Event(), progress or Progress()
    book = _book(ray)
    name = uuid.uuid4().hex
    each = replace(limits or Limits(), cores=1)
    work = Work(name, task, str(Path.cwd()), home, each, open_model, open_resize, book, None, batch_size)
    failed: set[str] = set()
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(book, stop, over, progress), name="llvid-watch", daemon=True)
    watcher.start()
    together = batch_size or _together(task)
    try:
        while True:
            inputs = list(enumerate(parts(paths, recursive=recursive)))
            known = ray.put(memoryview(pack(done | {key for key in failed if key})))
            joining, came = _Joining(task, done, failed), 0
            try:
                for outcome in joining.outcomes(_pieces(inputs, replace(work, done=known), joined, together)):
                    came += 1
                    yield outcome
                return
            except ray.exceptions.RayError as error:
                # What Ray Data could not make good by itself: what is left is another run.
                if isinstance(error, ray.exceptions.RayTaskError):
                    if isinstance(error.cause, ray.exceptions.RaySystemError):
                        raise LlvidError(
                            f"the workers can't take the work: {_last_line(error.cause)}",
                            "the same llvid has to be installed on every node",
                        ) from None
                    raise  # a mistake of ours
                if not came:
                    raise LlvidError(f"the cluster can't go on: {_first_line(error)}", "run again to go on") from None
    finally:
        over.set()
        watcher.join()
        ray.kill(book)


class _Joining:
    """Puts together what is said of each video, and leaves out what came before."""

    def __init__(self, task: Task, done: set[str], failed: set[str]) -> None:
        self._task, self._done, self._failed = task, done, failed
        self._results: dict[str, list[tuple[Question, Result]]] = {}
        self._ended: dict[str, Any] = {}
        self._settings: Mapping[str, Any] = {}

    def outcomes(self, pieces: Iterable[Any]) -> Iterator[Record | Failure]:
        for said in pieces:
            if said.fatal is not None:
                raise said.fatal
            entry = said.entry
            name = entry.key or entry.path
            if name in self._done or name in self._failed:
                continue
            if entry.error is not None:
                self._failed.add(name)
                yield Failure({"video_path": path_to_text(entry.path)}, entry.error)
                continue
            self._settings = said.settings or self._settings
            if said.question is not None:
                self._results.setdefault(name, []).append((said.question, said.result))
            if said.count is not None:
                self._ended[name] = said
            yield from self._finished(name)

    def _finished(self, name: str) -> Iterator[Record | Failure]:
        from .stages import uncounted

        ended = self._ended.get(name)
        if ended is None or len(self._results.get(name, ())) != ended.count:
            return
        del self._ended[name]
        job = CaptionJob(ended.entry.path, name, self._task, self._settings, uncounted)
        for outcome in job.outcomes(self._results.pop(name, []), ended.error):
            (self._done if isinstance(outcome, Record) else self._failed).add(name)
            yield outcome


def _pieces(inputs: list[tuple[int, Part]], work: Any, joined: Joined, together: int) -> Iterator[Any]:
    """Yield what comes out of the pipeline, as it comes."""
    import ray
    import ray.data

    from .stages import COLUMN, ENTRIES, Answerer, look_through, read, table, values_of

    if not inputs:
        return
    _quieten(ray)
    rows = [table([each]) for each in inputs]
    tables: dict[str, Any] = {"batch_format": "pyarrow", "zero_copy_batch": True}
    answering = {"num_gpus": 1} if joined.on_gpus else {"num_cpus": 1}
    entries = ray.data.from_arrow(rows).map_batches(look_through, batch_size=1, fn_args=(work,), num_cpus=1, **tables)
    frames = entries.repartition(target_num_rows_per_block=ENTRIES).map_batches(
        read,
        batch_size=ENTRIES,
        fn_args=(work,),
        num_cpus=1,
        memory=_READER_BYTES,
        concurrency=joined.readers,
        **tables,
    )
    answers = frames.map_batches(
        Answerer,
        batch_size=together,
        fn_constructor_args=(work,),
        compute=ray.data.ActorPoolStrategy(min_size=joined.fewest, max_size=joined.most),
        **answering,
        **tables,
    )
    for rows_out in answers.iter_batches(batch_size=None, batch_format="pyarrow"):
        if COLUMN in rows_out.column_names:
            yield from values_of(rows_out)


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


def _book(ray: Any) -> Any:
    """Return the actor with the Book, on the node that the run was started on: it lives as long as the run."""
    here = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=False
    )
    return ray.remote(Book).options(num_cpus=0, scheduling_strategy=here).remote()


def _together(task: Task) -> int:
    frames = task.preset.sampling.frames or 32
    return max(_FEWEST_TOGETHER, min(_MOST_TOGETHER, _HANDED_BYTES // (frames * _FRAME_BYTES)))


def _quieten(ray: Any) -> None:
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    warnings.filterwarnings("ignore", category=UserWarning, module=r"ray\.data")
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


@contextmanager
def _hushed() -> Iterator[None]:
    """Keep a line of Ray's C++ part, which nothing else turns off, from stderr."""
    try:
        kept = os.dup(2)
    except OSError:  # closed
        yield
        return
    with Path(os.devnull).open("w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def _ray() -> Any:
    """Import Ray, which then sends nothing anywhere and keeps its words to itself. Raises LlvidError without it."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.data
        import ray.util.scheduling_strategies
    except ImportError:
        raise LlvidError("--ray needs the package ray", "pip install 'llava-video-cli[ray]'") from None
    return ray
