"""What captions will ask of a model, before it is loaded: whether that fits its context can be said at once."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from ..conversation import Request
from ..errors import MediaError, UsageError
from ..runs.caption import Task
from ..runs.plan import Todo
from ..video import announced_frames, cut
from ..video.image import is_picture, read_image
from ..video.sampling import MAX_FRAMES, longest
from .preflight import unread
from .settings import Settings

_MOST_TRIED = 20  # videos that can't be read, before somebody else is to find out


def expected(task: Task, settings: Settings) -> list[Request]:
    """Return a request that takes at least as much as any video, or none where nobody can know."""
    sampling, every = task.preset.sampling, task.every_seconds
    if sampling.fps is not None and every is None:
        if settings.rope_auto:
            raise UsageError(
                "--rope-factor auto can't know how many frames --fps takes of each video",
                "--frames N, or the factor itself",
            )
        return []
    if sampling.fps is not None and every is not None:
        most = math.ceil(sampling.fps * longest(every)) + 1
        sampling = replace(sampling, frames=min(most, MAX_FRAMES), fps=None)
    return [task.preset.request(task.preset.prompt, [unread("", sampling)])]


def first(todo: Todo, task: Task) -> Iterator[Request]:
    """Yield the request about the first video that can be read: with as many frames of each, all share its fate."""
    if task.preset.sampling.fps is not None:
        return
    for found, _ in todo.videos[:_MOST_TRIED]:
        with suppress(MediaError):
            yield about(found.path, task)
            return


def about(path: str, task: Task) -> Request:
    """Return the request about a file, or about its first window, with black frames."""
    sampling, every = task.preset.sampling, task.every_seconds
    if is_picture(path):
        return task.preset.request(task.preset.prompt, [read_image(path)])
    part = cut(path, every, sampling).parts[0] if every is not None else sampling
    return task.preset.request(task.preset.prompt, [announced_frames(path, part)])
