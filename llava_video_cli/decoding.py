"""Decoding the pictures at given stamps, and no more of the file than they need."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING

import av.error
import numpy as np

from .container import open_video, read_packets, reason
from .sampling import Timeline
from .survey import Orientation, Packets, Survey, timeline_of

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream
    from numpy.typing import NDArray


class OffTrackError(Exception):
    """Decoding gave something else than the packets had announced: take a safer way."""


@dataclass
class Canvas:
    """Pictures as they are found: `images` uint8 (targets, height, width, 3), row i for the i-th target.

    `shown[target]` is the stamp of the picture that stands in the target's row.
    """

    rows: dict[int, int]
    images: NDArray[np.uint8]
    survey: Survey
    shown: dict[int, int] = field(default_factory=dict)
    resized: bool = False

    @classmethod
    def blank(cls, survey: Survey, targets: Iterable[int]) -> Canvas:
        """Return a canvas with an empty row for each target."""
        rows = {target: row for row, target in enumerate(targets)}
        height, width = survey.height, survey.width
        if survey.orientation.transpose:
            height, width = width, height
        return cls(rows, np.empty((len(rows), height, width, 3), np.uint8), survey)

    @property
    def left(self) -> list[int]:
        """The targets that have no picture yet, ascending."""
        return sorted(target for target in self.rows if target not in self.shown)

    def put(self, target: int, frame: VideoFrame, stamp: int) -> None:
        """Convert a frame into its target's row."""
        width, height = self.survey.width, self.survey.height
        self.resized = self.resized or (frame.width, frame.height) != (width, height)
        pixels = frame.reformat(width=width, height=height, format="rgb24").to_ndarray()
        self.images[self.rows[target]] = upright(pixels, self.survey.orientation)
        self.shown[target] = stamp


def upright(pixels: NDArray[np.generic], orientation: Orientation) -> NDArray[np.generic]:
    """Return a view of a decoded picture, (height, width, 3), turned as it is to be shown."""
    if orientation.transpose:
        pixels = pixels.transpose(1, 0, 2)
    if orientation.flip_rows:
        pixels = pixels[::-1]
    return pixels[:, ::-1] if orientation.flip_columns else pixels


def decode_runs(path: str, packets: Packets, canvas: Canvas, *, strict: bool) -> None:
    """Fill the canvas by seeking, with one run for all the targets behind a keyframe, as far as all goes well.

    Every picture up to a target is checked against the timeline, and an error ends a run: its targets are left.
    `strict` uses frame threads, which hide errors in their own way, and so makes an error of whatever the decoder
    frowns at, such as references that a seek has left behind. Without it one thread decodes, as in `decode_through`.
    """
    position = {stamp: i for i, stamp in enumerate(packets.stamps)}
    targets = [(packets.entry(target, position[target]), target) for target in canvas.left]
    if not targets:
        return
    with open_video(path) as (container, stream):
        if strict:
            stream.thread_type = "AUTO"
            stream.codec_context.options = {"err_detect": "explode"}
        else:
            _use_one_thread(stream)
        for entry, run in groupby(targets, key=lambda pair: pair[0]):
            wanted = [target for _, target in run]
            try:
                frames = _frames_from(container, stream, packets, position, entry)
                for frame, stamp in _checked(frames, packets.timeline, packets.stamps[entry]):
                    if stamp == wanted[0]:
                        canvas.put(wanted.pop(0), frame, stamp)
                        if not wanted:
                            break
            except (OffTrackError, av.error.FFmpegError):
                continue


def decode_through(path: str, stamps: Sequence[int], canvas: Canvas) -> None:
    """Fill what is left of the canvas by decoding from the start and counting: picture k has `stamps[k]`.

    A target that has no picture of its own gets the nearest one.
    """
    numbers: dict[int, list[int]] = {}
    for target in canvas.left:
        numbers.setdefault(nearest(stamps, target), []).append(target)
    with open_video(path) as (container, stream):
        _use_one_thread(stream)
        for number, frame in enumerate(_good_frames(container, stream, [])):
            for target in numbers.pop(number, ()):
                canvas.put(target, frame, stamps[number])
            if not numbers:
                return


@dataclass(frozen=True)
class Review:
    """What decoding a whole file gives: each picture's stamp in the order of showing, and the errors on the way."""

    stamps: list[int | None]
    keys: list[int]
    last_duration: int
    broken: list[str]

    def timeline(self, survey: Survey) -> Timeline:
        """Return the pictures' own stamps if there is one for each, in order; else count at the header's rate."""
        known = [stamp for stamp in self.stamps if stamp is not None]
        if not survey.reordered and len(known) == len(self.stamps) and known == sorted(set(known)):
            keyframes = [known[key] for key in self.keys]
            return timeline_of(known, self.last_duration, survey.time_base, keyframes)
        tick = 1 / survey.rate if survey.rate else survey.time_base
        return Timeline(range(len(self.stamps)), len(self.stamps), tick, self.keys)


def review(path: str) -> Review:
    """Decode a whole video, keeping only a number or two of each picture."""
    broken: list[str] = []
    stamps: list[int | None] = []
    keys: list[int] = []
    last_duration = 0
    with open_video(path) as (container, stream):
        _use_one_thread(stream)
        for frame in _good_frames(container, stream, broken):
            if frame.key_frame:
                keys.append(len(stamps))
            stamps.append(frame.pts)
            last_duration = frame.duration or 0
    return Review(stamps, keys, last_duration, broken)


def nearest(stamps: Sequence[int], target: int) -> int:
    """Return the index of the stamp nearest to the target, of two the earlier; `stamps` ascend."""
    after = bisect_left(stamps, target)
    return min((i for i in (after - 1, after) if 0 <= i < len(stamps)), key=lambda i: abs(stamps[i] - target))


def _use_one_thread(stream: VideoStream) -> None:
    """Make damaged pictures come out the same each time.

    FFmpeg's h264 decoder hides errors with frame threads in one way, without threads in another, and with slice
    threads not at all: it then leaves what happens to stand in memory.
    """
    stream.thread_type = "NONE"
    stream.codec_context.thread_count = 1


def _good_frames(container: InputContainer, stream: VideoStream, broken: list[str]) -> Iterator[VideoFrame]:
    for packet in read_packets(container, stream, broken):
        try:
            yield from packet.decode()
        except av.error.FFmpegError as error:
            broken.append(reason(error))


def _frames_from(
    container: InputContainer, stream: VideoStream, packets: Packets, position: dict[int, int], entry: int
) -> Iterator[VideoFrame]:
    """Yield the frames of the packets from `entry` on, wherever the container's seek really lands."""
    earlier = bisect_left(packets.keys, entry) - 1
    before = [packets.keys[i] for i in (earlier, earlier - 1, 0) if 0 <= i <= earlier]
    # the container may seek by decoding time, which is the smaller one
    for landing in (
        packets.stamps[entry],
        packets.decoding_stamps[entry],
        *(packets.stamps[i] for i in before),
    ):
        container.seek(landing, stream=stream, backward=True)
        begun = False
        for packet in container.demux(stream):
            here = position.get(packet.pts) if packet.pts is not None else None
            if not begun and here is not None and here > entry:
                break  # landed late
            begun = begun or here == entry
            if begun:
                yield from packet.decode()
        if begun:
            return
    raise OffTrackError


def _checked(frames: Iterable[VideoFrame], timeline: Timeline, entry_stamp: int) -> Iterator[tuple[VideoFrame, int]]:
    """Yield frames with their stamps as long as they are just those of the timeline, from the entry on."""
    begin = bisect_left(timeline.stamps, entry_stamp)
    upcoming = iter(range(begin, len(timeline.stamps)))
    for frame in frames:
        stamp = frame.pts
        if stamp is not None and stamp < timeline.stamps[begin]:
            continue  # leading pictures of an open GOP, which nobody asked for
        index = next(upcoming, None)
        if stamp is None or index is None or stamp != timeline.stamps[index] or frame.is_corrupt:
            break
        yield frame, stamp
    raise OffTrackError  # a target is still missing


def assemble(canvas: Canvas, chosen: Sequence[int]) -> tuple[NDArray[np.uint8], list[int]]:
    """Return the images for the chosen stamps and the stamps that they really have, in order of time.

    A picture that stands in for a lost one is given once only; one that was chosen twice, twice.
    """
    kept: list[int] = []
    for target in chosen:
        if kept and target != kept[-1] and canvas.shown[target] == canvas.shown[kept[-1]]:
            continue
        kept.append(target)
    rows = [canvas.rows[target] for target in kept]
    images = canvas.images if rows == list(range(len(canvas.rows))) else canvas.images[rows]
    return images, [canvas.shown[target] for target in kept]
