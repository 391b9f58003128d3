"""Open a video file so that FFmpeg can reach no other file, and read its packets."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING, Generic, TypeVar

import av
import av.error
from av.stream import Disposition

from ..errors import LlvidError, MediaError
from .faults import EBML, file_fault
from .files import JPEG, check_file, file_of
from .limits import Deadline
from .sampling import Timeline, is_constant

if TYPE_CHECKING:
    from av.audio.stream import AudioStream
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.codeccontext import VideoCodecContext
    from av.video.stream import VideoStream

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
_DEADLINE_PACKETS = 8  # the deadline is checked once for so many: a check costs as much as a packet
# They refuse to begin at a picture that needs others. For all other decoders a keyframe flag is checked.
_STRICT_DECODERS = {
    "h264", "hevc", "vvc", "av1", "vp8", "vp9", "mpeg1video", "mpeg2video", "theora", "dirac", "svq1", "flashsv2",
}  # fmt: skip


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

    def fault(self, timeline: Timeline | None = None) -> str | None:
        """Return why pictures may be missing, by the file's own words; None if it says nothing. See `file_fault`."""
        encrypted = "enc_key_id" in self.stream.metadata  # Matroska
        has_gaps = timeline is None or not is_constant(timeline.stamps)
        return "the video is encrypted" if encrypted else file_fault(file_of(self.path), has_gaps=has_gaps)

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
        name = file_of(path)
        if not os.path.isabs(name):  # noqa: PTH117 - a Path costs more
            name = os.path.join(os.getcwd(), name)  # noqa: PTH109, PTH118
        # "file:" so that a name such as "concat:a|b" or "http://..." is a file name and nothing else
        name = f"file:{name}"
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
    fault = video.fault()
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


def time_base_of(stream: VideoStream | AudioStream) -> Fraction:
    """Return the seconds of one tick."""
    return stream.time_base or Fraction(1, 1000)
