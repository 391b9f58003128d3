"""Opening a video file and finding its video stream, without FFmpeg reaching for any other file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import av
import av.error
from av.stream import Disposition

from .errors import MediaError
from .limits import Deadline
from .mediafile import check_file

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.codeccontext import VideoCodecContext
    from av.video.stream import VideoStream

# Containers that hold their pictures themselves. Playlists (hls, dash, concat), patterns of files (image2) and
# devices are left out, so that a file from elsewhere can't make us read another file or the network.
FORMATS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,live_flv,gif,apng,webp,jpegxl_anim,asf,ogg,nut,mxf"
    ",gxf,ivf,obu,av1,h261,h263,h264,hevc,vvc,m4v,mpegvideo,vc1,dirac,mjpeg,mpjpeg,dv,rm,wtv,swf,yuv4mpegpipe,avs,"
    "amv,nuv,nsv,roq,smk,bink,flic,mgsts,lmlm4,ty,dhav,avif,mp3,aac,flac,wav,w64,aiff,ac3,eac3,amr,ape,caf,au,wv,tta"
)
MAX_READ_ERRORS = 100


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

    def again(self, deadline: Deadline) -> AbstractContextManager[Source]:
        """Open the same with a decoder of its own."""
        return open_video(self.path, deadline)


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
        for packet in source.container.demux(source.stream):
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
