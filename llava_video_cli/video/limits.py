"""How far a reader goes with a file that may have been made to waste its time."""

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
    """What one video may cost. None sets no limit.

    `pixels` is of one picture (twice that of 8K), `bytes` of all the frames that lie in memory at a time, `seconds` of
    reading and decoding. `cores` is for decoding: 1 is best where several videos are read at the same time.
    """

    seconds: float | None = 900.0
    pixels: int = 2 * 7680 * 4320
    bytes: int = 16 * 2**30
    cores: int | None = None

    @property
    def pixels_of_buffers(self) -> int:
        """Return what FFmpeg is told, also for a size that changes on the way: it counts the margins of its buffers."""
        return self.pixels + self.pixels // 4 + 2**16


def cores(limits: Limits) -> int:
    """Return the number of cores to decode on: those that this process may use, within the limits."""
    usable = usable_cores()
    return max(1, min(usable, limits.cores or usable))


class Clock:
    """The seconds since a reader began, but for those that its caller took between two frames."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._paused_at: float | None = None

    @property
    def seconds(self) -> float:
        """What has passed."""
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
    """The moment at which a reader gives a file up."""

    path: str
    limits: Limits
    clock: Clock = field(default_factory=Clock)
    stopped: threading.Event = field(default_factory=threading.Event)

    def left(self) -> float | None:
        """Return the seconds that are left, None for any number. Raises MediaError when there are none."""
        if self.stopped.is_set():
            raise MediaError(f"{self.path}: reading was stopped")
        if self.limits.seconds is None:
            return None
        left = self.limits.seconds - self.clock.seconds
        if left <= 0:
            raise MediaError(
                f"{self.path}: not read within {self.limits.seconds:g} seconds", "take a shorter part of it"
            )
        return left

    def helper(self) -> Deadline:
        """Return the same moment for a thread that may be stopped by itself, with `stopped.set()`."""
        return replace(self, stopped=threading.Event())
