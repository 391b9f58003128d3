"""What a reader may spend on a file, which may have been made to waste its time."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache

from ..errors import MediaError, UsageError
from ..system.machine import usable_cores

RAISE_HINT = "for a file that you trust, LLVID_LIMITS=10 makes the limits 10 times as high (1000 at most)"
STILL_PIXELS = 2**27  # with 16 bytes a pixel, which some decoders take, 2 GiB
_MAX_FACTOR = 1000
_usable_cores = cache(usable_cores)  # to read the quotas takes longer than to open a small file


def _times(limit: int) -> Callable[[], int]:
    """Return what gives the limit as often as `LLVID_LIMITS` says, once by default."""

    def raised() -> int:
        factor = os.environ.get("LLVID_LIMITS")
        if not factor:
            return limit
        if not (factor.isascii() and factor.isdigit() and 0 < int(factor) <= _MAX_FACTOR):
            raise UsageError(f"LLVID_LIMITS must be a whole number from 1 to {_MAX_FACTOR:,}, got {factor!r}")
        return limit * int(factor)

    return raised


@dataclass(frozen=True)
class Limits:
    """What reading one video or picture may cost. None means no limit.

    `seconds` of reading and decoding a video; `pixels` of one of its pictures (by default twice as many as 8K);
    `bytes` of all the frames in memory at the same time; `cores` for decoding (1 is best where several videos are read
    together). `side` in pixels, and `aspect`, the longer side to the shorter one, bound both videos and still pictures.
    `download_bytes` of what comes from stdin or a URL, and `download_seconds` for it.
    A still picture may have `still_pixels`, and take `still_seconds` of a core; an animation (GIF, PNG) 3 times as
    many by the clock. `sound_seconds` bound the sound that is decoded, which a small file may have days of.

    The environment variable LLVID_LIMITS multiplies the default limits, but for `bytes`.
    """

    seconds: float | None = field(default_factory=_times(900))
    pixels: int = field(default_factory=_times(2 * 7680 * 4320))
    bytes: int = 16 * 2**30
    cores: int | None = None
    side: int = field(default_factory=_times(2**16 - 1))  # what JPEG allows
    aspect: int = field(default_factory=_times(1000))
    still_pixels: int = field(default_factory=_times(STILL_PIXELS))
    still_seconds: int = field(default_factory=_times(20))
    download_bytes: int = field(default_factory=_times(8 * 2**30))
    download_seconds: int = field(default_factory=_times(3600))
    sound_seconds: int = field(default_factory=_times(24 * 3600))

    @property
    def pixels_of_buffers(self) -> int:
        """Return the limit for FFmpeg, which counts its buffers' margins, and checks sizes that change later, too."""
        return self.pixels + self.pixels // 4 + 2**16

    def check_size(self, path: str, width: int, height: int, most_pixels: int) -> None:
        """Raise MediaError for pictures of a size that is beyond the limits."""
        if width * height > most_pixels:
            allowed = f"{most_pixels:,} pixels"
        elif max(width, height) > self.side:
            allowed = f"{self.side:,} pixels a side"
        elif max(width, height) > self.aspect * min(width, height):
            allowed = f"a side {self.aspect:,} times as long as the other"
        else:
            return
        raise MediaError(f"{path}: pictures of {width}x{height} are too large: at most {allowed}", RAISE_HINT)


def cores(limits: Limits) -> int:
    """Return the number of cores to decode on: all that this process may use, within the limits."""
    if limits.cores == 1:  # the system need not be asked
        return 1
    usable = _usable_cores()
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
                f"{self.path}: not read within {self.limits.seconds:g} seconds",
                f"use a shorter part of it; {RAISE_HINT}, and --timeout the seconds in a folder run",
            )
        return left

    def for_thread(self) -> Deadline:
        """Return the same deadline for a worker thread, which can be stopped alone, with `stopped.set()`."""
        return replace(self, stopped=threading.Event())
