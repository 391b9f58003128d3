"""What the model is told of time: how long each video of a prompt is, and when its frames are on screen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..conversation import Turn
from ..video import Frames
from ..video.image import Picture


def with_times(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Return a conversation in which each text that has videos begins with a sentence about each of them.

    Source: LLaVA-NeXT's demo tells as much, in words of its own. It stands between the media and the question, so that
    several questions on a video begin alike, and what later turns add changes no earlier one: videos have numbers from
    the turn on that holds the second one. Times count from the first picture of the whole video; pictures have none.
    """
    told: list[Turn] = []
    seen = 0
    for turn in turns:
        videos = [medium for medium in turn.media if not isinstance(medium, Picture)]
        numbers = range(seen + 1, seen + 1 + len(videos))
        seen += len(videos)
        names = ["The video" if seen == 1 else f"Video {number}" for number in numbers]
        lines = [_sentence(name, video) for name, video in zip(names, videos, strict=True)]
        told.append(replace(turn, text="\n".join([*lines, turn.text])) if lines else turn)
    return tuple(told)


def _sentence(name: str, video: Frames) -> str:
    times = ", ".join(f"{time:.2f}s" for time in video.times_seconds)
    if len(video.times_seconds) == 1:
        return f"{name} is {video.info.duration_seconds:.2f} seconds long, and is shown by its frame at {times}."
    count = len(video.times_seconds)
    return f"{name} is {video.info.duration_seconds:.2f} seconds long, and is shown by {count} frames, at {times}."
