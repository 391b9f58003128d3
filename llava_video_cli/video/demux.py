"""Open a video file so that FFmpeg can reach no other file, and index its packets without decoding them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from typing import TYPE_CHECKING, Generic, TypeVar

import av
import av.error
import numpy as np
from av.stream import Disposition

from ..errors import LlvidError, MediaError
from .faults import EBML, file_fault
from .files import JPEG, check_file, file_of
from .limits import Deadline
from .mp4_index import sample_table
from .sampling import Stamps, Timeline, is_constant

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.packet import Packet, PacketSideData
    from av.video.codeccontext import VideoCodecContext
    from av.video.stream import VideoStream
    from numpy.typing import NDArray

AnyStream = TypeVar("AnyStream", "VideoStream", "AudioStream")
# Containers that hold their pictures themselves. Playlists (hls, dash, concat), patterns of files (image2) and
# devices are left out, so that a file from elsewhere can't make us read another file or the network.
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,live_flv,gif,apng,webp,jpegxl_anim,asf,ogg,nut,mxf"
    ",gxf,ivf,obu,av1,h261,h263,h264,hevc,vvc,m4v,mpegvideo,vc1,dirac,mjpeg,mpjpeg,dv,rm,wtv,swf,yuv4mpegpipe,avs,"
    "amv,nuv,nsv,roq,smk,bink,flic,mgsts,lmlm4,ty,dhav,avif,mp3,aac,flac,wav,w64,aiff,ac3,eac3,amr,ape,caf,au,wv,tta"
)
_ANIMATIONS = ("gif", "apng", "webp", "jpegxl_anim")
_STAMPED = {"mp4", "matroska"}  # each packet has its presentation stamp, so that FFmpeg need not compute it
_CLOCK_SECONDS = 3  # by the clock for one of a core, as a machine may have other work
MAX_READ_ERRORS = 100
# Of other containers, a seek that fails tells that the stamps are wrong.
_HELD_FORMATS = {"gif", "matroska"}
_HELD_BYTES, _PACKET_BYTES = 2**23, 400  # of the file and all kept packets; of each, beside its content
_DEADLINE_PACKETS = 8  # the deadline is checked once for so many: a check costs as much as a packet
# Their stamps give the order of decoding, which is the order of showing only without B-frames.
UNSTAMPED = {"avi", "h264", "hevc", "vvc", "m4v", "mpegvideo", "vc1", "h263", "h261", "dirac", "obu"}
# They refuse to begin at a picture that needs others. For all other decoders a keyframe flag is checked.
_STRICT_DECODERS = {
    "h264", "hevc", "vvc", "av1", "vp8", "vp9", "mpeg1video", "mpeg2video", "theora", "dirac", "svq1", "flashsv2",
}  # fmt: skip
# MPEG-4 part 2 is often copied from AVI, whose stamps are the decoding ones.
REORDERING = {"mpeg4"}
MAX_REORDER = 64  # frames; codecs allow 16; more means that the clock restarts within the file
_COMPARED = 64  # samples of the header's table that are compared with FFmpeg's index


@dataclass(frozen=True, eq=False)
class OpenStream(Generic[AnyStream]):
    """An open file and one of its streams. Packets of fewer than `least_bytes` are not read."""

    path: str
    container: InputContainer
    stream: AnyStream
    deadline: Deadline
    least_bytes: int = field(default=1, kw_only=True)

    @property
    def size_bytes(self) -> int:
        """The file's size."""
        return max(1, self.container.size)


@dataclass(frozen=True, eq=False)
class OpenVideo(OpenStream["VideoStream"]):
    """An open video file and its main video stream. `is_probed` says that `open_video` has decoded some pictures.

    `held` are all packets of a small file once they were read for its index, and `places` where the listed ones are.
    """

    is_probed: bool = True
    held: list[Packet[VideoStream]] = field(default_factory=list)
    places: list[int] = field(default_factory=list)

    @property
    def context(self) -> VideoCodecContext:
        """The decoder."""
        return self.stream.codec_context

    @property
    def codec(self) -> str:
        """The codec's usual name."""
        return self.context.codec.canonical_name

    def check_size(self, width: int, height: int) -> None:
        """Raise MediaError for pictures of a size that is beyond the limits."""
        self.deadline.limits.check_size(self.path, width, height, self.deadline.limits.pixels)

    @property
    def is_strict(self) -> bool:
        """Whether the decoder returns no picture that lacks others which it needs."""
        return self.codec in _STRICT_DECODERS or self.context.codec.intra_only

    @property
    def fault(self) -> str | None:
        """Why pictures may be missing, by the file's own words; None if it says nothing."""
        encrypted = "enc_key_id" in self.stream.metadata  # Matroska
        return "the video is encrypted" if encrypted else file_fault(file_of(self.path))

    @property
    def pixels(self) -> int:
        """The number of pixels of a picture, as the header says."""
        return self.context.width * self.context.height


@contextmanager
def media_errors(path: str) -> Iterator[None]:
    """Turn whatever PyAV, NumPy and swscale raise in the `with` block into a MediaError that names the file."""
    try:
        yield
    except LlvidError:
        raise
    except Exception as error:
        if isinstance(error.__context__, KeyboardInterrupt):  # Ctrl-C within a lock of Python's, which then fails
            raise error.__context__ from None
        words = reason(error) if isinstance(error, av.error.FFmpegError) else f"{type(error).__name__}: {error}"
        raise MediaError(f"{path}: can't be read: {words}") from error


@contextmanager
def open_container(path: str, deadline: Deadline, *, probe: bool = True) -> Iterator[InputContainer]:
    """Open a file with videos or sound for the `with` block. Raises MediaError for what FFmpeg can't open.

    With `probe`, FFmpeg decodes some pictures to learn what the header does not say; it always does so of containers
    that are not in `_STAMPED`.
    """
    check_file(path, "video")
    options = {"protocol_whitelist": "file", "format_whitelist": FORMATS}
    kind = _format_of(file_of(path))
    if kind in _STAMPED and not probe:
        options["skip_frame"] = "all"
    try:
        # "file:" so that a name such as "concat:a|b" or "http://..." is a file name and nothing else
        name = "file:" + os.path.join(os.getcwd(), file_of(path))  # noqa: PTH109, PTH118 - a Path costs more
        container = av.open(name, format=kind, options=options, metadata_errors="ignore", timeout=deadline.left())
    except av.error.FFmpegError as error:
        deadline.left()  # FFmpeg says "invalid data" where it was stopped while it looked at the file
        if fault := file_fault(file_of(path)):
            raise MediaError(f"{path}: no video that can be read: {fault}") from error
        why = f"not a video or a picture, or its header is broken or missing{_words(error)}"
        raise MediaError(f"{path}: {why}") from error
    except (OSError, ValueError) as error:
        raise MediaError(f"{path}: can't be opened: {error}") from error
    with container:
        yield container


@contextmanager
def open_video(path: str, deadline: Deadline, *, probe: bool = True) -> Iterator[OpenVideo]:
    """Open a video file for the `with` block.

    The best video stream is used, never cover art. Without `probe`, FFmpeg decodes no pictures of mp4 and Matroska,
    which takes up to 7 ms: then how many pictures are reordered has to be found out otherwise, and `is_probed` is
    false. Raises MediaError for what is no readable video file, also where FFmpeg finds that out inside the block.
    """
    with ExitStack() as stack:
        container = stack.enter_context(open_container(path, deadline, probe=probe))
        if not probe and len(_films(container)) > 1:  # FFmpeg decodes them to find the best one
            probe = True
            container = stack.enter_context(open_container(path, deadline))
        with media_errors(path):
            stream = _video_stream(path, container)
        context = stream.codec_context
        if container.format.name in _ANIMATIONS:  # they are pictures, too
            seconds = min(deadline.limits.seconds or math.inf, _CLOCK_SECONDS * deadline.limits.still_seconds)
            deadline = replace(deadline, limits=replace(deadline.limits, seconds=seconds, cores=1))
        context.options = {"max_pixels": str(deadline.limits.pixels_of_buffers)}
        try:
            is_probed = probe or _STAMPED.isdisjoint(container.format.name.split(","))
            video = OpenVideo(path, container, stream, deadline, is_probed, least_bytes=_least_bytes(context))
            video.check_size(context.width, context.height)
            yield video
        except av.error.FFmpegError as error:
            raise MediaError(f"{path}: can't be read: {reason(error)}") from error


def _least_bytes(context: VideoCodecContext) -> int:
    """Return how many bytes each packet needs.

    Where one of uncompressed pictures with a palette has fewer, FFmpeg would show what happened to be in memory.
    """
    if context.name != "rawvideo" or context.pix_fmt != "pal8":
        return 1
    return max(1, context.height * (context.width * context.bits_per_coded_sample // 8))


def _format_of(path: str) -> str | None:
    """Return the format of a file by its first bytes, if FFmpeg need not look for it, or would take another one."""
    with suppress(OSError), open(path, "rb", buffering=0) as file:  # noqa: PTH123 - a Path costs more
        head = file.read(8)
        if head[:3] == JPEG:  # if it is no picture, as its name says
            from .image import is_jpeg_stream

            return "mjpeg" if is_jpeg_stream(path) else None
        return "matroska" if head[:4] == EBML else "mp4" if head[4:] == b"ftyp" else None
    return None


def demux_all(opened: OpenStream[AnyStream], broken: list[str]) -> Iterator[Packet[AnyStream]]:
    """Yield all of the stream's packets, then the empty one that flushes the decoder.

    An error of the container is appended to `broken`, and reading goes on after it. After `MAX_READ_ERRORS` errors
    reading ends.
    """
    while len(broken) < MAX_READ_ERRORS:
        try:
            yield from demux(opened)
            return
        except av.error.FFmpegError as error:
            broken.append(reason(error))


def demux(opened: OpenStream[AnyStream]) -> Iterator[Packet[AnyStream]]:
    """Yield the stream's packets from the current position on, then the empty one; check the deadline meanwhile."""
    return _checked(opened, opened.container.demux(opened.stream))


def held_packets(video: OpenVideo, start: int, stop: int) -> Iterator[Packet[VideoStream]]:
    """Yield the `held` packets that are listed as `[start, stop)`, and others between them, as `demux` does."""
    end = video.places[stop] if stop < len(video.places) else None
    return _checked(video, video.held[video.places[start] : end])


def _checked(opened: OpenStream[AnyStream], packets: Iterable[Packet[AnyStream]]) -> Iterator[Packet[AnyStream]]:
    least_bytes = opened.least_bytes
    try:
        for number, packet in enumerate(packets):
            if number % _DEADLINE_PACKETS == 0:
                opened.deadline.left()
            # an empty one would flush the decoder too early
            if packet.size >= least_bytes or (packet.dts is None and not packet.size):
                yield packet
    except IndexError:  # PyAV's, where a damaged transport stream renumbers its streams: no packet follows
        return


def up_to(packets: Iterator[Packet[VideoStream]], stamp: int) -> Iterator[Packet[VideoStream]]:
    """Yield packets up to the one with a stamp: the next one would cost time, and at a file's end PyAV loses Ctrl-C."""
    for packet in packets:
        yield packet
        if packet.pts == stamp:
            return


def no_picture(video: OpenVideo) -> MediaError:
    """Return the error for a video without a picture that can be decoded."""
    fault = video.fault
    return MediaError(f"{video.path}: no frame can be decoded" + (f": {fault}" if fault else ""))


def reason(error: av.error.FFmpegError) -> str:
    """Return FFmpeg's own message for an error."""
    return str(error.strerror or error)


def _words(error: av.error.FFmpegError) -> str:
    return "" if isinstance(error, av.error.ArgumentError) else f" ({reason(error)})"


def _video_stream(path: str, container: InputContainer) -> VideoStream:
    best = container.streams.best("video")
    films = _films(container)
    if not films:
        fault = " (only cover art)" if best else f": {fault}" if (fault := file_fault(file_of(path))) else ""
        raise MediaError(f"{path}: no video stream{fault}")
    stream = next((film for film in films if best and film.index == best.index), films[0])
    if stream.codec_context is None:
        raise MediaError(f"{path}: its video codec is unknown to FFmpeg")
    return stream


def _films(container: InputContainer) -> list[VideoStream]:
    """Return the video streams that are no cover art; of mp4, those that have packets, if there are any."""
    films = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    if len(films) > 1 and "mp4" in container.format.name:
        return [film for film in films if len(film.index_entries)] or films
    return films


@dataclass(frozen=True, eq=False)
class PacketIndex:
    """The packets of a stream in decoding order.

    `stamps` and `decoding`, int64 (packets,), are their presentation and decoding stamps. `keys`, int64 (keyframes,),
    are the numbers of the keyframes. `palettes` are those that packets have beside their content, by the packet's
    number. `timeline` has the pictures that are shown, without those that an edit list hides. `is_whole` says that the
    container's header was read, and names no fault of the file. `sizes`, int64 (packets,), are the packets' bytes; None
    if a seek finds each packet as it is listed.
    """

    stamps: NDArray[np.int64]
    decoding: NDArray[np.int64]
    keys: NDArray[np.int64]
    timeline: Timeline
    palettes: dict[int, PacketSideData] = field(default_factory=dict)
    is_whole: bool = False
    sizes: NDArray[np.int64] | None = None

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

        A seek in an MPEG program stream lands within a picture, and the first packets get the stamps of later ones.
        """
        return self.sizes is None or packet.size == self.sizes[position]

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


def time_base_of(stream: VideoStream | AudioStream) -> Fraction:
    """Return the seconds of one tick."""
    return stream.time_base or Fraction(1, 1000)


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
    rows: list[tuple[int | None, int | None, int, int, bool, bool]] = []
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
        if packet.size and not (hidden_vp8 and _is_alternate_reference(packet)):
            if packet.has_sidedata("palette"):
                palettes[len(rows)] = packet.get_sidedata("palette")
            places.append(len(held) - 1)
            rows.append(
                (packet.pts, packet.dts, packet.duration or 0, packet.size, packet.is_keyframe, packet.is_discard)
            )
    if not rows or any(stamp is None for stamp, *_ in rows):
        return None
    stamps, dts, durations, sizes, keyframe, hidden = (np.array(column) for column in zip(*rows, strict=True))
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
    return PacketIndex(stamps, decoding, keys, timeline, palettes, sizes=sizes)


def _is_alternate_reference(packet: Packet[VideoStream]) -> bool:
    return not memoryview(packet)[0] & 0x10  # show_frame, RFC 6386 section 9.1
