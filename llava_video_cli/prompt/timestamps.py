"""Times in a prompt: how long each video is, and when its frames are on screen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..conversation import Turn
from ..video import Frames


def with_times(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Return a conversation in which each text that has videos begins with a sentence about each of them.

    LLaVA-NeXT's demo says the same in other words. The sentence stands between the media and the question, so that
    several questions about a video begin alike. Later turns change no earlier one: videos are numbered from the turn
    on that holds the second one. Times count from the first frame of the whole video; pictures have none.
    """
    timed: list[Turn] = []
    count = 0
    for turn in turns:
        videos = [medium for medium in turn.media if isinstance(medium, Frames)]
        numbers = range(count + 1, count + 1 + len(videos))
        count += len(videos)
        names = ["The video" if count == 1 else f"Video {number}" for number in numbers]
        lines = [_sentence(name, video) for name, video in zip(names, videos, strict=True)]
        timed.append(replace(turn, text="\n".join([*lines, turn.text])) if lines else turn)
    return tuple(timed)


def _sentence(name: str, video: Frames) -> str:
    times = ", ".join(f"{time:.2f}s" for time in video.times_seconds)
    if len(video.times_seconds) == 1:
        return f"{name} is {video.info.duration_seconds:.2f} seconds long, and is shown by its frame at {times}."
    count = len(video.times_seconds)
    return f"{name} is {video.info.duration_seconds:.2f} seconds long, and is shown by {count} frames, at {times}."
