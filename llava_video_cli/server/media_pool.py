"""The processes that decode the media of requests: each decodes one medium after the other."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ..conversation import Media
from ..errors import MediaError
from ..video import Frames, Resize
from ..video.image import Picture
from .media_worker import MODULES, PIECE_BYTES, Bounds, DecodeJob, main

if TYPE_CHECKING:
    from multiprocessing.context import ForkServerContext, SpawnContext

    import numpy as np
    from numpy.typing import NDArray

_SLOW_SECONDS, _SLOWER_NICE = 1.0, 5  # from then on, a process gets little of the time that others want
_MOST_NICE = 19
_CHECK_SECONDS = 0.1  # how often a thread that waits for a process checks whether somebody wants the result


class MediaPool:
    """Decodes media in processes; those that wait for a job are kept, at most `max_idle`. Safe in threads."""

    def __init__(self, max_idle: int, bounds: Bounds | None = None) -> None:
        self._max_idle, self._bounds = max_idle, bounds or Bounds()
        self._lock = threading.Lock()
        self._idle = [_MediaProcess(self._bounds)]
        self._closed = False

    def decode(self, job: DecodeJob, resize: Resize, cancelled: threading.Event) -> Media:
        """Return a picture, or the frames of a video, resized; stop as soon as that is `cancelled`.

        Raises MediaError, and `RuntimeError` for a bug in the decoder.
        """
        with self._lock:
            self._idle = [worker for worker in self._idle if worker.is_alive]
            worker = self._idle.pop() if self._idle else _MediaProcess(self._bounds)
        try:
            return worker.decode(job, resize, cancelled)
        finally:
            with self._lock:
                if worker.is_idle and not self._closed and len(self._idle) < self._max_idle:
                    self._idle.append(worker)
                else:
                    worker.kill()
                if not self._idle and not self._closed:
                    self._idle.append(_MediaProcess(self._bounds))  # so that the next job need not wait for the start

    def close(self) -> None:
        """End the processes that wait for a job; those that decode end after it."""
        with self._lock:
            self._closed = True
            for worker in self._idle:
                worker.kill()


class _MediaProcess:
    """A process of `media_worker`."""

    def __init__(self, bounds: Bounds) -> None:
        context: ForkServerContext | SpawnContext
        # Forks of a process that has imported all start at once, and share its memory. Before 3.11.1, other users of
        # the machine could send it code to run (CVE-2022-42919).
        if sys.platform == "linux" and sys.version_info >= (3, 11, 1):
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["__main__", *MODULES])
        else:
            context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=main, args=(other, bounds), name="llvid-media", daemon=True)
        self._process.start()
        other.close()
        self._clock_seconds, self._is_slow, self.is_idle = bounds.clock_seconds, False, True

    @property
    def is_alive(self) -> bool:
        return self._process.is_alive()

    def kill(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.join()
        self._connection.close()

    def decode(self, job: DecodeJob, resize: Resize, cancelled: threading.Event) -> Media:
        """Return the medium of a job. Unless the process `is_idle` after it, it is of no further use."""
        import numpy as np

        self.is_idle = False
        start = time.monotonic()
        images: list[NDArray[np.uint8]] = []
        try:
            self._connection.send(job)
            self._receive(job.path, start, cancelled)  # the process has started, and has the job
            slow_from = time.monotonic() + _SLOW_SECONDS
            while isinstance(received := self._receive(job.path, start, cancelled, slow_from), tuple):
                shape, is_frame = received
                pixels = np.empty(shape, np.uint8)
                for first in range(0, pixels.size, PIECE_BYTES):
                    self._connection.recv_bytes_into(pixels.reshape(-1), first)
                images.append(resize(pixels) if is_frame else pixels)
        except (EOFError, OSError):
            self._process.join()
            is_over = sys.platform != "win32" and self._process.exitcode == -signal.SIGXCPU
            reason = "takes too much processor time" if is_over else "the decoder crashed"
            raise MediaError(f"{job.path}: {reason}") from None
        self.is_idle = not self._is_slow  # only root could raise its priority again
        if isinstance(received, str):
            raise RuntimeError(f"the decoder has a bug\n{received}")
        if isinstance(received, MediaError):
            raise received
        if isinstance(received, Picture):
            return replace(received, pixels=images[0])
        assert isinstance(received, Frames)
        numbers = [int.from_bytes(number.tobytes(), "little") for number in received.images]
        return replace(received, images=np.stack([images[number] for number in numbers]))

    def _receive(self, path: str, start: float, cancelled: threading.Event, slow_from: float = math.inf) -> Any:
        """Return what the process sends next; lower its priority if that is after `slow_from`."""
        while True:
            now = time.monotonic()
            if cancelled.is_set():
                raise MediaError("the client has disconnected")
            if now - start > self._clock_seconds:
                raise MediaError(f"{path}: not read within {self._clock_seconds:g} seconds")
            if now > slow_from and not self._is_slow and hasattr(os, "setpriority"):
                self._is_slow = True
                pid = self._process.pid or 0
                nice = os.getpriority(os.PRIO_PROCESS, pid) + _SLOWER_NICE  # a smaller number is for root only
                os.setpriority(os.PRIO_PROCESS, pid, min(nice, _MOST_NICE))
            if self._connection.poll(_CHECK_SECONDS):
                return self._connection.recv()
