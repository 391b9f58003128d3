"""Reading the samples of a video track from their places in the file, for a decoder of its own.

FFmpeg's demuxer takes more time for a large file than decoding a few pictures of it: to build its index, for each
packet, and for the interpreter's lock, which other threads take in the meantime.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING, cast

import av

from .errors import MediaError
from .limits import Deadline
from .track import Track

if TYPE_CHECKING:
    from av.packet import Packet
    from av.video.codeccontext import VideoCodecContext
    from av.video.stream import VideoStream
    from numpy import int64
    from numpy.typing import NDArray

_BLOCK_SAMPLES, _BLOCK_BYTES = 16, 2**20  # that are read at once, where they lie near each other
_PADDING_BYTES = 64  # FFmpeg's AV_INPUT_BUFFER_PADDING_SIZE
_JOINED_PIXELS = 2**21  # of the pictures that one packet gives, which lie in memory together


@dataclass(frozen=True, eq=False)
class SampleSource:
    """An open video file whose samples are read by their table, and a decoder for them."""

    path: str
    track: Track
    context: VideoCodecContext
    deadline: Deadline
    file: FileIO

    @property
    def pixels(self) -> int:
        """The size of a picture, as the header tells it."""
        return self.track.width * self.track.height

    @cached_property
    def _keys(self) -> set[int]:
        return set(self.track.table.keys.tolist())

    def again(self, deadline: Deadline) -> AbstractContextManager[SampleSource]:
        """Open the same with a decoder of its own."""
        return open_samples(self.path, self.track, deadline)

    def cut(self, stamps: NDArray[int64], start: int, stop: int) -> Iterator[Packet[VideoStream]]:
        """Yield the samples of these numbers as packets with their stamps, for the decoder to begin anew with.

        Ends early where the file does.
        """
        for first, block in self._blocks(start, stop, _BLOCK_SAMPLES):
            for number, content in enumerate(block, first):
                packet = _packet(content, int(stamps[number]))
                packet.is_keyframe = number in self._keys
                yield packet

    def cut_joined(self, start: int, stop: int) -> Iterator[tuple[range, Packet[VideoStream]]]:
        """Yield the same as packets of several samples, with the numbers of these: AV1 can be cut anywhere between two.

        Each packet costs a wait for the interpreter's lock, and its decoder needs as little time for a small picture.
        """
        most = max(1, min(_BLOCK_SAMPLES, _JOINED_PIXELS // self.pixels))
        for first, block in self._blocks(start, stop, most):
            yield range(first, first + len(block)), _packet(b"".join(block), first)

    @property
    def may_join(self) -> bool:
        """Whether a packet of several samples gives a picture for each."""
        return self.track.decoder == "libdav1d" and self.context.thread_count == 1

    def _blocks(self, start: int, stop: int, most: int) -> Iterator[tuple[int, list[bytes]]]:
        if self.context.is_open:
            self.context.flush_buffers()
        while start < stop:
            self.deadline.left()
            block = self._block(start, min(stop, start + most))
            if not block:
                return
            yield start, block
            start += len(block)

    def _block(self, start: int, stop: int) -> list[bytes]:
        """Read some of these samples, at least the first of them; none where the file can't be read so far any more."""
        begins, ends = self.track.offsets[start:stop], self.track.offsets[start:stop] + self.track.sizes[start:stop]
        near = (begins[1:] >= ends[:-1]) & (ends[1:] - begins[0] <= _BLOCK_BYTES)
        count = 1 + int(near.argmin() if not near.all() else len(near))
        first, last = int(begins[0]), int(ends[count - 1])
        try:
            self.file.seek(first)
            content = self.file.read(last - first)
        except OSError:  # FFmpeg finds that too, and says it
            return []
        if len(content) < last - first:
            return []
        return [content[a - first : b - first] for a, b in zip(begins[:count].tolist(), ends.tolist(), strict=False)]


def _packet(content: bytes, stamp: int) -> Packet[VideoStream]:
    packet = cast("Packet[VideoStream]", av.Packet(len(content)))  # behind it FFmpeg keeps the zeros that decoders read
    packet.update(content)
    packet.pts = stamp
    return packet


def can_decode(track: Track) -> bool:
    """Whether FFmpeg has been built with the track's decoder."""
    return track.decoder in av.codecs_available


@contextmanager
def open_samples(path: str, track: Track, deadline: Deadline) -> Iterator[SampleSource]:
    """Open a video file for the `with` block. Raises MediaError if it is gone by now."""
    context = cast("VideoCodecContext", av.CodecContext.create(track.decoder, "r"))
    context.width, context.height = track.width, track.height  # h264 cuts off by them what its own size is too large
    if track.config is not None:
        # Decoders read a little behind a broken one, where PyAV keeps room but whatever stood in memory: make it zeros.
        context.extradata = track.config + bytes(_PADDING_BYTES)
        context.extradata = track.config
    if colours := track.colours:
        context.color_primaries, context.color_trc = colours.primaries, colours.transfer
        context.colorspace = colours.matrix
        if colours.full_range is not None:
            context.color_range = 1 + colours.full_range
    context.options = {"max_pixels": str(deadline.limits.pixels_of_buffers)}
    try:
        file = Path(path).open("rb", buffering=0)  # noqa: SIM115 - closed below
    except OSError as error:
        raise MediaError(f"{path}: can't be opened: {error}") from error
    with file:
        yield SampleSource(path, track, context, deadline, file)
