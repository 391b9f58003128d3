"""Times in a prompt: how long each video is, and when its frames are on screen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ..conversation import Generation, Request, Turn
from ..video import Frames


def with_times(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Return a conversation in which each text that has videos begins with a sentence about each of them.

    LLaVA-NeXT's demo has a similar sentence. It comes between the media and the question, so that the prompts of
    several questions about a video begin with the same text. To leave earlier turns unchanged, videos are numbered only
    from the turn with the second video on. Times count from the first frame of the whole video; pictures have none.
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


def request_of(
    turns: tuple[Turn, ...],
    generation: Generation,
    timestamps: bool,
    stop: tuple[str, ...] = (),
    logprobs: int | None = None,
) -> Request:
    """Return a request, with the times of frames if they are wanted."""
    if not timestamps:
        return Request(turns, generation, stop, logprobs)
    return Request(with_times(turns), generation, stop, logprobs, turns)


def _sentence(name: str, video: Frames) -> str:
    times, count = ", ".join(f"{time:.2f}s" for time in video.times_seconds), len(video.times_seconds)
    shown = f"its frame at {times}" if count == 1 else f"{count} frames, at {times}"
    return f"{name} is {video.info.duration_seconds:.2f} seconds long, and is shown by {shown}."
