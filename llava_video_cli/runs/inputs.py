"""What a run on a cluster is asked to caption: folders, lists and buckets, in parts that its workers go through."""

from __future__ import annotations

import os
import posixpath
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeAlias

from ..errors import MediaError, first_line
from ..validation import parse_json
from ..video.files import Found, find
from .formats import check_parquet
from .storage import is_address, opened, videos

LISTS = (".jsonl", ".parquet")
_COLUMNS = ("video_path", "file", "video", "path")  # the first that is there names the video
_AT_ONCE = 2000  # named paths that a worker looks through
_RANGE_BYTES = 256 * 2**10  # of a list: some thousand lines
_ROWS = 1000  # of a Parquet file that lie in memory


@dataclass(frozen=True)
class NamedPaths:
    """Files, folders and addresses that were named."""

    paths: tuple[str, ...]
    recursive: bool = False


@dataclass(frozen=True)
class ListLines:
    """The lines of a JSONL list that begin in the bytes `[start, stop)`."""

    path: str
    start: int
    stop: int


@dataclass(frozen=True)
class RowGroup:
    """A group of rows of a Parquet list."""

    path: str
    number: int


Part: TypeAlias = NamedPaths | ListLines | RowGroup


def is_list(path: str) -> bool:
    """Whether a path names a list of videos: a JSONL or Parquet file."""
    return posixpath.splitext(path)[1].lower() in LISTS and not os.path.isdir(path)  # noqa: PTH112


def parts(paths: Iterable[str], *, recursive: bool = False, as_video: bool = False) -> Iterator[Part]:
    """Yield what the paths stand for in parts; nothing of it is looked at but the size of lists, and folders' names.

    With `as_video`, a folder is one part: only what is in it tells whether it is a video, or has some below. Raises
    MediaError for a list that can't be read.
    """
    waiting: list[str] = []
    for path in paths:
        if is_list(path):
            yield from _list_parts(path)
        elif recursive and not as_video and not is_address(path) and os.path.isdir(path):  # noqa: PTH112
            yield NamedPaths((path,))
            yield from (NamedPaths((folder,), recursive=True) for folder in _folders(path))
        else:
            waiting.append(path)
            if len(waiting) == _AT_ONCE or is_address(path) or (recursive and as_video):
                yield NamedPaths(tuple(waiting), recursive)
                waiting = []
    if waiting:
        yield NamedPaths(tuple(waiting), recursive)


def found_in(part: Part, *, as_video: bool = False) -> Iterator[Found | MediaError]:
    """Yield the videos of a part, with `as_video` as `find` does; what can't be found is yielded as an error."""
    recursive = isinstance(part, NamedPaths) and part.recursive
    if isinstance(part, NamedPaths):
        names: Iterable[str | MediaError] = part.paths
    else:
        names = _lines(part) if isinstance(part, ListLines) else _rows(part)
    for name in names:
        if isinstance(name, MediaError):
            yield name
        elif is_address(name) and as_video:
            yield MediaError(f"{name}: --as-video can't take pictures from a bucket", "copy them to a shared folder")
        elif is_address(name):
            yield from videos(name, recursive=recursive)
        else:
            yield from find([name], recursive=recursive, as_video=as_video)


def _list_parts(path: str) -> Iterator[ListLines | RowGroup]:
    try:
        with opened(path) as file:
            if posixpath.splitext(path)[1].lower() == ".parquet":
                count = _parquet(path, file).num_row_groups
                yield from (RowGroup(path, number) for number in range(count))
            else:
                size = file.seek(0, os.SEEK_END)
                yield from (ListLines(path, at, min(at + _RANGE_BYTES, size)) for at in range(0, size, _RANGE_BYTES))
    except OSError as error:
        raise MediaError(f"{path}: the list can't be read: {error.strerror or error}") from None


def _lines(part: ListLines) -> Iterator[str | MediaError]:
    try:
        with opened(part.path) as file:
            begin = max(0, part.start - 1)
            file.seek(begin)
            if part.start:
                file.readline()  # the rest of a line that begins before, which is another part's
            while file.tell() < part.stop and (line := file.readline()):
                if line.strip():
                    yield _named(line, part.path)
    except OSError as error:
        yield MediaError(f"{part.path}: the list can't be read: {error.strerror or error}")


def _named(line: bytes, path: str) -> str | MediaError:
    try:
        value = parse_json(line)
        name = value if isinstance(value, str) else next(value[column] for column in _COLUMNS if column in value)
        if isinstance(name, str) and name:
            return _beside(path, name)
    except (ValueError, TypeError, StopIteration):
        pass
    words = line[:60].decode(errors="replace").strip()
    return MediaError(f"{path}: a line without a video: {words}")


def _rows(part: RowGroup) -> Iterator[str | MediaError]:
    try:
        with opened(part.path) as file:
            table = _parquet(part.path, file)
            column = next((column for column in _COLUMNS if column in table.schema_arrow.names), None)
            if column is None:
                raise MediaError(f"{part.path}: no column with the videos", f"name it {' or '.join(_COLUMNS)}")
            for batch in table.iter_batches(_ROWS, row_groups=[part.number], columns=[column]):
                for name in batch.column(0).to_pylist():
                    good = isinstance(name, str) and name
                    yield _beside(part.path, name) if good else MediaError(f"{part.path}: a row without a video")
    except OSError as error:
        yield MediaError(f"{part.path}: the list can't be read: {error}")


def _parquet(path: str, file: BinaryIO) -> Any:
    check_parquet()
    from pyarrow import ArrowInvalid, parquet

    try:
        return parquet.ParquetFile(file)
    except ArrowInvalid as error:
        raise MediaError(f"{path}: not a Parquet file: {first_line(error)}") from None


def _beside(path: str, name: str) -> str:
    """Return a path of a list as seen from where the list lies."""
    if is_address(name) or os.path.isabs(name):  # noqa: PTH117
        return name
    folder = posixpath.dirname(path)
    return f"{folder}/{name}" if folder else name


def _folders(path: str) -> Iterator[str]:
    """Yield the folders in a folder, sorted, but for hidden ones and links, as `find` goes into them."""
    try:
        inside = (each for each in os.scandir(path) if each.is_dir(follow_symlinks=False))
        yield from sorted(each.path for each in inside if not each.name.startswith("."))
    except OSError:
        return  # the worker that looks through it says so
