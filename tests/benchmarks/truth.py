"""What the right frames are, by decoding a whole file in order; and what a reader gives instead."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from peers import Pixels, Reader, uniform

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from clips import SAMPLES, oracle_numbers, shown

from llava_video_cli.errors import MediaError
from llava_video_cli.video import probe

VIDEOS = SAMPLES
FAR = 12.0  # mean difference of two pictures, of 255: more than any two ways to convert colours differ
NEIGHBOURS = 2


class Truth:
    """The uniform frames of a video and their neighbours, for several numbers of frames."""

    def __init__(self, path: str, counts: Sequence[int]) -> None:
        self.path = path
        self.pictures: dict[int, Pixels] = {}
        stamps, end = _announced(path)
        self.on_screen = {count: oracle_numbers(stamps, end, count) if stamps else [] for count in counts}
        total, seen = 0, len(stamps)
        while total != seen:  # more than once only where packets and pictures are not equally many
            total = seen
            self.numbers = {count: uniform(total, count) for count in counts}
            wanted = {k for chosen in (self.numbers, self.on_screen) for mine in chosen.values() for k in mine}
            near = {k + d for k in wanted for d in range(-NEIGHBOURS, NEIGHBOURS + 1)}
            for seen, frame in enumerate(_frames(path), start=1):
                if seen - 1 in near:
                    self.pictures[seen - 1] = shown(frame)

    def verdict(self, reader: Reader, count: int) -> str:
        """`same`, `same by time` (at a variable rate), `other` (and how many, or why) or `error` (and which)."""
        try:
            frames = reader(self.path, count)
        except Exception as error:  # noqa: BLE001 - whatever a reader raises is its verdict
            return f"error: {type(error).__name__}"
        verdict = self._compared(frames, self.numbers[count])
        by_time = verdict != "same" and self._compared(frames, self.on_screen[count]) == "same"
        return "same by time" if by_time else verdict

    def _compared(self, frames: Pixels, numbers: Sequence[int]) -> str:
        if len(frames) != len(numbers):
            return f"other: {len(frames)} frames"
        if numbers[0] in self.pictures and frames[0].shape != self.pictures[numbers[0]].shape:
            return f"other: {frames.shape[2]}x{frames.shape[1]}"
        wrong = sum(not self._is(frame, number) for frame, number in zip(frames, numbers, strict=True))
        return f"other: {wrong} of {len(frames)}" if wrong else "same"

    def _is(self, frame: Pixels, number: int) -> bool:
        distances = {
            k: float(np.abs(frame.astype(np.int16) - self.pictures[k]).mean())
            for k in range(number - NEIGHBOURS, number + NEIGHBOURS + 1)
            if k in self.pictures and self.pictures[k].shape == frame.shape
        }
        return distances.get(number, math.inf) <= min(FAR, min(distances.values(), default=0.0) + 1e-3)


def _frames(path: str) -> Iterator[av.VideoFrame]:
    with av.open(path, metadata_errors="ignore") as container:
        stream = _stream(container)
        stream.thread_type = "AUTO"
        yield from container.decode(stream)


def _announced(path: str) -> tuple[list[int], int]:
    """The stamps that packets announce, in order, and the end of the last picture as the reader sees it."""
    with av.open(path, metadata_errors="ignore") as container:
        stream = _stream(container)
        packets = [packet for packet in container.demux(stream) if packet.size and not packet.is_discard]
        stamps = [k if packet.pts is None else packet.pts for k, packet in enumerate(packets)]
        tick = stream.time_base or Fraction(1, 1000)
    try:
        seconds = probe(path).duration_seconds
    except MediaError:
        seconds = 0.0
    stamps.sort()
    return stamps, stamps[0] + round(Fraction(str(seconds)) / tick) if stamps else 0


def _stream(container: av.container.InputContainer) -> av.VideoStream:
    stream = container.streams.best("video")
    assert isinstance(stream, av.VideoStream)
    return stream
