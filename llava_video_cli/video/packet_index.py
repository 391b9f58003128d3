"""Index the packets of a video, without decoding them: when each is shown, and where decoding can begin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING

import av.error
import numpy as np

from .demux import OpenVideo, demux_all, time_base_of
from .files import file_of
from .mp4_index import sample_table
from .packets import is_alternate_reference
from .sampling import Stamps, Timeline, is_constant

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet, PacketSideData
    from av.video.stream import VideoStream
    from numpy.typing import NDArray

# Of other containers, a seek that fails tells that the stamps are wrong.
_HELD_FORMATS = {"gif", "matroska"}
_HELD_BYTES, _PACKET_BYTES = 2**23, 400  # of the file and all kept packets; of each, beside its content
# Their stamps give the order of decoding, which is the order of showing only without B-frames.
UNSTAMPED = {"avi", "h264", "hevc", "vvc", "m4v", "mpegvideo", "vc1", "h263", "h261", "dirac", "obu"}
# MPEG-4 part 2 is often copied from AVI, whose stamps are the decoding ones.
REORDERING = {"mpeg4"}
MAX_REORDER = 64  # frames; codecs allow 16; more means that the clock restarts within the file
_COMPARED = 64  # samples of the header's table that are compared with FFmpeg's index


@dataclass(frozen=True, eq=False)
class PacketIndex:
    """The packets of a stream in decoding order.

    `stamps` and `decoding`, int64 (packets,), are their presentation and decoding stamps. `keys`, int64 (keyframes,),
    are the numbers of the keyframes. `palettes` are those that packets have beside their content, by the packet's
    number. `timeline` has the pictures that are shown, without those that an edit list hides. `is_whole` says that the
    container's header was read, and names no fault of the file. `sizes`, int64 (packets,), are the packets' bytes; None
    if a seek finds each packet as it is listed. `starts`, int64 (packets,), are the bytes of the file where packets of
    AVI begin. `damaged`, int64 (damaged packets,), are the numbers of those of which FFmpeg misses something.
    """

    stamps: NDArray[np.int64]
    decoding: NDArray[np.int64]
    keys: NDArray[np.int64]
    timeline: Timeline
    palettes: dict[int, PacketSideData] = field(default_factory=dict)
    is_whole: bool = False
    sizes: NDArray[np.int64] | None = None
    starts: NDArray[np.int64] | None = None
    damaged: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def palette(self, position: int) -> PacketSideData | None:
        """Return the palette that counts at a packet; None if the container has none."""
        earlier = [number for number in self.palettes if number <= position]
        return self.palettes[max(earlier)] if earlier else None

    def shown_from(self, stamp: int) -> PacketIndex:
        """Return the index without the pictures that are shown before `stamp`."""
        old = self.timeline
        stamps = np.asarray(old.stamps, np.int64)
        keyframes = np.asarray(old.keyframes, np.int64)
        shown, keys = stamps[stamps >= stamp], keyframes[keyframes >= stamp]
        return replace(self, timeline=replace(old, stamps=shown, keyframes=keys)) if len(shown) else self

    def is_damaged(self, start: int, stop: int) -> bool:
        """Return whether one of the packets `[start, stop)` is damaged."""
        return len(self.damaged) > 0 and bool(((self.damaged >= start) & (self.damaged < stop)).any())

    def has_stray_packet(self) -> bool:
        """Return whether a packet is stamped before its keyframe, although later ones stand between: a wrong stamp."""
        if not len(self.keys):
            return False
        owner = np.searchsorted(self.keys, np.arange(len(self.stamps)), side="right") - 1
        early = (owner >= 0) & (self.stamps < self.stamps[self.keys[owner]])
        late = ~early
        late[self.keys] = False  # leading pictures follow their keyframe at once
        return bool((early[1:] & late[:-1]).any())

    @cached_property
    def _order(self) -> NDArray[np.int64]:
        return np.argsort(self.stamps, kind="stable")

    @property
    def reorder_depth(self) -> int:
        """How many packets at most are decoded before one that is shown earlier."""
        return int((self._order - np.arange(len(self.stamps))).max())

    def position(self, stamp: int) -> int | None:
        """Return the number of the packet that has this stamp, None if there is none."""
        place = int(self.stamps.searchsorted(stamp, sorter=self._order))
        if place == len(self.stamps):
            return None
        position = int(self._order[place])
        return position if self.stamps[position] == stamp else None

    def lists(self, packet: Packet[VideoStream], position: int) -> bool:
        """Return whether a packet with the stamp of `position` is that one.

        A seek in an MPEG program stream lands within a picture, and the first packets get the stamps of later ones. In
        AVI, a seek finds a packet by the index that is passed over in reading, as its header is broken.
        """
        is_in_place = self.starts is None or packet.pos == self.starts[position]
        return is_in_place and (self.sizes is None or packet.size == self.sizes[position])

    def entry(self, target: int, position: int) -> int:
        """Return the packet where decoding has to start for the picture `target`, which is packet `position`.

        A leading picture of an open GOP is shown before its keyframe and needs the keyframe before that one.
        """
        last = int(self.keys.searchsorted(position, side="right"))
        for key in self.keys[:last][::-1]:
            if self.stamps[key] <= target:
                return int(key)
        return 0


def packet_index(video: OpenVideo) -> PacketIndex | None:
    """Return the index of a file's packets, or None where their stamps can't be trusted.

    It is made from the table in the header if there is one and it agrees with FFmpeg's index. Otherwise all packets
    are read, which takes 5 microseconds for each and the time to read the file.
    """
    if is_unstamped(video):
        return None
    return _from_header(video.path, video.container, video.stream) or _from_packets(video)


def damaged_packets(video: OpenVideo, marked: Sequence[bool] | NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the numbers of the packets of which something is missing; `marked` says which ones FFmpeg marks.

    In transport streams, whose pieces are numbered, it marks the packet before.
    """
    return np.flatnonzero(marked) + int(video.container.format.name == "mpegts")


def is_unstamped(video: OpenVideo) -> bool:
    """Return whether a file has only decoding stamps, or the numbers of its pictures in their place (raw Dirac)."""
    name = video.container.format.name
    return name == "dirac" or (name in UNSTAMPED and video.stream.codec_context.has_b_frames)


def make_timeline(
    stamps: Stamps, last_duration: int, time_base: Fraction, keyframes: Stamps, zero: Fraction | None
) -> Timeline:
    """Return the timeline of pictures shown at `stamps`; the last one stays for `last_duration`.

    At a constant rate it stays as long as the others, whatever its packet says (in flv, each says 1 ms).
    """
    first, last = int(stamps[0]), int(stamps[-1])
    if len(stamps) > 1 and is_constant(stamps):
        last_duration = round(Fraction(last - first, len(stamps) - 1))
    elif len(stamps) > 1 and 2 * last_duration < int(np.diff(np.asarray(stamps, np.int64)).min()):
        last_duration = last - int(stamps[-2])
    return Timeline(stamps, last + max(1, last_duration), time_base, keyframes, zero)


def sound_start(container: InputContainer, stream: VideoStream) -> Fraction | None:
    """Return when the first sound begins, in the video stream's ticks; None without sound.

    What is stamped below 0 is what its decoder needs to begin with; players leave it out.
    """
    tick = time_base_of(stream)
    starts = [
        Fraction(max(0, sound.start_time)) * sound.time_base / tick
        for sound in container.streams.audio
        if sound.start_time is not None and sound.time_base
    ]
    return min(starts, default=None)


def _from_header(path: str, container: InputContainer, stream: VideoStream) -> PacketIndex | None:
    if "mp4" not in container.format.name or (table := sample_table(file_of(path), stream.id)) is None:
        return None
    index, count = stream.index_entries, len(table.decoding)
    if len(index) != count:
        return None
    keys = set(table.keys.tolist())
    shift = index[0].timestamp - int(table.decoding[0])
    compared = list({round(k * (count - 1) / _COMPARED) for k in range(_COMPARED + 1)})
    for i, stamp in zip(compared, table.decoding[compared].tolist(), strict=True):
        entry = index[i]
        if entry.timestamp - shift != stamp or entry.is_keyframe != (i in keys) or entry.is_discard:
            return None
    try:
        first = next((packet for packet in container.demux(stream) if packet.size), None)
        container.seek(index[0].timestamp, stream=stream, any_frame=True)  # the first packet may be no keyframe
    except av.error.FFmpegError:
        return None
    if first is None or first.pts is None or first.dts != index[0].timestamp:
        return None
    palettes = {0: first.get_sidedata("palette")} if first.has_sidedata("palette") else {}
    stamps = table.presentation + (first.pts - int(table.presentation[0]))
    shown = np.sort(stamps)
    if (np.diff(shown) <= 0).any():
        return None
    last_duration = int(table.durations[int(stamps.argmax())])
    timeline = make_timeline(
        shown, last_duration, time_base_of(stream), np.sort(stamps[table.keys]), sound_start(container, stream)
    )
    return PacketIndex(stamps, table.decoding + shift, table.keys, timeline, palettes, is_whole=True)


def _from_packets(video: OpenVideo) -> PacketIndex | None:
    hidden_vp8 = video.codec == "vp8"
    rows: list[tuple[int | None, int | None, int, int, int, bool, bool, bool]] = []
    palettes: dict[int, PacketSideData] = {}
    held: list[Packet[VideoStream]] = []
    places, broken = list[int](), list[str]()
    is_held = not _HELD_FORMATS.isdisjoint(video.container.format.name.split(","))
    held_bytes = 0 if is_held and video.size_bytes <= _HELD_BYTES else _HELD_BYTES
    for packet in demux_all(video, broken):
        held_bytes += packet.size + _PACKET_BYTES
        if held_bytes > _HELD_BYTES:
            held.clear()
        else:
            held.append(packet)
        if packet.size and not (hidden_vp8 and is_alternate_reference(packet)):
            if packet.has_sidedata("palette"):
                palettes[len(rows)] = packet.get_sidedata("palette")
            places.append(len(held) - 1)
            marks = packet.is_keyframe, packet.is_discard, packet.is_corrupt
            rows.append((packet.pts, packet.dts, packet.duration or 0, packet.size, packet.pos or 0, *marks))
    if not rows or any(stamp is None for stamp, *_ in rows):
        return None
    columns = (np.array(column) for column in zip(*rows, strict=True))
    stamps, dts, durations, sizes, starts, keyframe, hidden, marked = columns
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
    timeline = make_timeline(
        ordered, last_duration, time_base_of(video.stream), keyframes, sound_start(video.container, video.stream)
    )
    if not broken:
        video.held[:], video.places[:] = held, places
    return PacketIndex(
        stamps,
        decoding,
        keys,
        timeline,
        palettes,
        sizes=sizes,
        starts=starts if video.container.format.name == "avi" else None,
        damaged=damaged_packets(video, marked),
    )
