"""The media of a command line: checked before anything slow, then read."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from ..conversation import Media
from ..image import Picture, is_picture, read_image
from ..sampling import Sampling
from ..video import check_video, read_frames


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


def notes(contents: Sequence[Media]) -> list[str]:
    """Return what a user should know about the media as they were read."""
    videos = [medium for medium in contents if not isinstance(medium, Picture)]
    several = len(contents) > 1
    return [f"{video.info.path}: {line}" if several else line for video in videos for line in video.notes]
