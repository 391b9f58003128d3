"""The media of a question or of a conversation: checked, read once each, and what a user should know about them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence

from ..conversation import Media
from ..video import check_video, read_frames
from ..video.image import Picture, is_picture, read_image
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


def read_media(
    paths: Sequence[str],
    sampling: Sampling,
    *,
    opened: Callable[[Sequence[Picture | None]], None],
    progress: Callable[[float], None],
) -> list[Media]:
    """Return the contents of the files. Raises `MediaError` for the first one that can't be read.

    `opened` is called once, before most of the reading, with the pictures and None for each video: no file is missing
    then, and each is a picture or has the header of a video. `progress` gets the share of a video that is read.
    """
    if len(paths) > 1 or is_picture(paths[0]):
        pictures = check_media(paths)
        opened(pictures)
        return [
            picture or read_frames(path, sampling, progress=progress)
            for path, picture in zip(paths, pictures, strict=True)
        ]
    has_opened = False  # a single video is opened once

    def show(share: float) -> None:
        nonlocal has_opened
        if not has_opened:
            has_opened = True
            opened([None])
        progress(share)

    return [read_frames(paths[0], sampling, progress=show)]


def media_notes(contents: Sequence[Media]) -> list[str]:
    """Return what a user should know about the media as they were read."""
    several = len(contents) > 1
    lines = [f"{medium.path}: {line}" if several else line for medium in contents for line in medium.notes]
    return [*lines, MIXED] if several else lines


class ConversationMedia:
    """The media of a conversation: each path is read once for a sampling, as long as the conversation holds it."""

    def __init__(self) -> None:
        self._pictures: dict[str, Picture | None] = {}
        self._contents: dict[tuple[str, Sampling], Media] = {}

    def picture(self, path: str) -> Picture | None:
        """Return a picture, or None for a video. Raises `MediaError` for a file that is neither."""
        if path not in self._pictures:
            (self._pictures[path],) = check_media([path])
        return self._pictures[path]

    def holds(self, path: str, sampling: Sampling) -> bool:
        """Whether a file has been read with this sampling."""
        return (path, sampling) in self._contents

    def read(self, path: str, sampling: Sampling, progress: Callable[[float], None]) -> Media:
        """Return a file's content; `progress` gets the share that is read."""
        if not self.holds(path, sampling):
            content = self.picture(path) or read_frames(path, sampling, progress=progress)
            self._contents[path, sampling] = content
        return self._contents[path, sampling]

    def keep(self, paths: Collection[str], sampling: Sampling) -> None:
        """Forget everything but these paths, read with this sampling."""
        self._pictures = {path: picture for path, picture in self._pictures.items() if path in paths}
        self._contents = {
            (path, used): medium
            for (path, used), medium in self._contents.items()
            if path in paths and used == sampling
        }
