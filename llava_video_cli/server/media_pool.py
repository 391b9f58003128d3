"""The processes that decode the media of requests, and who may use one when."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, cast

from ..conversation import Media
from ..errors import LlvidError, MediaError
from ..video import Frames, Resize, VideoInfo
from ..video.image import Picture
from ..video.limits import Limits
from ..video.sampling import Sampling
from .media_worker import HEAD_BYTES

if TYPE_CHECKING:
    from io import BufferedReader

    import numpy as np
    from numpy.typing import NDArray

_log = logging.getLogger(__name__)
_COMMAND = "import sys; sys.path[:] = sys.argv[1:]; from llava_video_cli.server.media_worker import main; main()"
# So that numpy and FFmpeg start no thread for each core: a worker has the processor time of one.
_ENVIRONMENT = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
_MAX_SECONDS = 150.0  # by the clock: the limits of processor time and of the reader end nearly all before
_SLOW_SECONDS = 1.0  # a job that takes longer gets what processor time the others leave
_SLOW_NICE = 5  # above that of a new process
_PIPE_BYTES = 2**20


class FairSlots:
    """Slots that clients share: each client has at most one at a time, and they take turns. For one event loop."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._active = set[str]()
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}  # the client whose turn it is comes first

    async def acquire(self, client: str) -> None:
        """Wait for a slot."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(client, deque()).append(turn)
        self._give()
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():
                self.release(client)
            raise

    def release(self, client: str) -> None:
        """Give a slot back."""
        self._active.discard(client)
        self._free += 1
        if client in self._waiting:
            self._waiting[client] = self._waiting.pop(client)  # behind the others
        self._give()

    def _give(self) -> None:
        for client, turns in list(self._waiting.items()):
            while turns and turns[0].cancelled():
                turns.popleft()
            if turns and self._free and client not in self._active:
                self._free -= 1
                self._active.add(client)
                turns.popleft().set_result(None)
            if not turns:
                del self._waiting[client]


class Cancellation:
    """Tells work in a thread that nobody wants its result any more."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stop: Callable[[], None] | None = None
        self.is_set = False

    def set(self) -> None:
        """Stop the work."""
        with self._lock:
            self.is_set = True
            if self._stop is not None:
                self._stop()

    def check(self) -> None:
        """Raise MediaError after `set`."""
        if self.is_set:
            raise MediaError("the client has disconnected")

    @contextmanager
    def stopping(self, stop: Callable[[], None]) -> Iterator[None]:
        """Have `set` call `stop` during the block."""
        with self._lock:
            self.check()
            self._stop = stop
        try:
            yield
        finally:
            with self._lock:
                self._stop = None


class MediaPool:
    """Decodes media in processes. Those that wait for a job are kept; one that was slow, or was killed, is replaced."""

    def __init__(self, max_idle: int) -> None:
        self._max_idle = max_idle
        self._lock = threading.Lock()
        self._idle = [_Worker()]
        self._closed = False

    def decode(
        self,
        path: str,
        sampling: Sampling,
        limits: Limits,
        max_pixels: int,
        resize: Resize,
        cancellation: Cancellation,
    ) -> Media:
        """Return a picture, or the frames of a video, resized. Raises MediaError."""
        job = {"path": path, "sampling": asdict(sampling), "limits": asdict(limits), "max_pixels": max_pixels}
        worker = self._take(job)
        try:
            with cancellation.stopping(worker.kill):
                return worker.result(path, sampling, resize)
        finally:
            self._put_back(worker)

    def close(self) -> None:
        """End the processes that wait for a job; those that decode end after it."""
        with self._lock:
            self._closed, workers, self._idle = True, self._idle, []
        for worker in workers:
            worker.close()

    def _take(self, job: dict[str, Any]) -> _Worker:
        """Return a process that has the job; one that died while it was idle is replaced."""
        with self._lock:
            idle = self._idle.pop() if self._idle else None
        if idle is not None:
            if idle.give(job):
                return idle
            idle.close()
        worker = _Worker()
        worker.give(job)
        return worker

    def _put_back(self, worker: _Worker) -> None:
        with self._lock:
            if self._closed or len(self._idle) >= self._max_idle or not worker.is_reusable:
                worker.close()
            else:
                self._idle.append(worker)
            if not self._idle and not self._closed:
                self._idle.append(_Worker())  # so that the next job need not wait for the start


class _Worker:
    """A process that decodes one medium after the other."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", _COMMAND, *sys.path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=os.environ | _ENVIRONMENT,
            pipesize=_PIPE_BYTES,
            start_new_session=True,  # Ctrl-C in a terminal is for the server
        )
        self._is_idle, self._is_slow = False, False

    @property
    def is_reusable(self) -> bool:
        """Whether it may get another job: it has sent its last result, and its priority is still that of a new one."""
        return self._is_idle and not self._is_slow

    def give(self, job: dict[str, Any]) -> bool:
        """Send a job; return whether the process was there to take it."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(job).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            return False
        return self._process.poll() is None

    def result(self, path: str, sampling: Sampling, resize: Resize) -> Media:
        """Return what the process makes of its job. Raises MediaError."""
        self._is_idle = False
        timers = [threading.Timer(_SLOW_SECONDS, self._slow_down), threading.Timer(_MAX_SECONDS, self.kill)]
        for timer in timers:
            timer.daemon = True
            timer.start()
        try:
            return self._read(path, sampling, resize)
        except EOFError:
            raise MediaError(f"{path}: {self._death()}") from None
        finally:
            for timer in timers:
                timer.cancel()
                timer.join()

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()

    def close(self) -> None:
        """End the process, and wait for its end."""
        self.kill()
        with suppress(OSError):
            self._process.communicate()

    def _read(self, path: str, sampling: Sampling, resize: Resize) -> Media:
        images: list[NDArray[np.uint8]] = []
        while "shape" in (head := json.loads(self._bytes(int.from_bytes(self._bytes(HEAD_BYTES), "little")))):
            pixels = self._pixels(head["shape"])
            images.append(resize(pixels) if head["is_frame"] else pixels)
        self._is_idle = True
        if "bug" in head:
            _log.error("a medium could not be decoded\n%s", head["bug"])
            raise LlvidError("an error inside the server")
        if "error" in head:
            raise MediaError(head["error"], head["hint"])
        return _frames(head, images, sampling) if "numbers" in head else Picture(images[0], path)

    def _pixels(self, shape: list[int]) -> NDArray[np.uint8]:
        import numpy as np

        pixels = np.empty(shape, np.uint8)
        output = cast("BufferedReader", self._process.stdout)
        if output.readinto(pixels.data.cast("B")) < pixels.nbytes:
            raise EOFError
        return pixels

    def _bytes(self, count: int) -> bytes:
        assert self._process.stdout is not None
        content = self._process.stdout.read(count)
        if len(content) < count:
            raise EOFError
        return content

    def _slow_down(self) -> None:
        if hasattr(os, "setpriority"):
            with suppress(OSError):
                pid = self._process.pid
                os.setpriority(os.PRIO_PROCESS, pid, os.getpriority(os.PRIO_PROCESS, pid) + _SLOW_NICE)
                self._is_slow = True

    def _death(self) -> str:
        """Return why the process ended."""
        code = self._process.wait()
        if sys.platform != "win32" and code == -signal.SIGXCPU:
            return "takes too much processor time"
        return f"not read within {_MAX_SECONDS:g} seconds" if code == -signal.SIGKILL else "the decoder crashed"


def _frames(head: dict[str, Any], images: list[NDArray[np.uint8]], sampling: Sampling) -> Frames:
    import numpy as np

    info = VideoInfo(**head["info"])
    chosen = np.stack([images[number] for number in head["numbers"]])
    return Frames(chosen, tuple(head["times_seconds"]), info, sampling, tuple(head["notes"]))
