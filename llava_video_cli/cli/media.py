"""The media of a command line: checked before anything slow, then read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ..conversation import Media
from ..image import Picture, is_picture, read_image
from ..sampling import Sampling
from ..video import probe, read_frames


def check(paths: Iterable[str]) -> None:
    """Raise `MediaError` for the first file that is neither a picture nor a video; cheap."""
    for path in paths:
        if not is_picture(path):
            probe(path)


def read(paths: Iterable[str], sampling: Sampling) -> list[Media]:
    """Return the media of all files, in order."""
    return [read_image(path) if is_picture(path) else read_frames(path, sampling) for path in paths]


def notes(contents: Sequence[Media]) -> list[str]:
    """Return what a user should know about the media as they were read."""
    videos = [medium for medium in contents if not isinstance(medium, Picture)]
    several = len(contents) > 1
    return [f"{video.info.path}: {line}" if several else line for video in videos for line in video.notes]
