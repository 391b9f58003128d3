"""Packets to pictures: a run of them from a keyframe on, or a whole file from its start."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import av.error
import numpy as np
from av.packet import Packet

from ..errors import MediaError
from .av1 import SequenceHeader, needed_bytes, sequence_header
from .demux import Packets, Source, demux, is_unstamped, read_packets, reason, time_base_of, timeline_of
from .sampling import Stamps, Timeline

if TYPE_CHECKING:
    from av.video.codeccontext import VideoCodecContext
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_log = logging.getLogger(__name__)


class OffTrackError(Exception):
    """Decoding gave something else than the packets had announced: take a safer way."""


@dataclass(frozen=True)
class Run:
    """Packets that are decoded in one go: from the keyframe `entry` to `stop`, for the sake of the targets."""

    entry: int
    stop: int
    targets: tuple[int, ...]

    @property
    def length(self) -> int:
        """The number of its packets."""
        return self.stop - self.entry + 1


def use_threads(context: VideoCodecContext, count: int) -> None:
    """Decode with that many threads; to be called before the first picture.

    With one, damaged pictures come out the same each time: FFmpeg's h264 decoder hides errors with frame threads in one
    way, without threads in another, and with slice threads not at all: it then leaves what happens to stand in memory.
    """
    context.thread_type = "NONE" if count == 1 else "AUTO"
    context.thread_count = count


def decode_run(source: Source, packets: Packets, run: Run) -> Iterator[tuple[int, VideoFrame]]:
    """Yield each target of the run with its picture, decoding no packet behind `stop` and none that can be left out.

    Raises OffTrackError or an FFmpegError at the first thing that is not as announced; whatever the decoder frowns at,
    such as references that a seek has left behind, should be an error (`err_detect` `explode`).
    """
    due = list(run.targets)
    window = set(packets.stamps[run.entry : run.stop + 1].tolist())
    begin = int(packets.stamps[run.entry])
    last = begin - 1
    for frame in _needed(source, packets, run, begin):
        stamp = frame.pts
        if stamp is None or stamp <= last or stamp not in window or stamp > due[0] or frame.is_corrupt:
            break
        last = stamp
        if stamp == due[0]:
            yield due.pop(0), frame
            del frame
            if not due:
                return
    raise OffTrackError


def decode_run_carefully(source: Source, packets: Packets, run: Run) -> Iterator[tuple[int, VideoFrame]]:
    """Yield each target of the run with its picture, checking that each picture on the way is the next one due."""
    _log.debug("a run of %r is decoded again", source.path)
    due, shown = list(run.targets), packets.timeline.stamps
    upcoming = bisect_left(shown, int(packets.stamps[run.entry]))
    if upcoming == len(shown):
        raise OffTrackError
    begin = int(shown[upcoming])
    for packet in _between(source, packets, Run(run.entry, len(packets.stamps), run.targets)):
        for frame in packet.decode():
            if frame.pts is not None and frame.pts < begin:
                continue
            if upcoming == len(shown) or frame.pts != shown[upcoming] or frame.is_corrupt:
                raise OffTrackError
            upcoming += 1
            if frame.pts == due[0]:
                yield due.pop(0), frame
                if not due:
                    return
    raise OffTrackError


@dataclass(frozen=True)
class Review:
    """What decoding a whole file gives: when its pictures are shown, and the errors on the way."""

    timeline: Timeline
    broken: list[str]


def review(source: Source, progress: Callable[[float], None]) -> Review:
    """Decode a whole video, keeping only a number or two of each picture. Raises MediaError if there is none.

    The pictures' own stamps count if there is one for each, in order; else they are counted at the header's rate.
    """
    _log.debug("%r is decoded in full", source.path)
    broken: list[str] = []
    stamps: list[int | None] = []
    keys: list[int] = []
    last_duration = 0
    use_threads(source.context, 1)
    for frame in _good_frames(source, broken, progress):
        if frame.key_frame:
            keys.append(len(stamps))
        stamps.append(frame.pts)
        last_duration = frame.duration or 0
    if not stamps:
        raise MediaError(f"{source.path}: no picture can be decoded")
    known = [stamp for stamp in stamps if stamp is not None]
    time_base, rate = time_base_of(source.stream), source.stream.average_rate or source.stream.guessed_rate
    if not is_unstamped(source) and len(known) == len(stamps) and known == sorted(set(known)):
        return Review(timeline_of(known, last_duration, time_base, [known[key] for key in keys]), broken)
    return Review(Timeline(range(len(stamps)), len(stamps), 1 / rate if rate else time_base, keys), broken)


def decode_through(
    source: Source, stamps: Stamps, targets: Iterable[int], progress: Callable[[float], None]
) -> Iterator[tuple[int, int, VideoFrame]]:
    """Decode from the start and count: picture k has `stamps[k]`. Yield each target with a stamp and its picture.

    A target that has no picture of its own gets the nearest one.
    """
    numbers: dict[int, list[int]] = {}
    for target in targets:
        numbers.setdefault(nearest(stamps, target), []).append(target)
    use_threads(source.context, 1)
    for number, frame in enumerate(_good_frames(source, [], progress)):
        for target in numbers.pop(number, ()):
            yield target, stamps[number], frame
        if not numbers:
            return


def nearest(stamps: Stamps, target: int) -> int:
    """Return the index of the stamp nearest to the target, of two the earlier; `stamps` ascend."""
    after = bisect_left(stamps, target)
    return min((i for i in (after - 1, after) if 0 <= i < len(stamps)), key=lambda i: abs(stamps[i] - target))


def first_picture(source: Source) -> VideoFrame | None:
    """Return the first picture that can be decoded."""
    return next(_good_frames(source, [], lambda _: None), None)


def _good_frames(source: Source, broken: list[str], progress: Callable[[float], None]) -> Iterator[VideoFrame]:
    for packet in read_packets(source, broken):
        try:
            yield from packet.decode()
        except av.error.FFmpegError as error:
            broken.append(reason(error))
        if packet.pos is not None:
            progress(min(1.0, packet.pos / source.size_bytes))


def _needed(source: Source, packets: Packets, run: Run, begin: int) -> Iterator[VideoFrame]:
    """Decode the packets of the run, leaving out pictures that no other one refers to, unless they are targets.

    The leading pictures of an open GOP, shown before `begin`, lack what they refer to: they are left out too.
    """
    context, targets = source.context, set(run.targets)
    is_av1 = context.codec.canonical_name == "av1"  # dav1d takes `skip_frame` once, when it opens
    sequence: SequenceHeader | None = None
    for packet in _between(source, packets, run):
        stamp = packet.pts
        if packet.size and (stamp is None or stamp >= begin):
            if not is_av1:
                context.skip_frame = "DEFAULT" if stamp in targets else "NONREF"
            elif packet.is_keyframe:
                sequence = sequence_header(bytes(packet), context.extradata)
            elif sequence and stamp not in targets:
                content = memoryview(packet)
                needed = needed_bytes(content, sequence)
                if not needed:
                    continue
                if needed < len(content):
                    packet = Packet(bytes(content[:needed]))
            yield from context.decode(packet)
    yield from context.decode(None)  # what waits to be put in order: cheaper than the packets that would push it out


def _between(source: Source, packets: Packets, run: Run) -> Iterator[Packet[VideoStream]]:
    """Yield the packets of the run, wherever the container's seek really lands."""
    earlier = int(np.searchsorted(packets.keys, run.entry)) - 1
    before = [packets.keys[i] for i in (earlier, earlier - 1, 0) if 0 <= i <= earlier]
    # the container may seek by decoding time, which is the smaller one
    stamps = (packets.stamps[run.entry], packets.decoding[run.entry], *(packets.stamps[key] for key in before))
    behind = int(packets.stamps[run.stop + 1]) if run.stop + 1 < len(packets.stamps) else None
    for landing in stamps:
        source.container.seek(int(landing), stream=source.stream, backward=True)
        begun = False
        for packet in demux(source):
            if begun:
                if behind is not None and packet.pts == behind and packet.size:
                    break
            elif packet.size and packet.pts is not None and (here := packets.position(packet.pts)) is not None:
                if here > run.entry:
                    break  # landed late
                begun = here == run.entry
            if begun:
                yield packet
        if begun:
            return
    raise OffTrackError
