"""What a video file really holds, from one pass over its packets and one decoded picture."""

from __future__ import annotations

import struct
from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, cast

import av.error

from .container import MAX_PIXELS, open_video, read_packets
from .errors import MediaError
from .sampling import Timeline, is_constant

if TYPE_CHECKING:
    from av.packet import Packet
    from av.sidedata.sidedata import SideData
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# Here stamps give the order of decoding, which is that of showing only without B-frames.
UNSTAMPED = {"avi", "h264", "hevc", "vvc", "m4v", "mpegvideo", "vc1", "h263", "h261", "dirac", "obu"}
MAX_REORDER = 64  # frames; codecs allow 16: more is a clock that starts anew in the middle of a file


@dataclass(frozen=True, slots=True)
class Seen:
    """What is kept of a packet."""

    stamp: int | None
    decoding_stamp: int | None
    duration: int
    is_keyframe: bool
    is_hidden: bool


@dataclass(frozen=True)
class Orientation:
    """How a decoded picture is turned and mirrored to be shown: transposed first, flipped after."""

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    @property
    def clockwise_degrees(self) -> int:
        """The turn, of 0, 90, 180 or 270 degrees; a mirror image along the vertical axis comes on top of it."""
        if self.transpose:
            return 270 if self.flip_rows else 90
        return 180 if self.flip_rows else 0


@dataclass(frozen=True)
class Packets:
    """The packets of a stream in decoding order: `stamps[i]` is the presentation stamp of packet i.

    `keys` are the indices of the keyframes, and `decoding_stamps` has their stamps in the order of decoding;
    `timeline` holds the pictures that are shown, without the packets that an edit list hides.
    """

    stamps: Sequence[int]
    decoding_stamps: Mapping[int, int]
    keys: Sequence[int]
    timeline: Timeline

    def entry(self, target: int, position: int) -> int:
        """Return the packet where decoding has to start for the picture `target`, which is packet `position`.

        A leading picture of an open GOP is shown before its keyframe and needs the keyframe before that one.
        """
        for key in reversed(self.keys[: bisect_right(self.keys, position)]):
            if self.stamps[key] <= target:
                return key
        return 0


@dataclass(frozen=True)
class Survey:
    """What `read_frames` has to know of a file. `packets` is None where stamps can't be trusted.

    `width` and `height` are those of the first decoded picture, before `orientation` is applied.
    """

    width: int
    height: int
    orientation: Orientation
    codec: str
    time_base: Fraction
    rate: Fraction | None
    reordered: bool
    packets: Packets | None


def survey(path: str) -> Survey:
    """Read all packets of a video and decode its first picture.

    Raises MediaError for what is no video, or has no picture that can be decoded.
    """
    with open_video(path) as (container, stream):
        seen: list[Seen] = []
        first: VideoFrame | None = None
        context = stream.codec_context
        hidden_vp8 = context.codec.canonical_name == "vp8"
        for packet in read_packets(container, stream, []):
            if first is None:
                first = _first_picture(packet)
            if packet.size and not (hidden_vp8 and _is_alternate_reference(packet)):
                duration = packet.duration or 0
                seen.append(Seen(packet.pts, packet.dts, duration, packet.is_keyframe, packet.is_discard))
        if first is None:
            raise MediaError(f"{path}: no picture can be decoded")
        if first.width * first.height > MAX_PIXELS:
            raise MediaError(f"{path}: pictures of {first.width}x{first.height} are too large")
        unstamped = container.format.name in UNSTAMPED and context.has_b_frames
        return Survey(
            width=first.width,
            height=first.height,
            orientation=_orientation(first),
            codec=context.codec.canonical_name,
            time_base=_time_base(stream),
            rate=stream.average_rate or stream.guessed_rate or None,
            reordered=unstamped,
            packets=None if unstamped else _packets(seen, _time_base(stream)),
        )


def timeline_of(stamps: list[int], last_duration: int, time_base: Fraction, keyframes: Sequence[int] = ()) -> Timeline:
    """Return the timeline of pictures shown at `stamps`, which ends with the last one's duration.

    At a constant rate the last picture stays as long as the others do (flv says 1 ms of each).
    """
    steps = [after - before for before, after in pairwise(stamps)]
    if steps and is_constant(stamps):
        last_duration = round(Fraction(stamps[-1] - stamps[0], len(steps)))
    elif steps and 2 * last_duration < min(steps):
        last_duration = steps[-1]
    return Timeline(stamps, stamps[-1] + max(1, last_duration), time_base, keyframes)


def _packets(seen: Sequence[Seen], time_base: Fraction) -> Packets | None:
    stamps = [each.stamp for each in seen if each.stamp is not None]
    if len(stamps) < len(seen) or len(set(stamps)) < len(stamps):
        return None
    shown = [stamp for stamp, each in zip(stamps, seen, strict=True) if not each.is_hidden]
    ordered = sorted(shown)
    if not ordered or any(abs(bisect_left(ordered, stamp) - i) > MAX_REORDER for i, stamp in enumerate(shown)):
        return None
    keys = [i for i, each in enumerate(seen) if each.is_keyframe]
    keyframes = sorted(stamps[i] for i in keys if not seen[i].is_hidden)
    last_duration = seen[stamps.index(ordered[-1])].duration
    timeline = timeline_of(ordered, last_duration, time_base, keyframes)
    decoding = {i: seen[i].decoding_stamp for i in keys}
    return Packets(stamps, {i: stamps[i] if dts is None else dts for i, dts in decoding.items()}, keys, timeline)


def _first_picture(packet: Packet[VideoStream]) -> VideoFrame | None:
    try:
        return next(iter(packet.decode()), None)
    except av.error.FFmpegError:
        return None


def _is_alternate_reference(packet: Packet[VideoStream]) -> bool:
    return not memoryview(packet)[0] & 0x10  # show_frame, RFC 6386 section 9.1


def _time_base(stream: VideoStream) -> Fraction:
    return stream.time_base or Fraction(1, 1000)


def _orientation(frame: VideoFrame) -> Orientation:
    """Read the display matrix, (a b u, c d v, x y w): a point (p, q) is shown at (a p + c q, b p + d q)."""
    matrix = cast("SideData | None", frame.side_data.get("DISPLAYMATRIX"))
    if matrix is None:
        return Orientation()
    a, b, _, c, d, *_ = struct.unpack("=9i", matrix)
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Orientation(transpose=True, flip_rows=b < 0, flip_columns=c < 0)
    return Orientation(flip_rows=d < 0, flip_columns=a < 0)
