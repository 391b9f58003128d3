"""What the right frames are, by decoding a whole file in order; and what a reader gives instead."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import numpy as np
from peers import Pixels, Reader, uniform

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from clips import shown

FAR = 12.0  # mean difference of two pictures, of 255: more than any two ways to convert colours differ
NEIGHBOURS = 2


class Truth:
    """The uniform frames of a video and their neighbours, for several numbers of frames."""

    def __init__(self, path: str, counts: Sequence[int]) -> None:
        self.path = path
        self.pictures: dict[int, Pixels] = {}
        total, seen = 0, _announced(path)
        while total != seen:  # more than once only where packets and pictures are not equally many
            total = seen
            self.numbers = {count: uniform(total, count) for count in counts}
            near = {k + d for mine in self.numbers.values() for k in mine for d in range(-NEIGHBOURS, NEIGHBOURS + 1)}
            for seen, frame in enumerate(_frames(path), start=1):
                if seen - 1 in near:
                    self.pictures[seen - 1] = shown(frame)

    def verdict(self, reader: Reader, count: int) -> str:
        """`same`, `other` (and how many, or why) or `error` (and which)."""
        numbers = self.numbers[count]
        try:
            frames = reader(self.path, count)
        except Exception as error:  # noqa: BLE001 - whatever a reader raises is its verdict
            return f"error: {type(error).__name__}"
        if len(frames) != len(numbers):
            return f"other: {len(frames)} frames"
        if frames[0].shape != self.pictures[numbers[0]].shape:
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


def _announced(path: str) -> int:
    with av.open(path, metadata_errors="ignore") as container:
        return sum(1 for packet in container.demux(_stream(container)) if packet.size and not packet.is_discard)


def _stream(container: av.container.InputContainer) -> av.VideoStream:
    stream = container.streams.best("video")
    assert isinstance(stream, av.VideoStream)
    return stream
