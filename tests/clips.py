"""Sample videos, small clips made with PyAV, and the oracle: a full sequential decode, independent of the reader."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Container, Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import av.error
import numpy as np
import pytest
from numpy.typing import NDArray

from llava_video_cli.video import Frames

SAMPLES = Path(
    os.environ.get("LLVID_SAMPLE_VIDEOS") or Path(__file__).resolve().parents[1].parent / "shared" / "videos"
)
INPUTS = Path(os.environ.get("LLVID_SAMPLE_INPUTS") or SAMPLES.parent / "inputs")
Pixels = NDArray[np.uint8]
PIXEL_FORMATS = {
    "mjpeg": "yuvj420p", "cinepak": "rgb24", "rpza": "rgb555le", "flashsv": "bgr24", "qtrle": "rgb24", "apng": "rgb24",
    "prores_ks": "yuv422p10le", "gif": "rgb8",
}  # fmt: skip


def sample(name: str) -> Path:
    """Return a file of the sample videos, or skip the test with the reason."""
    path = SAMPLES / name
    if not path.exists():
        pytest.skip(f"no sample video {path} (set LLVID_SAMPLE_VIDEOS)")
    return path


def faulty(name: str) -> Path:
    """Return a file of the inputs that failed once, or skip the test with the reason."""
    path = INPUTS / "video" / name
    if not path.exists():
        pytest.skip(f"no input {path} (set LLVID_SAMPLE_INPUTS)")
    return path


def digest(pixels: Pixels) -> str:
    """Return a picture's shape and its checksum: no secure one, which would take longer than to decode the picture."""
    return f"{pixels.shape}:{zlib.crc32(np.ascontiguousarray(pixels).data):08x}"


def decode_all(
    path: Path,
    keep: Container[int] | None = None,
    *,
    damaged: bool = True,
    fingerprint: Callable[[av.VideoFrame], str] = lambda frame: digest(shown(frame)),
) -> list[tuple[int | None, str]]:
    """Decode a file from start to end, going on after errors: each frame's stamp and fingerprint.

    With `keep`, only the frames with these numbers get a fingerprint. Undamaged files decode faster.
    """
    with av.open(str(path), metadata_errors="ignore") as container:
        stream = container.streams.best("video")
        assert isinstance(stream, av.VideoStream)
        if damaged:  # with more threads, FFmpeg shows leftovers of its memory behind an error
            stream.codec_context.thread_count = 1
        else:
            stream.thread_type = "AUTO"
        frames: list[tuple[int | None, str]] = []
        for frame in _frames(container, stream):
            wanted = keep is None or len(frames) in keep
            frames.append((frame.pts, fingerprint(frame) if wanted else ""))
        return frames


def stored(frame: av.VideoFrame) -> Pixels:
    """Return a frame's pixels as RGB, as they are stored."""
    if frame.colorspace in (3, 8, 10, *range(11, 18)):  # swscale refuses them: what FFmpeg's tools take
        frame.colorspace = 9 if frame.colorspace == 10 else 5
    pixels: Pixels = frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
    return pixels


def shown(frame: av.VideoFrame) -> Pixels:
    """Return a frame's pixels as a player shows them, moving each pixel to where the display matrix puts it."""
    pixels = stored(frame)
    try:
        matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV has no name for a kind
        matrix = None
    if matrix is None:
        return pixels
    numbers = struct.unpack("=9i", matrix)
    a, b, c, d = (round(numbers[i] / 65536) for i in (0, 1, 3, 4))
    sources = _sources(*pixels.shape[:2], a, b, c, d)
    turned: Pixels = pixels.reshape(-1, 3)[sources]
    return turned


@cache
def _sources(height: int, width: int, a: int, b: int, c: int, d: int) -> NDArray[np.intp]:
    """For each pixel as shown, the number of the stored one: the matrix moves (x, y) to (a x + c y, b x + d y)."""
    y, x = np.indices((height, width))
    to_x, to_y = a * x + c * y, b * x + d * y
    to_x, to_y = to_x - to_x.min(), to_y - to_y.min()
    sources = np.empty((int(to_y.max()) + 1, int(to_x.max()) + 1), np.intp)
    sources[to_y, to_x] = np.arange(height * width).reshape(height, width)
    return sources


def _frames(container: av.container.InputContainer, stream: av.VideoStream) -> Iterator[av.VideoFrame]:
    packets = container.demux(stream)
    while True:
        with suppress(av.error.FFmpegError):  # what comes after an error is decoded too
            packet = next(packets, None)
            if packet is None:
                return
            yield from packet.decode()


def picture(number: int, width: int = 96, height: int = 64) -> Pixels:
    """Return a picture that differs from those of other numbers: a texture on the move over a changing colour."""
    rows, columns = np.arange(height)[:, None], np.arange(width)
    texture = (np.sin((columns + 3 * number) / 7.0) * np.cos((rows - 2 * number) / 5.0) * 60).astype(np.int16)
    colour = np.array([40 + 11 * number % 170, 60 + 7 * number % 150, 200 - 13 * number % 160], np.int16)
    pixels: Pixels = np.clip(texture[..., None] + colour, 0, 255).astype(np.uint8)
    return pixels


@contextmanager
def same_priority() -> Iterator[None]:
    """Undo what SVT-AV1 does for root: it makes the calling thread a real-time one, and so all that this one starts.

    On two cores, their waiting threads leave no time for anything else.
    """
    if not hasattr(os, "sched_getscheduler"):
        yield
        return
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, *before)


def make_clip(
    path: Path,
    stamps: Sequence[int] = range(24),
    time_base: Fraction = Fraction(1, 24),
    codec: str = "libx264",
    size: tuple[int, int] = (96, 64),
    **options: str,
) -> Path:
    """Write a video with a picture at each stamp (in `time_base`); `options` are the encoder's own."""
    with same_priority(), av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=24, options=options)
        assert isinstance(stream, av.VideoStream)
        stream.codec_context.thread_count = 1  # several of libvpx wait for each other in a loop
        stream.width, stream.height = size
        stream.pix_fmt = PIXEL_FORMATS.get(codec, "yuv420p")
        stream.time_base = stream.codec_context.time_base = time_base
        for number, stamp in enumerate(stamps):
            frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24")
            frame.pts, frame.time_base = stamp, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def make_indexed(path: Path, codec: str) -> Path:
    """Write a video of 24 pictures with a palette."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=24, options={"g": "8"})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "pal8"
        palette = np.zeros((256, 4), np.uint8)
        palette[:, 3], palette[:, 2], palette[:, 0] = 255, np.arange(256), 255 - np.arange(256)
        for number in range(24):
            frame = av.VideoFrame(96, 64, "pal8")
            rows: Pixels = np.zeros((64, frame.planes[0].line_size), np.uint8)
            rows[:, :96] = picture(number)[..., 0] // 16 * 16
            frame.planes[0].update(rows.tobytes())
            frame.planes[1].update(palette.tobytes())
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def copy_packets(source: Path, target: Path, *, skip: int = 0, stamp: bool = True) -> Path:
    """Copy a video's packets into another container, without the first ones; without `stamp`, pts is dts."""
    with av.open(str(source)) as reading, av.open(str(target), "w") as writing:
        stream = reading.streams.video[0]
        copied = writing.add_stream_from_template(stream)
        for number, packet in enumerate(reading.demux(stream)):
            if packet.size and number >= skip:
                packet.stream = copied
                if not stamp:
                    packet.pts = packet.dts
                writing.mux(packet)
    return target


def make_sound(path: Path) -> Path:
    """Write a sound file without a video stream."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        assert isinstance(stream, av.AudioStream)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 44100, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def set_matrix(path: Path, a: int, b: int, c: int, d: int) -> Path:
    """Write a display matrix into an mp4's track header (ISO 14496-12, tkhd version 0)."""
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 44
    one = 65536
    content[matrix : matrix + 36] = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    path.write_bytes(content)
    return path


def break_packets(path: Path, numbers: Sequence[int]) -> Path:
    """Overwrite the packets of these numbers (in decoding order) with 0xff."""
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    content = bytearray(path.read_bytes())
    for position, size in (packets[number] for number in numbers):
        assert position is not None
        content[position : position + size] = b"\xff" * size
    path.write_bytes(content)
    return path


def oracle_numbers(stamps: list[int], end: int, n: int) -> list[int]:
    """The frame on screen at i * (end - first) / n, by looking through all of them."""
    if n >= len(stamps):
        return list(range(len(stamps)))
    moments = [stamps[0] + Fraction(i * (end - stamps[0]), n) for i in range(n)]
    return [max(k for k, stamp in enumerate(stamps) if stamp <= moment) for moment in moments]


def assert_same(frames: Frames, oracle: list[tuple[int | None, str]], numbers: list[int]) -> None:
    got = [digest(pixels) for pixels in frames.images]
    decoded = [fingerprint for _, fingerprint in oracle]
    where = [decoded.index(fingerprint) if fingerprint in decoded else None for fingerprint in got]
    assert got == [decoded[number] for number in numbers], f"got {where}, expected {numbers}"


def assert_times(
    frames: Frames, oracle: list[tuple[int | None, str]], numbers: list[int], tick: Fraction, first_at: float = 0.0
) -> None:
    first = min(stamp for stamp, _ in oracle if stamp is not None)
    expected = [
        first_at + float((stamp - first) * tick)
        for stamp in (oracle[number][0] for number in numbers)
        if stamp is not None
    ]
    assert frames.times_seconds == pytest.approx(expected, abs=1e-9)
