"""The files that a run is asked to go through."""

from __future__ import annotations

import mimetypes
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from ..errors import MediaError

# What the table of the system may lack, or call something else: .ts is a language too.
_MORE = {
    ".3g2", ".3gp", ".asf", ".avi", ".divx", ".f4v", ".flv", ".gif", ".h264", ".hevc", ".ivf", ".m2ts", ".m4v", ".mkv",
    ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".rm", ".rmvb", ".ts", ".vob", ".webm", ".wmv",
}  # fmt: skip


class Status(Protocol):
    """What tells that a file is as it was; `os.stat_result` has it."""

    @property
    def st_size(self) -> int:
        """Its bytes."""

    @property
    def st_mtime_ns(self) -> int:
        """When it was changed."""


@dataclass(frozen=True)
class Found:
    """A file, and the folder that the user named it by ("" if it was named itself)."""

    path: str
    root: str
    status: Status


def find(paths: Iterable[str], *, recursive: bool = False) -> Iterator[Found | MediaError]:
    """Yield the files that `paths` name, each once, and of folders the videos in them, sorted by name.

    A folder's files are videos by their ending; sound files are taken as well, which often are videos, hidden ones are
    not. A file that is named itself is taken whatever it is. What can't be found is yielded as an error.
    """
    seen: set[str] = set()
    for path in paths:
        for found in _named(path, recursive):
            if isinstance(found, Found):
                whole = os.path.abspath(found.path)  # noqa: PTH100
                if whole in seen:
                    continue
                seen.add(whole)
            yield found


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
            elif may_be_video(os.path.splitext(entry.name)[1].lower()):  # noqa: PTH122
                status = entry.stat()
                if entry.is_file():
                    yield Found(entry.path, root, status)
        except OSError as error:
            yield MediaError(f"{entry.path}: can't be opened: {error.strerror}")


@cache
def may_be_video(suffix: str) -> bool:
    """Whether files of that ending, in small letters, are videos or sound."""
    kind = mimetypes.guess_type(f"x{suffix}")[0] or ""
    return suffix in _MORE or kind.startswith(("video/", "audio/"))
