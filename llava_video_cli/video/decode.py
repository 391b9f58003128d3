"""Turn packets into pictures: a range of them from a keyframe on, or a whole file from its start."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from typing import TYPE_CHECKING, NamedTuple

import av.error
import numpy as np
from av.packet import Packet
from av.video.frame import PictureType

from .av1 import SequenceHeader, needed_bytes, sequence_header
from .demux import OpenVideo, demux, demux_all, held_packets, no_picture, open_video, reason, time_base_of, up_to
from .packet_index import (
    REORDERING,
    UNSTAMPED,
    PacketIndex,
    damaged_packets,
    is_unstamped,
    make_timeline,
    packet_index,
    sound_start,
)
from .packets import delimiter, has_b_slice, has_idr, has_wrong_checksum, is_disposable
from .sampling import Stamps, Timeline, is_constant

if TYPE_CHECKING:
    from av.stream import Stream
    from av.video.codeccontext import VideoCodecContext
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

_log = logging.getLogger(__name__)
_OFTEN_REORDERED = {"h264", "hevc", "vvc"}  # the others' probes decode no pictures anyway, or nothing is reordered
_PROBED_PACKETS = 20  # FFmpeg's own probe decodes as many at most
_MOST_REORDERED = 16  # pictures that H.264 allows
_ALL_FLAGGED = {"apng"}  # FFmpeg's decoder calls every picture a keyframe
_CHECKED_PICTURES = 250  # at most: up to the first B-frames, where a container may hold decoding stamps only


class _ReadPacket(NamedTuple):
    decoding: int | None
    shown: int | None
    is_keyframe: bool
    is_marked: bool


class MismatchError(Exception):
    """The decoded pictures are not those that the packet index lists: a safer way has to be tried."""


class MarkError(MismatchError):
    """A picture or its packet is marked as damaged. With threads, the decoder may return it before it does so."""


class DamageError(MismatchError):
    """The decoder reports an error although it began at the file's start, so that no reference is lost by a seek."""


@dataclass(frozen=True)
class PacketRange:
    """The packets `[start, stop)`, decoded in one go from the keyframe `start` on, to get the target pictures."""

    start: int
    stop: int
    targets: tuple[int, ...]

    @property
    def length(self) -> int:
        """The number of its packets."""
        return self.stop - self.start


def use_threads(context: VideoCodecContext, count: int) -> None:
    """Set the number of the decoder's threads. Has to be called before the first picture.

    With one thread, damaged pictures come out the same each time. FFmpeg's h264 decoder hides errors in one way with
    frame threads, in another way without threads, and not at all with slice threads: the picture then shows what
    happened to be in memory. So do the decoders of MPEG-1 and MPEG-2, which have slice threads only.
    """
    context.thread_type = "NONE" if count == 1 else "FRAME"
    context.thread_count = count


def use_stamps(video: OpenVideo, index: PacketIndex) -> None:
    """Let the decoder wait for so many pictures as the stamps say, if FFmpeg has not found it out.

    Headers of H.264 need not tell it; those of other codecs do.
    """
    if video.codec == "h264" and not video.is_probed:
        video.context.reorder_depth = max(video.context.reorder_depth, min(index.reorder_depth, _MOST_REORDERED))


def decode_range(video: OpenVideo, index: PacketIndex, packet_range: PacketRange) -> Iterator[tuple[int, VideoFrame]]:
    """Yield each target of the range with its picture. Packets that no target needs are not decoded.

    Raises MismatchError or an FFmpegError at the first picture that the index does not list. The decoder should be
    opened with `err_detect=explode`, which turns its warnings into errors (of references lost by a seek, for example).
    """
    if index.is_damaged(packet_range.start, packet_range.stop):
        raise MarkError
    due = list(packet_range.targets)
    stamps = index.stamps[packet_range.start : packet_range.stop]
    window, latest = set(stamps.tolist()), int(stamps.max())
    begin = int(index.stamps[packet_range.start])
    last = begin - 1
    first = True
    held: list[tuple[int, VideoFrame]] = []
    for frame in _decode_needed(video, index, packet_range, begin):
        video.check_size(frame.width, frame.height)  # the header may say another one
        stamp = frame.pts
        if frame.is_corrupt:
            raise MarkError
        if first and not _may_be_first(video, packet_range, frame):
            raise MismatchError
        first = False
        if held:
            continue
        if stamp is None or stamp <= last or stamp not in window or stamp > due[0]:
            raise MismatchError
        last = stamp
        if stamp == due[0]:
            if len(due) == 1 and stamp < latest:
                held.append((due.pop(), frame))  # it may refer to pictures that are shown later, and are damaged
                continue
            yield due.pop(0), frame
            del frame
            if not due:
                return
    if not held:
        raise MismatchError
    yield from held


def decode_range_strictly(
    video: OpenVideo, index: PacketIndex, packet_range: PacketRange, lead_in: int | None = None
) -> Iterator[tuple[int, VideoFrame]]:
    """Yield each target of the range with its picture, and check that no picture before it is missing.

    With `lead_in`, an earlier packet, decoding begins there, and all of the range has to be whole. What is before the
    range may fail, as it may refer to what is before `lead_in`; then the range has to begin with an I-frame, which
    refers to nothing. Raises MismatchError or an FFmpegError where a picture is missing.
    """
    start = packet_range.start if lead_in is None else lead_in
    _log.debug("%r is decoded again from packet %d on", video.path, start)
    due, shown = list(packet_range.targets), index.timeline.stamps
    upcoming = bisect_left(shown, int(index.stamps[packet_range.start]))
    if upcoming == len(shown):
        raise MismatchError
    if lead_in is not None and index.is_damaged(start, packet_range.stop):
        raise MarkError
    begin = int(shown[upcoming])
    latest = begin if lead_in is None else int(index.stamps[packet_range.start : packet_range.stop].max())
    held: list[tuple[int, VideoFrame]] = []
    to_end = PacketRange(start, len(index.stamps), packet_range.targets)
    first, may_fail, has_failed = True, lead_in is not None and not video.context.codec.intra_only, False
    packets = _packets if lead_in is None else _whole_packets
    for packet in packets(video, index, to_end):
        may_fail = may_fail and packet.pts != index.stamps[packet_range.start]
        try:
            frames = packet.decode()
        except av.error.FFmpegError:
            if not may_fail:
                raise
            has_failed = True
            continue
        for frame in frames:
            if first and not _may_be_first(video, to_end, frame):
                raise MismatchError
            first = False
            if frame.pts is not None and frame.pts < begin:
                has_failed = has_failed or frame.is_corrupt
                continue
            if frame.is_corrupt:
                raise MarkError
            if upcoming == len(shown) or frame.pts != shown[upcoming]:
                raise MismatchError
            if has_failed and frame.pict_type != PictureType.I:
                raise MismatchError
            has_failed = False
            upcoming += 1
            if due and frame.pts == due[0]:
                if len(due) == 1:
                    held.append((due.pop(), frame))
                else:
                    yield due.pop(0), frame
            if held and frame.pts >= latest:
                yield from held
                return
    if not held:
        raise MismatchError
    yield from held


def lacks_references(video: OpenVideo, index: PacketIndex) -> bool:
    """Return whether a file may begin with errors because it was cut out of a longer one, at a picture of H.264.

    A keyframe that is no IDR picture may order changes to earlier pictures, which were cut off.
    """
    start = int(index.keys[0]) if len(index.keys) else 0
    return video.codec == "h264" and not has_idr(next(_packets(video, index, PacketRange(start, start + 1, ()))))


def _may_be_first(video: OpenVideo, packet_range: PacketRange, frame: VideoFrame) -> bool:
    """Return whether decoding could begin at this picture, which the decoder returned first.

    Many containers flag every packet as a keyframe, and many decoders accept any picture after a seek.
    """
    return packet_range.start == 0 or video.is_strict or (frame.key_frame and video.codec not in _ALL_FLAGGED)


@dataclass(frozen=True)
class FullDecode:
    """The result of decoding a whole file: when its pictures are shown, and the errors on the way.

    `is_damaged` says that the decoder marked pictures as damaged.
    """

    timeline: Timeline
    broken: list[str]
    is_damaged: bool = False


def decode_fully(video: OpenVideo, progress: Callable[[float], None]) -> FullDecode:
    """Decode a whole video to learn its timeline, without keeping the pictures. Raises MediaError if there is none.

    The stamps are the pictures' own if each has one and they ascend. Otherwise the packets are shown in the order of
    their decoding stamps: those that are called so, or else the others if they ascend. Where that fails, too, pictures
    are counted at the rate in the header, or that of the packets in files that have only decoding stamps (the rate in
    the header of AVI may be doubled).
    """
    _log.debug("%r is decoded in full", video.path)
    broken: list[str] = []
    stamps: list[int | None] = []
    keys: list[int] = []
    last_duration = delay = 0
    is_damaged = False
    use_threads(video.context, 1)
    packets: list[_ReadPacket] = []
    for frame in _good_frames(video, broken, progress, packets):
        if not stamps:
            delay = max(0, len(packets) - 1)
        if frame.key_frame:
            keys.append(len(stamps))
        stamps.append(frame.pts)
        is_damaged = is_damaged or frame.is_corrupt
        last_duration = frame.duration or 0
    if not stamps:
        raise no_picture(video)
    is_damaged = is_damaged or _lacks_content(video, packets)
    given = [stamp for stamp in stamps if stamp is not None]
    name, time_base = video.container.format.name, time_base_of(video.stream)
    average = None if name in UNSTAMPED - {"avi"} else video.stream.average_rate  # always 25 of raw streams
    rate, packets = average or video.stream.guessed_rate, [] if name == "dirac" else packets  # those count pictures
    columns = [[stamp for stamp in column if stamp is not None] for column in list(zip(*packets, strict=True))[:2]]
    if is_unstamped(video) or len(given) < len(stamps) or given != sorted(set(given)):
        given = []
        for column in columns:
            if len(column) == len(stamps) > 1 and column == sorted(set(column)):
                last_duration = int(np.median(np.diff(column[-6:])))  # the last but one may be a still
                pace = Fraction(column[-1] - column[0], len(column) - 1) if is_constant(column) else last_duration
                # a packet has the time of the picture that is shown so many places before: decoders wait as long
                given = [*column[delay:], *(column[-1] + round(pace * (k + 1)) for k in range(delay))]
                break
    if given:
        zero = sound_start(video.container, video.stream)
        timeline = make_timeline(given, last_duration, time_base, [given[key] for key in keys], zero)
        return FullDecode(timeline, broken, is_damaged)
    step = 1 / rate if rate else time_base
    if is_unstamped(video) and columns and len(columns[0]) > 1 and (ticks := int(np.median(np.diff(columns[0])))) > 0:
        step = ticks * time_base
    return FullDecode(Timeline(range(len(stamps)), len(stamps), step, keys), broken, is_damaged)


def _lacks_content(video: OpenVideo, packets: Sequence[_ReadPacket]) -> bool:
    """Return whether FFmpeg misses something of a packet, but for the last one before a keyframe.

    Those are marked in whole files, too, where pieces of streams were put together.
    """
    damaged = damaged_packets(video, [packet.is_marked for packet in packets]).tolist()
    return any(number + 1 >= len(packets) or not packets[number + 1].is_keyframe for number in damaged)


def decode_through(
    video: OpenVideo, stamps: Stamps, targets: Iterable[int], progress: Callable[[float], None]
) -> Iterator[tuple[int, int, VideoFrame]]:
    """Decode from the start and yield each target with the stamp of its picture and the picture.

    Picture k of the file has `stamps[k]`. A target that has no picture of its own gets the nearest one.
    """
    numbers: dict[int, list[int]] = {}
    for target in targets:
        numbers.setdefault(nearest(stamps, target), []).append(target)
    use_threads(video.context, 1)
    for number, frame in enumerate(_good_frames(video, [], progress)):
        for target in numbers.pop(number, ()):
            yield target, stamps[number], frame
        if not numbers:
            return


def checked_index(video: OpenVideo) -> PacketIndex | None:
    """Return the index of a file's packets without the first pictures that can't be shown; None if it is unusable.

    Those lack their references: a recording begins in the middle of a stream. What can be shown is decoded to know.
    """
    index = packet_index(video)
    if index is None or index.has_stray_packet():
        return None
    ascending = bool((np.diff(index.stamps) > 0).all())  # with B-frames, that may be the order of decoding
    reordered = len(index.stamps) > 1 and (ascending or video.codec in REORDERING) and _has_b_frames(video, index)
    stamps = index.timeline.stamps
    if len(index.keys) and int(stamps[0]) >= index.stamps[index.keys[0]] and not reordered:
        return index
    with open_video(video.path, video.deadline) as again:
        use_threads(again.context, 1)
        first, was_b = list[int | None](), False
        for frame in islice(_good_frames(again, [], lambda _: None), _CHECKED_PICTURES if reordered else 1):
            first.append(frame.pts)
            if was_b and frame.pict_type != PictureType.B:
                break  # in the order of decoding, this one would be stamped before the B-frame
            was_b = frame.pict_type == PictureType.B
    given = [stamp for stamp in first if stamp is not None]
    if not given or len(given) < len(first) or given != sorted(set(given)):
        return None
    return index.shown_from(given[0])


def _has_b_frames(video: OpenVideo, index: PacketIndex) -> bool:
    """Return whether pictures may be shown in another order than they are decoded in, whatever the stamps say."""
    if video.context.has_b_frames or video.is_probed or video.codec not in _OFTEN_REORDERED:
        return video.context.has_b_frames
    if video.codec == "h264":
        first = PacketRange(0, min(len(index.stamps), _PROBED_PACKETS), ())
        with suppress(MismatchError):
            return any(map(has_b_slice, _packets(video, index, first)))
    with open_video(video.path, video.deadline) as probed:
        return probed.context.has_b_frames


def nearest(stamps: Stamps, target: int) -> int:
    """Return the index of the stamp nearest to the target, of two the earlier; `stamps` ascend."""
    after = bisect_left(stamps, target)
    return min((i for i in (after - 1, after) if 0 <= i < len(stamps)), key=lambda i: abs(stamps[i] - target))


def first_picture(video: OpenVideo, broken: list[str], *, rewind: bool = False) -> VideoFrame | None:
    """Return the first picture that can be decoded; append the errors before it to `broken`.

    `rewind` is for a file whose packets have been read.
    """
    if rewind:
        try:
            video.container.seek(0)
        except av.error.FFmpegError:
            return None
    return next(_good_frames(video, broken, lambda _: None), None)


def _good_frames(
    video: OpenVideo, broken: list[str], progress: Callable[[float], None], read: list[_ReadPacket] | None = None
) -> Iterator[VideoFrame]:
    """Yield the pictures that can be decoded; append each packet to `read`."""
    for packet in demux_all(video, broken):
        if read is not None and packet.size:
            read.append(_ReadPacket(packet.dts, packet.pts, packet.is_keyframe, packet.is_corrupt))
        try:
            for frame in packet.decode():
                video.check_size(frame.width, frame.height)
                yield frame
        except av.error.FFmpegError as error:
            broken.append(reason(error))
        if packet.pos is not None:
            progress(min(1.0, packet.pos / video.size_bytes))


def _decode_needed(video: OpenVideo, index: PacketIndex, packet_range: PacketRange, begin: int) -> Iterator[VideoFrame]:
    """Decode the packets of the range, but no picture that no other one refers to, unless it is a target.

    The leading pictures of an open GOP are shown before `begin` and lack their references: they are left out too.
    """
    context, targets = video.context, set(packet_range.targets)
    codec, has_threads = video.codec, context.thread_count > 1
    is_h264, is_av1 = codec == "h264", codec == "av1"  # dav1d reads `skip_frame` only once, when it opens
    sequence: SequenceHeader | None = None
    leading = None  # whether leading pictures may still come
    for packet in up_to(_whole_packets(video, index, packet_range), int(index.stamps[packet_range.stop - 1])):
        stamp = packet.pts
        if packet.size and stamp is not None:
            if leading is None:
                leading = not (is_h264 and has_idr(packet))
            elif stamp < begin and not leading:
                raise MismatchError  # a wrong stamp: later pictures may need this one
            else:
                leading = leading and stamp < begin
        if packet.size and (stamp is None or stamp >= begin):
            if not is_av1:
                context.skip_frame = "DEFAULT" if stamp in targets else "NONREF"
            elif packet.is_keyframe:
                sequence = sequence_header(bytes(packet), context.extradata)
            elif sequence and stamp not in targets:
                content = memoryview(packet)
                needed = needed_bytes(content, sequence)
                if needed < len(content):
                    if needed:
                        yield from context.decode(_copied(content[:needed]))
                    continue
            if has_threads and stamp not in targets and is_disposable(packet, codec):
                continue  # the decoder would skip it, too, but with a thread, which waits for the one before
            yield from context.decode(packet)
    if is_h264:
        context.skip_frame = "NONREF"
        for _ in range(context.thread_count - 1):  # until no thread is at work, which could yet mark its picture
            yield from context.decode(_copied(delimiter(context)))
    yield from context.decode(None)  # pictures that wait to be reordered: cheaper than to send further packets


def _copied(content: memoryview | bytes) -> Packet[Stream]:
    """Return a packet with memory of FFmpeg's own.

    One that holds Python's needs the interpreter to let it go: a thread of dav1d would wait for that forever while the
    interpreter waits for the thread, to close the decoder.
    """
    packet = Packet(len(content))
    packet.update(bytes(content))
    return packet


def _whole_packets(video: OpenVideo, index: PacketIndex, packet_range: PacketRange) -> Iterator[Packet[VideoStream]]:
    """Yield the packets of the range. Raises MarkError at one that is damaged by its own checksum."""
    has_checksums = video.codec == "ffv1"
    for packet in _packets(video, index, packet_range):
        if has_checksums and has_wrong_checksum(packet):
            raise MarkError
        yield packet


def _packets(video: OpenVideo, index: PacketIndex, packet_range: PacketRange) -> Iterator[Packet[VideoStream]]:
    """Yield the packets of the range, wherever the container's seek really lands."""
    start, stop = packet_range.start, packet_range.stop
    if video.held:
        video.context.flush_buffers()  # as a seek does
        for number, packet in enumerate(held_packets(video, start, stop)):
            if number == 0:
                _give_palette(index, start, packet)
            yield packet
        return
    end = int(index.stamps[stop]) if stop < len(index.stamps) else None
    for landing in _landings(index, start):
        video.container.seek(landing, stream=video.stream, backward=True)
        started = any_yet = False
        for packet in demux(video):
            if started:
                if end is not None and packet.pts == end and packet.size:
                    break
            elif packet.size and packet.pts is not None and (position := index.position(packet.pts)) is not None:
                if position > start:
                    break  # the seek landed too late
                started = position == start and index.lists(packet, position)
            if started:
                if not any_yet:
                    _give_palette(index, start, packet)
                any_yet = True
                yield packet
        if started:
            return
    raise MismatchError


def _give_palette(index: PacketIndex, position: int, packet: Packet[VideoStream]) -> None:
    """Give a packet the palette that counts there: containers give it once, with the first packet that is read."""
    if (palette := index.palette(position)) and not packet.has_sidedata("palette"):
        packet.set_sidedata(palette)


def _landings(index: PacketIndex, start: int) -> Iterator[int]:
    """Yield the stamps that a seek may have to be given to land at a packet or before it, the likeliest first."""
    yield int(index.stamps[start])
    yield int(index.decoding[start])  # the container may seek by decoding time, which is the smaller one
    earlier = int(np.searchsorted(index.keys, start)) - 1
    for i in (earlier, earlier - 1, 0):
        if 0 <= i <= earlier:
            yield int(index.stamps[index.keys[i]])
