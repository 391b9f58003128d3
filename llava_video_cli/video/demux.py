"""Opening a video file without FFmpeg reaching for any other file, and what its packets tell, none of them decoded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import av
import av.error
import numpy as np
from av.stream import Disposition

from ..errors import MediaError
from .limits import Deadline
from .media_file import check_file
from .mp4_index import sample_table
from .sampling import Stamps, Timeline, is_constant

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.codeccontext import VideoCodecContext
    from av.video.stream import VideoStream
    from numpy.typing import NDArray

# Containers that hold their pictures themselves. Playlists (hls, dash, concat), patterns of files (image2) and
# devices are left out, so that a file from elsewhere can't make us read another file or the network.
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,live_flv,gif,apng,webp,jpegxl_anim,asf,ogg,nut,mxf"
    ",gxf,ivf,obu,av1,h261,h263,h264,hevc,vvc,m4v,mpegvideo,vc1,dirac,mjpeg,mpjpeg,dv,rm,wtv,swf,yuv4mpegpipe,avs,"
    "amv,nuv,nsv,roq,smk,bink,flic,mgsts,lmlm4,ty,dhav,avif,mp3,aac,flac,wav,w64,aiff,ac3,eac3,amr,ape,caf,au,wv,tta"
)
MAX_READ_ERRORS = 100
_DEADLINE_PACKETS = 8  # after so many the time is looked at: for each it costs as much as the packet
# Here stamps give the order of decoding, which is that of showing only without B-frames.
UNSTAMPED = {"avi", "h264", "hevc", "vvc", "m4v", "mpegvideo", "vc1", "h263", "h261", "dirac", "obu"}
MAX_REORDER = 64  # frames; codecs allow 16: more is a clock that starts anew in the middle of a file
_COMPARED = 64  # samples of a table that are held against FFmpeg's index


@dataclass(frozen=True, eq=False)
class Source:
    """An open video file, and the stream of it that is meant to be watched."""

    path: str
    container: InputContainer
    stream: VideoStream
    deadline: Deadline

    @property
    def size_bytes(self) -> int:
        """The file's size."""
        return max(1, self.container.size)

    @property
    def context(self) -> VideoCodecContext:
        """The decoder."""
        return self.stream.codec_context

    @property
    def pixels(self) -> int:
        """The size of a picture, as the header tells it."""
        return self.context.width * self.context.height


@contextmanager
def open_video(path: str, deadline: Deadline) -> Iterator[Source]:
    """Open a video file for the `with` block.

    The best video stream is taken; cover art is none. Raises MediaError for what is no readable video file, also
    where FFmpeg finds that out inside the block.
    """
    check_file(path, "video")
    options = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
    try:
        # "file:" so that a name such as "concat:a|b" or "http://..." is a file name and nothing else
        container = av.open(
            f"file:{Path(path).absolute()}", options=options, metadata_errors="ignore", timeout=deadline.left()
        )
    except av.error.FFmpegError as error:
        raise MediaError(f"{path}: not a video, or its header is broken or missing{_words(error)}") from error
    except (OSError, ValueError) as error:
        raise MediaError(f"{path}: can't be opened: {error}") from error
    with container:
        stream = _video_stream(path, container)
        context = stream.codec_context
        if context.width * context.height > deadline.limits.pixels:
            raise MediaError(f"{path}: pictures of {context.width}x{context.height} are too large")
        context.options = {"max_pixels": str(deadline.limits.pixels_of_buffers)}
        try:
            yield Source(path, container, stream, deadline)
        except av.error.FFmpegError as error:
            raise MediaError(f"{path}: can't be read: {reason(error)}") from error


def read_packets(source: Source, broken: list[str]) -> Iterator[Packet[VideoStream]]:
    """Yield the stream's packets to the last, then the empty one that flushes the decoder.

    An error of the container is appended to `broken`, and reading goes on behind it; after `MAX_READ_ERRORS` the
    file counts as ended.
    """
    while len(broken) < MAX_READ_ERRORS:
        try:
            yield from demux(source)
            return
        except av.error.FFmpegError as error:
            broken.append(reason(error))


def demux(source: Source) -> Iterator[Packet[VideoStream]]:
    """Yield the stream's packets from where the container stands, then the empty one, within the deadline."""
    try:
        for number, packet in enumerate(source.container.demux(source.stream)):
            if number % _DEADLINE_PACKETS == 0:
                source.deadline.left()
            yield packet
    except IndexError:  # PyAV's, where a damaged transport stream renumbers its streams: nothing comes behind it
        return


def reason(error: av.error.FFmpegError) -> str:
    """Return FFmpeg's bare words for an error."""
    return str(error.strerror or error)


def _words(error: av.error.FFmpegError) -> str:
    return "" if isinstance(error, av.error.ArgumentError) else f" ({reason(error)})"


def _video_stream(path: str, container: InputContainer) -> VideoStream:
    best = container.streams.best("video")
    films = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if not films:
        raise MediaError(f"{path}: no video stream" + (" (only cover art)" if best else ""))
    stream = next((film for film in films if best and film.index == best.index), films[0])
    if stream.codec_context is None:
        raise MediaError(f"{path}: its video codec is unknown to FFmpeg")
    return stream


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
    stamps = table.presentation + (first.pts - int(table.presentation[0]))
    shown = np.sort(stamps)
    if (np.diff(shown) <= 0).any():
        return None
    last_duration = int(table.durations[int(stamps.argmax())])
    timeline = timeline_of(shown, last_duration, time_base_of(stream), np.sort(stamps[table.keys]))
    return Packets(stamps, table.decoding + shift, table.keys, timeline)


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
