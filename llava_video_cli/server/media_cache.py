"""The media of requests: read in bounded threads, and kept for the next question on the same."""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

from ..conversation import Media
from ..errors import LlvidError, MediaError
from ..video import Resize, read_frames
from ..video.image import Picture, is_picture, read_image
from ..video.limits import Limits, cores
from ..video.sampling import Sampling
from .errors import RefusedError
from .media import Places

Result = TypeVar("Result")
_GRACE_SECONDS = 5.0  # behind its limit, a reader that lives gives a file up by itself
_MOST_ALIVE_BYTES = 4 * 2**30  # of the media of all requests that are inside, and those kept
_MOST_PICTURE_PIXELS = 64 * 10**6
_MOST_KEPT = 48  # the model holds their features, 38 MB of 32 frames for a 7B, as long as they are here
# A video from a stranger: shorter, and of less memory, than one that a user names on a command line.
LIMITS = Limits(seconds=60.0, bytes=2 * 2**30, cores=1)


@dataclass(frozen=True)
class _Key:
    digest: str
    sampling: Sampling


class Shelf:
    """Reads media, each one once for all who ask for it, and keeps those asked for last, `most_bytes` of them.

    For one event loop. The same content is the same object, so that the model sees at once that it is the same. Threads
    are bounded by the cores; one that hangs is left to itself after the limit's seconds.
    """

    def __init__(self, places: Places, shrink: Resize, most_bytes: int = 2**29, limits: Limits = LIMITS) -> None:
        self._places, self._shrink, self._most_bytes, self._limits = places, shrink, most_bytes, limits
        self._kept: OrderedDict[_Key, Media] = OrderedDict()
        self._lock = threading.Lock()
        self._alive_bytes = 0  # of all media that anybody still holds
        self._slots = asyncio.Semaphore(cores(Limits()))
        self._patience_seconds = (limits.seconds or 900.0) + places.fetch_seconds + _GRACE_SECONDS

    async def read(self, urls: Sequence[str], places: Sequence[str], sampling: Sampling) -> list[Media]:
        """Return the media of URLs. Raises `RefusedError`, whose `param` says which of `places` it is about."""
        media = []
        for url, place in zip(urls, places, strict=True):
            try:
                media.append(await self.in_thread(partial(self._read, url, sampling)))
            except RefusedError as error:
                raise RefusedError(
                    error.status, str(error), error.hint, param=place, code=error.code, headers=error.headers
                ) from None
            except LlvidError as error:
                raise RefusedError(400, f"{place}: {error}", error.hint, param=place, code="invalid_media") from None
        return media

    async def in_thread(self, call: Callable[[], Result]) -> Result:
        """Return what a call returns that takes too long for the event loop.

        Its place is taken until its thread has ended, also when the one who asked is gone, or has waited too long.
        """
        await self._slots.acquire()
        loop = asyncio.get_running_loop()
        slot = _Slot(self._slots.release)
        timer = loop.call_later(self._patience_seconds, slot.free)

        def end() -> None:
            timer.cancel()
            slot.free()

        future: Future[Result] = Future()
        future.set_running_or_notify_cancel()  # whoever asked can't stop it

        def work() -> None:
            try:
                future.set_result(call())
            except BaseException as error:  # noqa: BLE001 - whoever waits gets it
                future.set_exception(error)
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(end)

        threading.Thread(target=work, name="llvid-media", daemon=True).start()
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), self._patience_seconds)
        except asyncio.TimeoutError:
            raise MediaError(f"not read within {self._patience_seconds:g} seconds") from None

    def _read(self, url: str, sampling: Sampling) -> Media:
        with self._places.open(url) as found:
            key = _Key(found.digest, sampling)
            with self._lock:
                if (medium := self._kept.get(key)) is not None:
                    self._kept.move_to_end(key)
                    return medium
            if self._alive_bytes > _MOST_ALIVE_BYTES:
                raise RefusedError(429, "too many media are in memory", headers={"retry-after": "5"})
            with found.file() as path:
                medium = self._decoded(path, found.shown, sampling)
            self._count(_size(medium))
            weakref.finalize(medium, self._count, -_size(medium))
        with self._lock:
            medium = self._kept.setdefault(key, medium)  # two may have read the same at the same time
            while len(self._kept) > _MOST_KEPT or sum(map(_size, self._kept.values())) > self._most_bytes:
                self._kept.popitem(last=False)
        return medium

    def _count(self, size_bytes: int) -> None:
        self._alive_bytes += size_bytes

    def _decoded(self, path: str, shown: str, sampling: Sampling) -> Media:
        try:
            if is_picture(path):
                return Picture(read_image(path, _MOST_PICTURE_PIXELS).pixels, shown)
            frames = read_frames(path, sampling, limits=self._limits, resize=self._shrink)
        except MediaError as error:
            raise MediaError(str(error).replace(path, shown), error.hint) from None
        return replace(frames, info=replace(frames.info, path=shown))


class _Slot:
    """Frees a place once."""

    def __init__(self, free: Callable[[], None]) -> None:
        self._free: Callable[[], None] | None = free

    def free(self) -> None:
        if self._free is not None:
            free, self._free = self._free, None
            free()


def _size(medium: Media) -> int:
    return medium.pixels.nbytes if isinstance(medium, Picture) else medium.images.nbytes
