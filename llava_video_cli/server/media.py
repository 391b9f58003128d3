"""The media of requests: from a URL to a file that may be read, to decoded pixels, which are kept for later requests.

`MediaSources` says which URLs may be read; `MediaCache` keeps what `media_pool` decodes of them.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import os
import re
import shutil
import sys
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from stat import S_ISDIR
from tempfile import TemporaryDirectory, gettempdir
from urllib.parse import unquote_to_bytes, urlsplit
from weakref import WeakValueDictionary

from ..conversation import Media
from ..errors import LlvidError, MediaError
from ..runs.media import noted
from ..speech.transcripts import hear, listen
from ..system.files import fingerprint, lock
from ..video import Frames
from ..video.contact_sheet import thumbnail
from ..video.files import PictureList
from ..video.fit import FrameResize
from ..video.image import Picture
from ..video.limits import Limits, cores
from ..video.sampling import MAX_FRAMES, Sampling
from .fetch import fetch
from .media_pool import MediaPool
from .media_worker import DecodeJob
from .responses import RequestError, hint_for_clients

_PREFIX = "llvid-serve-"
_FRAMES_TYPE = "data:video/jpeg;"  # of a data: URL with the pictures of a video, each in base64, with commas between
_NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/=]")
_UNLOCKED_SECONDS = 1.0  # more than it takes to lock a new folder
_SLOW_SLOTS = 4  # besides one for each core, so that a few slow media don't keep the others waiting
_MAX_LIVE_BYTES = 4 * 2**30  # of the media of all active requests, and those in the cache
_MAX_PICTURE_PIXELS = 64 * 10**6
_MAX_CACHED = 48  # the model keeps the features of each medium here: of 32 frames 38 MB, for a 7B
# A client's video may take less time and memory than one that is named on the command line. `media_worker` also bounds
# the processor time: at low priority, the time by the clock can be much longer.
_LIMITS = Limits(seconds=120.0, bytes=2 * 2**30, cores=1)
_MOST_SOUND_SECONDS, _SPEECH_SECONDS = 2 * 3600, 300.0  # of a video; and how long a request waits for its transcript


@dataclass(frozen=True)
class MediaContent:
    """What a URL names: `digest` identifies the content, messages call it `name`, `open` gives the path of a file.

    `raw` is the content itself, where it came with the request.
    """

    digest: str
    name: str
    open: Callable[[], AbstractContextManager[str]]
    raw: bytes | None = None


@dataclass(frozen=True)
class MediaSources:
    """Which URLs may be read.

    `folders` are the folders whose files `file:` URLs may name, `hosts` those that `http:` and `https:` URLs may be
    fetched from. `max_bytes` and `fetch_seconds` bound a download.
    """

    folders: Sequence[Path] = ()
    hosts: Sequence[str] = ()
    max_bytes: int = 2**30
    fetch_seconds: float = 60.0

    @contextmanager
    def open(self, url: str, cancelled: threading.Event) -> Iterator[MediaContent]:
        """Give what a URL names, for the `with` block; a `PictureList` names the pictures of a video.

        Raises `RequestError` for a URL that may not be read, and MediaError for one that can't be read.
        """
        scheme = _scheme_of(url)
        if isinstance(url, PictureList):
            with self._open_list(url.paths, cancelled) as content:
                yield content
        elif scheme == "data":
            yield _read_data(url)
        elif scheme == "file":
            with self._open_file(url) as content:
                yield content
        elif scheme in ("http", "https"):
            with _private_folder() as folder:
                yield self._fetched(url, folder / "media", cancelled)
        else:
            raise RequestError(400, "a URL must begin with data:, file:, http: or https:", code="invalid_url")

    @contextmanager
    def _open_list(self, urls: Sequence[str], cancelled: threading.Event) -> Iterator[MediaContent]:
        """Give pictures as one video; the bounds of a download hold for all of them together."""
        with _private_folder() as folder, ExitStack() as opened:
            contents: list[MediaContent] = []
            left, until = self.max_bytes, time.monotonic() + self.fetch_seconds
            for number, url in enumerate(urls):
                sources = replace(self, max_bytes=left, fetch_seconds=until - time.monotonic())
                if _scheme_of(url) in ("http", "https"):
                    target = folder / str(number)
                    contents.append(sources._fetched(url, target, cancelled))  # noqa: SLF001 - its own
                    left -= target.stat().st_size
                else:
                    contents.append(opened.enter_context(sources.open(url, cancelled)))
            yield _as_video(contents, "the list of pictures")

    def _fetched(self, url: str, target: Path, cancelled: threading.Event) -> MediaContent:
        with _disk_errors():
            digest = fetch(url, target, self.hosts, self.max_bytes, self.fetch_seconds, cancelled)
        name = urlsplit(url).path.rpartition("/")[2] or "the file"
        return MediaContent(digest, name, lambda: nullcontext(str(target)))

    @contextmanager
    def _open_file(self, url: str) -> Iterator[MediaContent]:
        path = _path_of(url)
        if not self.folders:
            raise RequestError(403, "this server does not read files: start it with --allow-media-dir FOLDER")
        root, relative = self._split(path)
        descriptor = _open_below(root, relative, path)
        try:
            status = os.fstat(descriptor)
            if S_ISDIR(status.st_mode):  # what lies in it was not checked, and links may lead out of it
                raise MediaError(f"{path}: a folder, not a video", "send its pictures as a list of URLs")
            digest = fingerprint(f"{status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns}".encode())
            # the file that was checked, even if its name now leads to another one
            checked = f"/proc/{os.getpid()}/fd/{descriptor}" if sys.platform == "linux" else str(root / relative)
            yield MediaContent(digest, path, lambda: nullcontext(checked))
        finally:
            os.close(descriptor)

    def _split(self, path: str) -> tuple[Path, Path]:
        """Return the allowed folder that a path leads into when links are followed, and the path relative to it.

        Raises `RequestError` if it leads into no allowed folder.
        """
        plain = Path(os.path.normpath(path))
        for folder in self.folders:
            root = folder.resolve()
            if not (plain.is_relative_to(folder.absolute()) or plain.is_relative_to(root)):
                continue  # before anything on the disk is read
            try:
                real = Path(path).resolve()
            except (OSError, RuntimeError, ValueError):  # links in a circle, or a name that is too long
                break
            if real.is_relative_to(root):
                return root, real.relative_to(root)
        raise RequestError(403, "the file is not in a folder that this server may read", code="outside_allowed_folders")


@dataclass(frozen=True)
class _CacheKey:
    digest: str
    sampling: Sampling
    is_whole: bool


class MediaCache:
    """Reads media, and keeps the last used ones, at most `max_bytes` of them. For one event loop.

    The same content is the same object in all requests, so the model can reuse its features. Clients take turns: each
    reads the media of one request at a time. What it decodes runs in a process that ends with the request.
    """

    def __init__(
        self, sources: MediaSources, shrink: FrameResize, max_bytes: int = 2**29, limits: Limits = _LIMITS
    ) -> None:
        self._sources, self._shrink, self._max_bytes, self._limits = sources, shrink, max_bytes, limits
        self._cached: OrderedDict[_CacheKey, Media] = OrderedDict()
        self._lock = threading.Lock()
        self._live_bytes = 0  # of all media that are still referenced
        slots = cores(Limits()) + _SLOW_SLOTS
        self._slots, self._threads = asyncio.Semaphore(slots), ThreadPoolExecutor(slots, "llvid-media")
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # of the clients
        self._pool = MediaPool(max_idle=slots)
        self._active = set[threading.Event]()
        self._closed = False

    def close(self) -> None:
        """Stop reading, and end the processes."""
        self._closed = True
        for cancelled in self._active:
            cancelled.set()
        self._threads.shutdown(wait=False)
        self._pool.close()

    async def read(
        self,
        urls: Sequence[str],
        params: Sequence[str],
        samplings: Sequence[Sampling],
        client: str,
        *,
        whole: bool = False,
    ) -> list[Media]:
        """Return the media of URLs. Raises `RequestError`; its `param` is that of the URL, from `params`.

        The frames are as the model gets them; `whole` ones are as a contact sheet shows them.

        If the caller is cancelled, the reading stops. The client's slot is free again when the reading has ended.
        """
        if not urls:
            return []
        if self._closed:
            raise _stopping()
        cancelled = threading.Event()

        def work() -> list[Media]:
            each = zip(urls, params, samplings, strict=True)
            return [self._read(*one, cancelled, whole) for one in each]

        self._active.add(cancelled)
        try:
            turn = self._turns.setdefault(client, asyncio.Lock())
            async with turn, self._slots:  # both let those pass first who came first
                if cancelled.is_set():
                    raise _stopping()
                reading = asyncio.get_running_loop().run_in_executor(self._threads, work)
                try:
                    return await asyncio.shield(reading)
                except asyncio.CancelledError:
                    cancelled.set()
                    with suppress(Exception):
                        await reading
                    raise
        finally:
            self._active.discard(cancelled)

    def _read(self, url: str, param: str, sampling: Sampling, cancelled: threading.Event, whole: bool) -> Media:
        try:
            with self._sources.open(url, cancelled) as content:
                return self._read_content(content, sampling, cancelled, whole)
        except RequestError as error:
            raise RequestError(
                error.status, str(error), error.hint, param=param, code=error.code, headers=error.headers
            ) from None
        except MediaError as error:
            if cancelled.is_set():
                raise _stopping() from None
            hint = hint_for_clients(error.hint)
            raise RequestError(400, f"{param}: {error}", hint, param=param, code="invalid_media") from None

    def _read_content(
        self, content: MediaContent, sampling: Sampling, cancelled: threading.Event, whole: bool
    ) -> Media:
        key = _CacheKey(content.digest, sampling, whole)
        with self._lock:
            if (medium := self._cached.get(key)) is not None:
                self._cached.move_to_end(key)
                return medium
        if self._live_bytes > _MAX_LIVE_BYTES:
            raise RequestError(429, "the media of other requests fill the memory", headers={"retry-after": "5"})
        with content.open() as path:
            medium = self._decode(path, content.name, sampling, cancelled, whole)
        self._count(medium.bytes)
        weakref.finalize(medium, self._count, -medium.bytes)
        with self._lock:
            medium = self._cached.setdefault(key, medium)  # two requests may have read the same at the same time
            cached = self._cached
            while len(cached) > _MAX_CACHED or sum(each.bytes for each in cached.values()) > self._max_bytes:
                cached.popitem(last=False)
        return medium

    def _count(self, size_bytes: int) -> None:
        self._live_bytes += size_bytes

    def _decode(self, path: str, name: str, sampling: Sampling, cancelled: threading.Event, whole: bool) -> Media:
        resize = thumbnail if whole else partial(self._shrink, fit=sampling.fit)

        def named(text: str) -> str:
            """Name the files as the client knows them."""
            if not isinstance(path, PictureList):
                return text.replace(path, name)
            if len(path.paths) > 1:
                text = text.replace(path, name)  # which ends in the name of the last picture
            for number, picture in enumerate(path.paths, start=1):
                text = text.replace(f"{picture}:", f"picture {number}:")
            return text

        try:
            job = DecodeJob(path, sampling, self._limits, _MAX_PICTURE_PIXELS)
            medium = self._pool.decode(job, resize, cancelled)
        except MediaError as error:
            raise MediaError(named(str(error)), error.hint) from None
        if isinstance(medium, Picture):
            return noted(replace(medium, path=name), sampling)
        if sampling.speech and not whole:
            medium = self._heard(medium, name, cancelled)
        notes = tuple(map(named, medium.notes))
        return replace(medium, info=replace(medium.info, path=name), notes=notes, input=self._shrink.input)

    def _heard(self, video: Frames, name: str, cancelled: threading.Event) -> Frames:
        """Return frames with what is said; what takes too long goes on, so that a later request finds it done."""
        limits, until = replace(self._limits, sound_seconds=_MOST_SOUND_SECONDS), time.monotonic() + _SPEECH_SECONDS
        try:
            for _ in listen(video.path, video.sampling, limits=limits):
                if cancelled.is_set():
                    raise _stopping()
                if time.monotonic() > until:
                    raise RequestError(503, "the speech is still being transcribed", headers={"retry-after": "60"})
            return hear(video, limits=limits)
        except MediaError as error:
            raise MediaError(str(error).replace(video.path, name), error.hint) from None


def _as_video(contents: Sequence[MediaContent], name: str) -> MediaContent:
    """Return pictures as the content of one video.

    Those that came with the request lie in one folder: a folder each, which is open while it is locked, would take all
    files that this process may open.
    """

    @contextmanager
    def open_all() -> Iterator[str]:
        with _private_folder() as folder, ExitStack() as opened:
            paths: list[str] = []
            for number, content in enumerate(contents):
                if content.raw is None:
                    paths.append(opened.enter_context(content.open()))
                else:
                    paths.append(_written(folder / str(number), content.raw))
            yield PictureList(paths)

    return MediaContent(fingerprint("".join(content.digest for content in contents).encode()), name, open_all)


def _stopping() -> RequestError:
    return RequestError(503, "the server is shutting down", headers={"retry-after": "5"})


@contextmanager
def _private_folder() -> Iterator[Path]:
    """Give a temporary folder for the `with` block; it is locked, so that no other server removes it."""
    try:
        folder = TemporaryDirectory(prefix=_PREFIX)
    except OSError as error:
        raise RequestError(503, f"a temporary folder can't be made: {error.strerror}") from None
    with folder as name, _locked(Path(name)):
        yield Path(name)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock a folder for the `with` block. Raises LlvidError if another process has locked it."""
    if sys.platform == "win32":
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        lock(descriptor, str(folder))
        yield
    finally:
        os.close(descriptor)


def remove_leftovers() -> None:
    """Remove the temporary folders of this user's servers that were killed; not on Windows."""
    for folder in Path(gettempdir()).glob(f"{_PREFIX}*") if sys.platform != "win32" else ():
        with suppress(OSError, LlvidError):
            status = folder.lstat()
            is_ours = S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
            if is_ours and time.time() - status.st_mtime > _UNLOCKED_SECONDS:
                with _locked(folder):
                    shutil.rmtree(folder)


def _read_data(url: str) -> MediaContent:
    head, comma, content = url.partition(",")
    if not comma or not head.lower().endswith(";base64") or len(head) > 200:
        raise RequestError(400, "a data: URL must look like data:TYPE;base64,CONTENT", code="invalid_url")
    if head.lower().startswith(_FRAMES_TYPE):  # the pictures of a video, as vLLM takes them
        pictures = content.split(",", MAX_FRAMES)
        if len(pictures) > MAX_FRAMES:
            raise RequestError(400, f"a video can have at most {MAX_FRAMES} pictures", code="invalid_url")
        return _as_video([_decoded(picture) for picture in pictures], "the data: URL")
    return _decoded(content)


def _decoded(content: str) -> MediaContent:
    try:
        raw = base64.b64decode(content, validate=True)
    except (binascii.Error, ValueError) as error:
        other = _NOT_BASE64.search(content)
        problem = f"character {other.start() + 1} of the content is {other[0]!a}" if other else str(error)
        hint = "send it whole and without line breaks, as `base64 -w0 FILE` prints it; on a Mac, `base64 -i FILE`"
        raise RequestError(400, f"the data: URL is not base64: {problem}", hint, code="invalid_url") from None
    return MediaContent(fingerprint(raw), "the data: URL", lambda: _temporary_file(raw), raw)


@contextmanager
def _temporary_file(content: bytes) -> Iterator[str]:
    with _private_folder() as folder:
        yield _written(folder / "media", content)


def _written(target: Path, content: bytes) -> str:
    with _disk_errors():
        target.write_bytes(content)
    return str(target)


@contextmanager
def _disk_errors() -> Iterator[None]:
    """Turn what the system says of a temporary file into `RequestError`: where the disk is full, a later try may do."""
    try:
        yield
    except OSError as error:
        raise RequestError(503, f"a temporary file can't be written: {error.strerror}") from None


def _scheme_of(url: str) -> str:
    return url[:6].partition(":")[0].lower()


def _path_of(url: str) -> str:
    """Return the path in a `file:` URL."""
    try:
        parts = urlsplit(url)
        raw = unquote_to_bytes(parts.path)
    except ValueError:  # also for half a character, which JSON may have
        raise RequestError(400, "not a URL", code="invalid_url") from None
    if parts.netloc not in ("", "localhost") or parts.query or parts.fragment:
        raise RequestError(400, "a file: URL must look like file:///PATH", code="invalid_url")
    if b"\0" in raw or not raw.startswith(b"/"):
        raise RequestError(400, "a file: URL must have an absolute path", code="invalid_url")
    return os.fsdecode(raw)


def _open_below(root: Path, relative: Path, name: str) -> int:
    """Open a file folder by folder, following no link, so that nobody can put a link there after the check."""
    if sys.platform == "win32":
        return os.open(root / relative, os.O_RDONLY)
    descriptor = None
    try:
        descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
        parts = relative.parts or (".",)
        for number, part in enumerate(parts):
            kind = os.O_DIRECTORY if number < len(parts) - 1 else os.O_NONBLOCK  # a pipe would wait for a writer
            inner = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | kind, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        return descriptor
    except OSError as error:
        if descriptor is not None:
            os.close(descriptor)
        raise MediaError(f"{name}: {os.strerror(error.errno or 0)}") from None
