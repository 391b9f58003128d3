"""What captions will ask of a model, before it is loaded: whether that fits its context can be said at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from ..caption import CaptionJob, Task
from ..conversation import Request
from ..errors import MediaError, UsageError
from ..limits import Limits
from ..sampling import longest
from ..subtitles import Count
from ..todo import Todo
from ..video import cut
from .opening import most_frames, one_pixel, unread
from .options import Settings

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
        sampling = replace(sampling, frames=most_frames(sampling.fps, longest(every)), fps=None)
    return [task.preset.request(task.preset.prompt, [unread("", sampling)])]


def first(todo: Todo, task: Task, count: Count) -> Iterator[Request]:
    """Yield the request about the first video that can be read: with as many frames of each, all share its fate."""
    if task.preset.sampling.fps is not None:
        return
    for found, key in todo.videos[:_MOST_TRIED]:
        with suppress(MediaError):
            yield next(CaptionJob(found.path, key, task, {}, count).questions(one_pixel, Limits())).request
            return


def first_window(path: str, task: Task, _: Count) -> Iterator[Request]:
    """Yield the request about a video's first window."""
    windows = cut(path, task.every_seconds or 0, task.preset.sampling)
    yield task.preset.request(task.preset.prompt, [windows.read(windows.parts[0], resize=one_pixel)])
