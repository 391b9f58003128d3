"""The media of requests: where they may come from, read in bounded threads, and kept for the next question.

From the URL to the pixels: `MediaSources` gives what a URL names as a file, `MediaCache` decodes it.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TypeVar
from urllib.parse import SplitResult, unquote_to_bytes, urlsplit

from ..conversation import Media
from ..errors import LlvidError, MediaError
from ..system.digest import fingerprint
from ..video import Resize, read_frames
from ..video.image import Picture, is_picture, read_image
from ..video.limits import Limits, cores
from ..video.sampling import Sampling
from .fetch import download
from .responses import RefusedError

Result = TypeVar("Result")
_PREFIX = "llvid-serve-"
_GRACE_SECONDS = 5.0  # behind its limit, a reader that lives gives a file up by itself
_MOST_ALIVE_BYTES = 4 * 2**30  # of the media of all requests that are inside, and those kept
_MOST_PICTURE_PIXELS = 64 * 10**6
_MOST_KEPT = 48  # the model holds their features, 38 MB of 32 frames for a 7B, as long as they are here
# A video from a stranger: shorter, and of less memory, than one that a user names on a command line.
LIMITS = Limits(seconds=60.0, bytes=2 * 2**30, cores=1)


@dataclass(frozen=True)
class Found:
    """A content: `digest` is a name that no other has, `file` gives it as a file, `shown` is what messages call it."""

    digest: str
    shown: str
    file: Callable[[], AbstractContextManager[str]]


@dataclass(frozen=True)
class Places:
    """What may be read.

    `folders` are those that `file:` URLs may name files in, `hosts` those that `http:` and `https:` URLs may be
    fetched from. `most_bytes` bounds what is fetched, and `fetch_seconds` how long that may take.
    """

    folders: Sequence[Path] = ()
    hosts: Sequence[str] = ()
    most_bytes: int = 2**30
    fetch_seconds: float = 60.0

    @contextmanager
    def open(self, url: str) -> Iterator[Found]:
        """Give what a URL names, for the `with` block.

        Raises `RefusedError` for what may not be read, and MediaError for what can't be.
        """
        scheme = url[:6].partition(":")[0].lower()
        if scheme == "data":
            yield _data(url)
        elif scheme == "file":
            with self._opened(url) as found:
                yield found
        elif scheme in ("http", "https"):
            with _own_folder() as folder:
                target = folder / "media"
                digest = download(url, target, self.hosts, self.most_bytes, self.fetch_seconds)
                yield Found(
                    digest, urlsplit(url).path.rpartition("/")[2] or "the file", lambda: nullcontext(str(target))
                )
        else:
            raise RefusedError(400, "a URL must begin with data:, file:, http: or https:", code="invalid_url")

    @contextmanager
    def _opened(self, url: str) -> Iterator[Found]:
        path = _path_of(_split(url))
        if not self.folders:
            raise RefusedError(403, "this server reads no files", "it is started with --allow-media-dir for that")
        root, below = self._below(path)
        descriptor = _open_below(root, below, path)
        try:
            status = os.fstat(descriptor)
            digest = fingerprint(f"{status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns}".encode())
            # the file that was looked at and no other, whatever its name means by now
            opened = f"/proc/self/fd/{descriptor}" if sys.platform == "linux" else str(root / below)
            yield Found(digest, path, lambda: nullcontext(opened))
        finally:
            os.close(descriptor)

    def _below(self, path: str) -> tuple[Path, Path]:
        """Return the folder that a path leads into, links followed, and where in it.

        Raises `RefusedError` if it leads into none.
        """
        plain = Path(os.path.normpath(path))
        for folder in self.folders:
            root = folder.resolve()
            if not (plain.is_relative_to(folder.absolute()) or plain.is_relative_to(root)):
                continue  # not even looked at
            try:
                real = Path(path).resolve()
            except (OSError, RuntimeError, ValueError):  # links in a circle, or a name that is too long
                break
            if real.is_relative_to(root):
                return root, real.relative_to(root)
        raise RefusedError(403, "the file is not in a folder that this server may read", code="outside_allowed_folders")


@contextmanager
def _own_folder() -> Iterator[Path]:
    """Give a folder that only this user can look into, gone at the end."""
    with TemporaryDirectory(prefix=_PREFIX) as name:
        yield Path(name)


def _data(url: str) -> Found:
    head, comma, content = url.partition(",")
    if not comma or not head.lower().endswith(";base64") or len(head) > 200:
        raise RefusedError(400, "a data: URL must read data:TYPE;base64,CONTENT", code="invalid_url")
    try:
        raw = base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as error:
        raise RefusedError(400, f"the data: URL is not base64: {error}", code="invalid_url") from None
    return Found(fingerprint(raw), "the data: URL", lambda: _written(raw))


@contextmanager
def _written(content: bytes) -> Iterator[str]:
    with _own_folder() as folder:
        target = folder / "media"
        try:
            target.write_bytes(content)
        except OSError as error:
            raise MediaError(f"it can't be kept for reading: {error.strerror}") from None
        yield str(target)


def _split(url: str) -> SplitResult:
    try:
        return urlsplit(url)
    except ValueError:
        raise RefusedError(400, "not a URL", code="invalid_url") from None


def _path_of(parts: SplitResult) -> str:
    if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
        raise RefusedError(400, "a file: URL must read file:///PATH", code="invalid_url")
    raw = unquote_to_bytes(parts.path)
    if b"\0" in raw or not raw.startswith(b"/"):
        raise RefusedError(400, "a file: URL must hold a whole path", code="invalid_url")
    return os.fsdecode(raw)


def _open_below(root: Path, below: Path, shown: str) -> int:
    """Open a file folder by folder, following no link: what was resolved can't be swapped for one on the way."""
    if sys.platform == "win32":
        return os.open(root / below, os.O_RDONLY)
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        parts = below.parts or (".",)
        for number, part in enumerate(parts):
            kind = os.O_DIRECTORY if number < len(parts) - 1 else os.O_NONBLOCK  # a pipe would wait for a writer
            try:
                inside = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | kind, dir_fd=folder)
            except OSError as error:
                raise MediaError(f"{shown}: {os.strerror(error.errno or 0)}") from None
            os.close(folder)
            folder = inside
        return folder
    except BaseException:
        os.close(folder)
        raise


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
