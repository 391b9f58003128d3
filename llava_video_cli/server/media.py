"""Where a request's media may come from: the bytes of a URL, as a file that a decoder may open."""

from __future__ import annotations

import base64
import binascii
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import SplitResult, unquote_to_bytes, urlsplit

from ..errors import MediaError
from ..system.digest import fingerprint
from .errors import RefusedError
from .fetch import download

_PREFIX = "llvid-serve-"


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
