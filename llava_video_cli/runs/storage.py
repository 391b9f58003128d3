"""Files that lie in a bucket, or behind anything else that pyarrow or fsspec opens by an address such as s3://."""

from __future__ import annotations

import io
import os
import posixpath
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import LlvidError, MediaError, first_line
from ..video.files import Found, may_be_media

_COPIED_AT_ONCE = 2**20


@dataclass(frozen=True)
class _StoredStatus:
    st_size: int
    st_mtime_ns: int


def is_address(path: str) -> bool:
    """Whether a path is an address such as s3://bucket/name."""
    return "://" in path


def videos(address: str, *, recursive: bool) -> Iterator[Found | MediaError]:
    """Yield the videos that an address stands for: itself, or those below it by their ending, sorted by name."""
    from pyarrow import fs

    try:
        system, path = file_system(address)
        info = system.get_file_info(path)
        if info.type == fs.FileType.NotFound:
            yield MediaError(f"{address}: no such file or folder")
            return
        one = info.type == fs.FileType.File
        found = [info] if one else system.get_file_info(fs.FileSelector(path, recursive=recursive))
    except OSError as error:
        yield _unreadable(address, error)
        return
    for each in sorted(found, key=lambda each: str(each.path)):
        inside = "" if one else posixpath.relpath(each.path, path)
        hidden = any(name.startswith(".") for name in inside.split("/"))
        if one or (
            each.type == fs.FileType.File and not hidden and may_be_media(posixpath.splitext(inside)[1].lower())
        ):
            name = f"{address.rstrip('/')}/{inside}".rstrip("/")
            yield Found(name, "", _StoredStatus(each.size or 0, each.mtime_ns or 0))


@contextmanager
def fetched(address: str) -> Iterator[str]:
    """Give a copy of a file on this machine, which is gone at the end. Raises MediaError."""
    beside = tempfile.mkdtemp(prefix="llvid-")
    try:
        copy = Path(beside) / f"video{posixpath.splitext(address)[1][:16]}"
        try:
            with opened(address) as source, copy.open("wb") as target:
                shutil.copyfileobj(source, target, _COPIED_AT_ONCE)
        except OSError as error:
            raise _unreadable(address, error) from None
        yield os.fspath(copy)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


@contextmanager
def opened(path: str) -> Iterator[BinaryIO]:
    """Give a file, of a bucket or of this machine, to be read. Raises OSError, or LlvidError for an odd address."""
    if not is_address(path):
        with Path(path).open("rb") as file:
            yield file
        return
    system, inside = file_system(path)
    with system.open_input_file(inside) as file:
        yield buffered(file)


def buffered(file: Any) -> BinaryIO:
    """Return a file of pyarrow's as one that can be read in lines."""
    return io.BufferedReader(file, _COPIED_AT_ONCE)


def file_system(address: str) -> tuple[Any, str]:
    """Return pyarrow's file system of an address, or of a path, and the path in it.

    Raises LlvidError if nothing opens it.
    """
    from pyarrow import fs

    if not is_address(address):
        return fs.LocalFileSystem(), os.path.abspath(address)  # noqa: PTH100 - links in a path stay
    try:
        return fs.FileSystem.from_uri(address)  # type: ignore[no-any-return]
    except (ValueError, OSError) as error:  # a scheme that it doesn't know
        reason = str(error)
    try:
        import fsspec

        system, path = fsspec.core.url_to_fs(address)
        return fs.PyFileSystem(fs.FSSpecHandler(system)), path
    except (ImportError, ValueError, OSError) as error:
        words = first_line(error) if str(error) else reason
    raise LlvidError(f"{address} can't be opened: {words}", "s3://, gs:// and hdfs:// work without another package")


def _unreadable(address: str, error: OSError) -> MediaError:
    words = error.strerror or first_line(error)
    return MediaError(f"{address}: can't be read: {words}")
