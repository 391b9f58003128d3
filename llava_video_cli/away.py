"""A run on a cluster that was started from outside of it, through a Ray client server.

Ray Data does not work through one, so the run itself takes place in an actor in the cluster, and hands out what comes
of each video when it is asked. It ends with the client: what is not handed out by then is done again by the next run.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterable
from typing import Any

from .caption import Task
from .cluster import Joined
from .errors import LlvidError
from .record import Failure, Record
from .scale import Progress, run
from .strikes import Tally

_WAIT_SECONDS = 1.0
_HANDED_OUT = 500  # outcomes at a time, and as many may wait


class Away:
    """The run, in an actor; `next` and `stop` may be called at the same time."""

    def __init__(self, paths: list[str], task: Task, joined: Joined, options: dict[str, Any]) -> None:
        self._stop, self._progress = threading.Event(), Progress()
        self._waiting: queue.Queue[Record | Failure] = queue.Queue(_HANDED_OUT)
        self._error: LlvidError | None = None
        self._mistake: Exception | None = None  # of ours
        outcomes = run(paths, task, joined, stop=self._stop, progress=self._progress, **options)
        self._thread = threading.Thread(target=self._work, args=(outcomes,), name="llvid-run", daemon=True)
        self._thread.start()

    def next(self) -> tuple[list[Record | Failure], Tally, bool, LlvidError | None]:
        """Return what came since the last call, how far the run is, whether it is over, and the error that ended it."""
        over, came = not self._thread.is_alive(), list[Record | Failure]()
        try:
            came.append(self._waiting.get(timeout=_WAIT_SECONDS))
            while len(came) < _HANDED_OUT:
                came.append(self._waiting.get_nowait())
        except queue.Empty:
            pass
        over = over and not came
        if over and self._mistake is not None:
            raise self._mistake
        return came, self._progress.tally, over, self._error if over else None

    def stop(self) -> None:
        """Finish what is running, and nothing else."""
        self._stop.set()

    def _work(self, outcomes: Iterable[Record | Failure]) -> None:
        try:
            for outcome in outcomes:
                self._waiting.put(outcome)
        except LlvidError as error:
            self._error = error
        except Exception as error:  # noqa: BLE001 - whoever asks for the next outcome gets it
            self._mistake = error


def run_away(
    paths: Iterable[str],
    task: Task,
    joined: Joined,
    *,
    done: set[str],
    stop: threading.Event | None = None,
    progress: Progress | None = None,
    **options: Any,
) -> Generator[Record | Failure, None, None]:
    """Yield what `scale.run` yields, which runs in the cluster; its arguments are the same."""
    import ray

    stop, progress = stop or threading.Event(), progress or Progress()
    actor: Any = (
        ray.remote(Away)
        .options(num_cpus=0, max_concurrency=2)
        .remote(list(paths), task, joined, {**options, "done": set(done)})
    )
    told = False
    try:
        while True:
            if stop.is_set() and not told:
                ray.get(actor.stop.remote())
                told = True
            came, progress.tally, over, error = ray.get(actor.next.remote())
            for outcome in came:
                if isinstance(outcome, Record):
                    done.add(outcome.key)
                yield outcome
            if error is not None:
                raise error
            if over:
                return
    except ray.exceptions.RayError as error:
        if isinstance(error, ray.exceptions.RayTaskError):
            raise
        words = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise LlvidError(f"the run in the cluster is gone: {words}", "run again to go on") from None
    finally:
        ray.kill(actor)
