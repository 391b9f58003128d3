"""What a video file really holds: its pictures and their stamps, without decoding them."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING

import av.error
import numpy as np

from .container import read_packets
from .mp4 import SampleTable, sample_table
from .sampling import Stamps, Timeline, is_constant

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream
    from numpy.typing import NDArray

    from .container import Source

# Here stamps give the order of decoding, which is that of showing only without B-frames.
UNSTAMPED = {"avi", "h264", "hevc", "vvc", "m4v", "mpegvideo", "vc1", "h263", "h261", "dirac", "obu"}
MAX_REORDER = 64  # frames; codecs allow 16: more is a clock that starts anew in the middle of a file
_COMPARED = 64  # samples of a table that are held against FFmpeg's index


@dataclass(frozen=True, eq=False)
class Packets:
    """The packets of a stream in decoding order, int64: `stamps[i]` is the presentation stamp of packet i.

    `decoding` has their decoding stamps, `keys` the indices of the keyframes; `timeline` holds the pictures that are
    shown, without the packets that an edit list hides.
    """

    stamps: NDArray[np.int64]
    decoding: NDArray[np.int64]
    keys: NDArray[np.int64]
    timeline: Timeline

    @cached_property
    def _order(self) -> NDArray[np.int64]:
        return np.argsort(self.stamps, kind="stable")

    def position(self, stamp: int) -> int | None:
        """Return the packet that has this stamp."""
        place = int(np.searchsorted(self.stamps, stamp, sorter=self._order))
        if place == len(self.stamps):
            return None
        found = int(self._order[place])
        return found if self.stamps[found] == stamp else None

    def entry(self, target: int, position: int) -> int:
        """Return the packet where decoding has to start for the picture `target`, which is packet `position`.

        A leading picture of an open GOP is shown before its keyframe and needs the keyframe before that one.
        """
        last = int(np.searchsorted(self.keys, position, side="right"))
        for key in self.keys[:last][::-1]:
            if self.stamps[key] <= target:
                return int(key)
        return 0


def packets_of(source: Source) -> Packets | None:
    """Return what a file's packets tell, or None where their stamps can't be trusted.

    From the table in the header, where there is one and FFmpeg reads it in the same way; otherwise by reading all
    packets, which takes 5 microseconds for each and the time to read the file.
    """
    if is_unstamped(source):
        return None
    return _from_table(source.path, source.container, source.stream) or _from_packets(source)


def packets_of_table(table: SampleTable, tick: Fraction) -> Packets | None:
    """Return what a table in an mp4's header tells, with FFmpeg's stamps, or None where these don't tell all."""
    return _packets(table, table.begins - int(table.presentation.min()), 0, tick)


def is_unstamped(source: Source) -> bool:
    """Whether the stamps in a file are those of decoding only."""
    return source.container.format.name in UNSTAMPED and source.stream.codec_context.has_b_frames


def timeline_of(stamps: Stamps, last_duration: int, time_base: Fraction, keyframes: Stamps = ()) -> Timeline:
    """Return the timeline of pictures shown at `stamps`, which ends with the last one's duration.

    At a constant rate the last picture stays as long as the others do (flv says 1 ms of each).
    """
    first, last = int(stamps[0]), int(stamps[-1])
    if len(stamps) > 1 and is_constant(stamps):
        last_duration = round(Fraction(last - first, len(stamps) - 1))
    elif len(stamps) > 1 and 2 * last_duration < int(np.diff(np.asarray(stamps, np.int64)).min()):
        last_duration = last - int(stamps[-2])
    return Timeline(stamps, last + max(1, last_duration), time_base, keyframes)


def time_base_of(stream: VideoStream) -> Fraction:
    """Return the seconds of one tick."""
    return stream.time_base or Fraction(1, 1000)


def _from_table(path: str, container: InputContainer, stream: VideoStream) -> Packets | None:
    if "mp4" not in container.format.name or (table := sample_table(path, stream.id)) is None:
        return None
    index, count = stream.index_entries, len(table.decoding)
    if len(index) != count:
        return None
    keys = set(table.keys.tolist())
    shift = index[0].timestamp - int(table.decoding[0])
    for i in {round(k * (count - 1) / _COMPARED) for k in range(_COMPARED + 1)}:
        entry = index[i]
        if entry.timestamp - shift != table.decoding[i] or entry.is_keyframe != (i in keys) or entry.is_discard:
            return None
    try:
        first = next((packet for packet in container.demux(stream) if packet.size), None)
        container.seek(0, stream=stream)
    except av.error.FFmpegError:
        return None
    if first is None or first.pts is None or first.dts != index[0].timestamp:
        return None
    return _packets(table, first.pts - int(table.presentation[0]), shift, time_base_of(stream))


def _packets(table: SampleTable, shift: int, decoding_shift: int, tick: Fraction) -> Packets | None:
    stamps = table.presentation + shift
    shown = np.sort(stamps)
    if (np.diff(shown) <= 0).any():
        return None
    last_duration = int(table.durations[int(stamps.argmax())])
    timeline = timeline_of(shown, last_duration, tick, np.sort(stamps[table.keys]))
    return Packets(stamps, table.decoding + decoding_shift, table.keys, timeline)


def _from_packets(source: Source) -> Packets | None:
    hidden_vp8 = source.stream.codec_context.codec.canonical_name == "vp8"
    seen = [
        (packet.pts, packet.dts, packet.duration or 0, packet.is_keyframe, packet.is_discard)
        for packet in read_packets(source, [])
        if packet.size and not (hidden_vp8 and _is_alternate_reference(packet))
    ]
    if not seen or any(stamp is None for stamp, *_ in seen):
        return None
    stamps, dts, durations, keyframe, hidden = (np.array(column) for column in zip(*seen, strict=True))
    stamps = stamps.astype(np.int64)
    decoding = np.array([s if d is None else d for s, d in zip(stamps.tolist(), dts.tolist(), strict=True)], np.int64)
    shown = stamps[~hidden]
    order = np.argsort(shown)
    ordered = shown[order]
    if (np.diff(np.sort(stamps)) == 0).any() or not len(shown):
        return None
    if (np.abs(order - np.arange(len(order))) > MAX_REORDER).any():
        return None
    keys = np.flatnonzero(keyframe)
    keyframes = np.sort(stamps[keyframe & ~hidden])
    last_duration = int(durations[~hidden][order[-1]])
    timeline = timeline_of(ordered, last_duration, time_base_of(source.stream), keyframes)
    return Packets(stamps, decoding, keys, timeline)


def _is_alternate_reference(packet: Packet[VideoStream]) -> bool:
    return not memoryview(packet)[0] & 0x10  # show_frame, RFC 6386 section 9.1
