"""The media of a command line: checked before anything slow, then read."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Iterable, Sequence

from ..conversation import Media
from ..errors import MediaError, UsageError
from ..prompt.subtitles import Subtitles, find_subtitles, read_subtitles
from ..video import check_video, read_frames
from ..video.image import Picture, is_picture, read_image
from ..video.sampling import Sampling
from .options import SpeechFlag


def listed(paths: Sequence[str]) -> list[str]:
    """Return the paths, with those that stdin lists in the place of `-`; lists in files stay."""
    if paths.count("-") > 1:
        raise UsageError("stdin can be read only once")
    found: list[str] = []
    for path in paths:
        found += _stdin_paths() if path == "-" else [path]
    return found


def _stdin_paths() -> list[str]:
    if sys.stdin is None:
        raise UsageError("the paths were to come from stdin, but it is closed")
    content = sys.stdin.buffer.read()
    return [os.fsdecode(line) for line in content.split(b"\0" if b"\0" in content else b"\n") if line]


MIXED = "the published checkpoints were not trained on several videos or pictures in one prompt: they may mix them up"


def check(paths: Iterable[str]) -> list[Picture | None]:
    """Return the pictures among the files, read, and None for each video.

    Cheap. Raises `MediaError` for the first file that is neither, or is broken.
    """
    found: list[Picture | None] = []
    for path in paths:
        found.append(read_image(path) if is_picture(path) else None)
        if found[-1] is None:
            check_video(path)
    return found


def read(path: str, picture: Picture | None, sampling: Sampling, progress: Callable[[float], None]) -> Media:
    """Return a file's content; `progress` is told the share that is read."""
    return picture or read_frames(path, sampling, progress=progress)


def read_speech(flag: SpeechFlag, paths: Sequence[str]) -> Subtitles | None:
    """Return the subtitles that a user wants. Raises `UsageError` if they are not for one video, or `MediaError`."""
    if flag.subtitles is None:
        return None
    if len(paths) != 1:
        raise UsageError("--subtitles is for one video")
    if check(paths) != [None]:
        raise MediaError(f"{paths[0]} is a picture: nothing is spoken in it")
    return read_subtitles(find_subtitles(paths[0]) if flag.subtitles == "auto" else flag.subtitles)


def notes(contents: Sequence[Media]) -> list[str]:
    """Return what a user should know about the media as they were read."""
    several = len(contents) > 1
    lines = [f"{medium.path}: {line}" if several else line for medium in contents for line in medium.notes]
    return [*lines, MIXED] if several else lines


class Shelf:
    """The media of a conversation: each path is read once for a sampling, as long as the conversation holds it."""

    def __init__(self) -> None:
        self._pictures: dict[str, Picture | None] = {}
        self._contents: dict[tuple[str, Sampling], Media] = {}

    def check(self, path: str) -> None:
        """Raise `MediaError` for a file that is no video or picture."""
        if path not in self._pictures:
            (self._pictures[path],) = check([path])

    def picture(self, path: str) -> Picture | None:
        """Return a picture, or None for a video; raises `MediaError` for what is neither."""
        self.check(path)
        return self._pictures[path]

    def holds(self, path: str, sampling: Sampling) -> bool:
        """Whether a file has been read."""
        return (path, sampling) in self._contents

    def read(self, path: str, sampling: Sampling, progress: Callable[[float], None]) -> Media:
        """Return a file's content; `progress` is told the share that is read."""
        self.check(path)
        if not self.holds(path, sampling):
            self._contents[path, sampling] = read(path, self._pictures[path], sampling, progress)
        return self._contents[path, sampling]

    def keep(self, paths: Collection[str], sampling: Sampling) -> None:
        """Forget what else was read."""
        self._pictures = {path: picture for path, picture in self._pictures.items() if path in paths}
        self._contents = {
            (path, as_read): medium
            for (path, as_read), medium in self._contents.items()
            if path in paths and as_read == sampling
        }
