"""What a reader may spend on a file, which may have been made to waste its time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from ..errors import MediaError
from ..system.machine import usable_cores


@dataclass(frozen=True)
class Limits:
    """What reading one video may cost. None means no limit.

    `seconds` of reading and decoding; `pixels` of one picture (by default twice as many as 8K); `bytes` of all the
    frames in memory at the same time; `cores` for decoding (1 is best where several videos are read together).
    """

    seconds: float | None = 900.0
    pixels: int = 2 * 7680 * 4320
    bytes: int = 16 * 2**30
    cores: int | None = None

    @property
    def pixels_of_buffers(self) -> int:
        """Return the limit for FFmpeg, which counts its buffers' margins, and checks sizes that change later, too."""
        return self.pixels + self.pixels // 4 + 2**16


def cores(limits: Limits) -> int:
    """Return the number of cores to decode on: all that this process may use, within the limits."""
    usable = usable_cores()
    return max(1, min(usable, limits.cores or usable))


class Clock:
    """The seconds since a reader started, without the time that its caller spends between two frames."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._paused_at: float | None = None

    @property
    def seconds(self) -> float:
        """The seconds so far."""
        paused_at = self._paused_at  # read once: other threads ask too
        return (time.monotonic() if paused_at is None else paused_at) - self._started

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Don't count the time of the block."""
        self._paused_at = began = time.monotonic()
        try:
            yield
        finally:
            self._started += time.monotonic() - began
            self._paused_at = None


@dataclass(frozen=True)
class Deadline:
    """The moment at which a reader gives up."""

    path: str
    limits: Limits
    clock: Clock = field(default_factory=Clock)
    stopped: threading.Event = field(default_factory=threading.Event)

    def left(self) -> float | None:
        """Return the seconds that are left, None without a limit. Raises MediaError when none are left."""
        if self.stopped.is_set():
            raise MediaError(f"{self.path}: reading was stopped")
        if self.limits.seconds is None:
            return None
        left = self.limits.seconds - self.clock.seconds
        if left <= 0:
            raise MediaError(
                f"{self.path}: not read within {self.limits.seconds:g} seconds", "use a shorter part of it"
            )
        return left

    def for_thread(self) -> Deadline:
        """Return the same deadline for a worker thread, which can be stopped alone, with `stopped.set()`."""
        return replace(self, stopped=threading.Event())
