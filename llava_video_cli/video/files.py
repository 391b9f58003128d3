"""Video and picture files: list those that a run is asked for, and check one before a decoder opens it."""

from __future__ import annotations

import mimetypes
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Literal, Protocol

from ..errors import MediaError, nearest

# Endings that the system's table may lack, or give to something else (.ts is a language too).
_VIDEO_ENDINGS = {
    ".3g2", ".3gp", ".asf", ".avi", ".divx", ".f4v", ".flv", ".gif", ".h264", ".hevc", ".ivf", ".m2ts", ".m4v", ".mkv",
    ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".rm", ".rmvb", ".ts", ".vob", ".webm", ".wmv",
}  # fmt: skip
_PICTURE_ENDINGS = {".avif", ".bmp", ".jpe", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
_LISTED_FOLDERS = 1000  # in search of a video that may have been meant
_LISTED_NAMES = 1000  # of a folder, in search of a name that the user may have meant
_SIMILARITY = 0.75  # names of videos share their ending at least


class Status(Protocol):
    """What shows whether a file has changed; `os.stat_result` has it."""

    @property
    def st_size(self) -> int:
        """Its size in bytes."""

    @property
    def st_mtime_ns(self) -> int:
        """When it was last changed, in nanoseconds."""


@dataclass(frozen=True)
class Found:
    """A file, and the folder that the user named it by ("" if it was named itself)."""

    path: str
    root: str
    status: Status


def find(paths: Iterable[str], *, recursive: bool = False, report_empty: bool = False) -> Iterator[Found | MediaError]:
    """Yield each file that `paths` name, and the media in each folder that they name, sorted by name; each file once.

    In a folder, files count as videos and pictures by their ending. Sound files are included, as they often are videos;
    hidden files are not. A file that is named itself is always included. What can't be opened is yielded as an error,
    and so is a folder without media, with `report_empty`.
    """
    seen: set[str] = set()
    for path in paths:
        is_empty = True
        for file in _named(path, recursive):
            is_empty = False
            if isinstance(file, Found):
                whole = os.path.abspath(file.path)  # noqa: PTH100
                if whole in seen:
                    continue
                seen.add(whole)
            yield file
        if is_empty and report_empty:
            below = None if recursive else first_below(path)
            hint = f"--recursive takes those in its folders, such as {below}" if below else None
            yield MediaError(f"{path}: no videos or pictures in it", hint)


def first_below(folder: str) -> str | None:
    """Return a video or picture in the folders of a folder, if one is found soon."""
    for place, folders, names in islice(os.walk(folder), _LISTED_FOLDERS):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names) if place != folder else ():
            if not name.startswith(".") and may_be_media(os.path.splitext(name)[1].lower()):  # noqa: PTH122
                return os.path.join(place, name)  # noqa: PTH118
    return None


def _named(path: str, recursive: bool) -> Iterator[Found | MediaError]:
    try:
        status = os.stat(path)  # noqa: PTH116 - a Path would cost more than the call, 100,000 times
    except FileNotFoundError:
        yield MediaError(f"{path}: no such file or folder")
    except (OSError, ValueError) as error:
        yield MediaError(f"{path}: can't be opened: {getattr(error, 'strerror', None) or error}")
    else:
        if os.path.isdir(path):  # noqa: PTH112
            yield from _inside(path, path, recursive)
        else:
            yield Found(path, "", status)


def _inside(folder: str, root: str, recursive: bool) -> Iterator[Found | MediaError]:
    try:
        with os.scandir(folder) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        yield MediaError(f"{folder}: can't be listed: {error.strerror}")
        return
    for entry in ordered:
        if entry.name.startswith("."):
            continue
        try:
            if entry.is_dir(follow_symlinks=False):
                if recursive:
                    yield from _inside(entry.path, root, recursive)
            elif may_be_media(os.path.splitext(entry.name)[1].lower()):  # noqa: PTH122
                status = entry.stat()
                if entry.is_file():
                    yield Found(entry.path, root, status)
        except OSError as error:
            yield MediaError(f"{entry.path}: can't be opened: {error.strerror}")


@cache
def may_be_media(suffix: str) -> bool:
    """Return whether files with that ending, in small letters, are videos, sound or pictures."""
    kind = mimetypes.guess_type(f"x{suffix}")[0] or ""
    return suffix in _VIDEO_ENDINGS or may_be_picture(suffix) or kind.startswith(("video/", "audio/"))


def may_be_picture(suffix: str) -> bool:
    """Return whether files with that ending, in small letters, are pictures that can be read."""
    return suffix in _PICTURE_ENDINGS


def check_file(path: str, wanted: Literal["video", "picture", "file of subtitles"]) -> None:
    """Raise MediaError unless `path` is a regular file that is readable and not empty.

    Pipes and devices are refused: reading one could wait for ever.
    """
    try:
        status = Path(path).stat()
    except FileNotFoundError:
        raise MediaError(f"{path}: no such file", _hint(path)) from None
    except (OSError, ValueError) as error:
        words = error.strerror if isinstance(error, OSError) else error
        raise MediaError(f"{path}: can't be opened: {words}") from None
    if stat.S_ISDIR(status.st_mode):
        raise MediaError(f"{path}: a folder, not a {wanted}", "name a file in it")
    if not stat.S_ISREG(status.st_mode):
        raise MediaError(f"{path}: not a regular file")
    if status.st_size == 0:
        raise MediaError(f"{path}: the file is empty")
    if not os.access(path, os.R_OK):
        raise MediaError(f"{path}: can't be opened: Permission denied")


def _hint(path: str) -> str | None:
    """Return a hint for a path that does not exist."""
    if "://" in path:
        return "llvid reads only files: download it first"
    if path == "-":
        return "llvid can't read a video from stdin: name a file"
    if path.endswith("?"):
        return "give the video first, then the questions"
    folder = Path(path).parent
    try:
        return nearest(
            Path(path).name, (entry.name for entry in islice(folder.iterdir(), _LISTED_NAMES)), least=_SIMILARITY
        )
    except OSError:
        return None
