"""The media of a question or of a conversation: checked, read once each, and what a user should know about them."""

from __future__ import annotations

import mimetypes
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from ..conversation import Media
from ..errors import MediaError
from ..video import Frames, Resize, check_video, read_frames
from ..video.fit import FrameInput
from ..video.image import Picture, is_picture, read_image, shrunk
from ..video.limits import Limits
from ..video.sampling import Sampling

MIXED = "the published checkpoints were not trained on several videos or pictures in one prompt: they may mix them up"


def check_media(paths: Iterable[str]) -> list[Picture | None]:
    """Return the pictures among the files, read, and None for each video.

    Costs one decoded picture of each video. Raises `MediaError` for the first file that is neither, or is broken.
    """
    pictures: list[Picture | None] = []
    for path in paths:
        pictures.append(read_image(path) if is_picture(path) else None)
        if pictures[-1] is None:
            check_video(path)
    return pictures


def read_medium(path: str, sampling: Sampling, *, limits: Limits | None = None, resize: Resize | None = None) -> Media:
    """Return the content of a file, or of pictures that are one video. Raises `MediaError`."""
    if is_picture(path):
        return noted(read_image(path), sampling)
    return read_frames(path, sampling, limits=limits, resize=resize)


def noted(picture: Picture, sampling: Sampling) -> Picture:
    """Return a picture with what a user should know of it: what the sampling has for others."""
    notes = []
    if sampling.source_fps is not None:
        notes.append("the rate of pictures (source_fps) is not used: this is one picture")
    if sampling.start_seconds or sampling.end_seconds is not None:
        notes.append("the part (start, end) is not used: this is one picture")
    return replace(picture, notes=tuple(notes)) if notes else picture


def read_media(
    paths: Sequence[str],
    sampling: Sampling,
    *,
    opened: Callable[[Sequence[Picture | None]], None],
    progress: Callable[[float], None],
) -> list[Media]:
    """Return the contents of the files. Raises `MediaError` for the first one that can't be read.

    `opened` is called once, before most of the reading, with the pictures and None for each video: no file is missing
    then, and each is a picture or has the header of a video. `progress` gets the share of a video that is read. A
    single video is opened once by FFmpeg, and once for its header.
    """
    named_as_video = (mimetypes.guess_type(paths[0])[0] or "").startswith("video/")
    if len(paths) > 1 or (not named_as_video and is_picture(paths[0])):
        pictures = check_media(paths)
        opened(pictures)
        return [
            noted(picture, sampling) if picture else read_frames(path, sampling, progress=progress, resize=shrunk)
            for path, picture in zip(paths, pictures, strict=True)
        ]
    has_opened = False

    def show(share: float) -> None:
        nonlocal has_opened
        if not has_opened:
            has_opened = True
            opened([None])
        progress(share)

    try:
        return [read_frames(paths[0], sampling, progress=show, resize=shrunk)]
    except MediaError:
        if has_opened or not is_picture(paths[0]):
            raise
    picture = read_image(paths[0])  # it is named as a video
    opened([picture])
    return [noted(picture, sampling)]


def seen_by(media: Sequence[Media], frame_input: FrameInput | None) -> list[Media]:
    """Return media with what a model gets of the frames."""
    return [replace(medium, input=frame_input) if isinstance(medium, Frames) else medium for medium in media]


def media_notes(contents: Sequence[Media]) -> list[str]:
    """Return what a user should know about the media as they were read."""
    several = len(contents) > 1
    lines = [f"{medium.path}: {line}" if several else line for medium in contents for line in medium.notes]
    return [*lines, MIXED] if several else lines
