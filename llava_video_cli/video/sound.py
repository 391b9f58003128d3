"""The sound of a file, decoded in pieces to what speech models take, with times on the clock of the frames."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import av.error
import numpy as np
from av.audio.stream import AudioStream
from av.filter import Graph
from av.stream import Discard, Disposition

from ..errors import MediaError
from .decode import first_picture, use_threads
from .demux import (
    OpenStream,
    demux_all,
    media_errors,
    open_container,
    open_video,
    reason,
    time_base_of,
)
from .files import is_sequence
from .limits import RAISE_HINT, Deadline, Limits
from .packet_index import is_unstamped, sound_start

if TYPE_CHECKING:
    from av.audio.frame import AudioFrame
    from av.container import InputContainer
    from av.stream import Stream
    from numpy.typing import NDArray

RATE = 16_000  # samples per second
_CHUNK_SECONDS = 2
_CHUNK_SAMPLES = _CHUNK_SECONDS * RATE
# Stamps may be off by so much: Matroska rounds to 1 ms, AVI to a packet of MP3 (26 ms).
_SLACK_SECONDS = 0.04
_SILENCE_SECONDS = 5.0  # a shorter gap is filled with silence, so that what is spoken around it stays together
_REPEATED_SECONDS = 10.0  # sound up to so long before is a repetition; from longer before, the file's clock restarts
_PREROLL_SECONDS = 1.0  # from which a decoder is right after a seek: Opus needs 0.08 s, MP3 a few packets
_SEEKABLE = ("mp4", "matroska")  # their index is exact; in others, a seek may land at a wrong time
_MOST_PACKET_BYTES = 2**26
_PROGRESS_PACKETS = 256
_MOST_FRAME_SAMPLES = 2**21  # the largest that a codec is known for: 1,179,648 of Monkey's Audio


@dataclass(frozen=True, eq=False)
class SoundChunk:
    """Some seconds of sound: `samples` float32 (samples,), mono, 16 kHz, from -1 to 1, and the time of the first.

    The time is that of a player's clock, as that of frames. It is negative for sound that is stamped below 0.
    In a file without pictures it is counted from the first sample.
    """

    samples: NDArray[np.float32]
    start_seconds: float

    @property
    def end_seconds(self) -> float:
        """The time behind the last sample."""
        return self.start_seconds + len(self.samples) / RATE


def has_sound(path: str | os.PathLike[str], limits: Limits | None = None) -> bool:
    """Return whether a file has a sound stream. Raises MediaError for what FFmpeg can't open."""
    name = os.fspath(path)
    if is_sequence(name):
        return False
    with open_container(name, Deadline(name, limits or Limits())) as container:
        return _best_stream(container) is not None


def iter_sound(
    path: str | os.PathLike[str],
    start_seconds: float | None = None,
    end_seconds: float | None = None,
    *,
    limits: Limits | None = None,
    progress: Callable[[float], None] = lambda _: None,
    broken: list[str] | None = None,
) -> Generator[SoundChunk, None, None]:
    """Yield the sound of the part `[start, end)` of a file, by default all of it, in chunks of about two seconds.

    The main stream is taken, as FFmpeg chooses it. A gap of up to 5 seconds is filled with silence; behind a longer one
    the next chunk begins later than the last one ends. An error is appended to `broken` for each packet that can't be
    decoded. The samples are those that FFmpeg's resampler makes of 16 bits, as faster-whisper takes them. The time
    that the caller spends between two chunks doesn't count for the limits.

    Raises MediaError for a file without sound, one that can't be read, and more than the limits allow.
    """
    name, errors = os.fspath(path), [] if broken is None else broken
    deadline = Deadline(name, limits or Limits())
    with open_container(name, deadline) as container, media_errors(name):
        stream = _best_stream(container)
        if stream is None:
            raise MediaError(f"{name}: it has no sound")
        only_stream(container, stream)
        stream.codec_context.options = {"max_samples": str(_MOST_FRAME_SAMPLES)}
        sound = OpenStream(name, container, stream, deadline)
        zero = clock_start_seconds(name, container, deadline)
        if zero is None:
            zero = float((stream.start_time or 0) * time_base_of(stream))
        seek_to = None if start_seconds is None else zero + start_seconds
        count = 0
        for chunk in _in_time(_frames(sound, seek_to, errors, progress), float(time_base_of(stream)), zero):
            if end_seconds is not None and chunk.start_seconds >= end_seconds:
                return
            part = _part(chunk, start_seconds, end_seconds)
            if not len(part.samples):
                continue
            count += len(part.samples)
            if count > deadline.limits.sound_seconds * RATE:
                hours = deadline.limits.sound_seconds / 3600
                raise MediaError(f"{name}: more than {hours:g} hours of sound", f"use a part of it; {RAISE_HINT}")
            with deadline.clock.paused():
                yield part
        if errors and not count:
            raise MediaError(f"{name}: none of its sound can be decoded: {errors[0]}")


def _best_stream(container: InputContainer) -> AudioStream | None:
    best = next(iter(container.streams.audio), None) and container.streams.best("audio")
    return best if isinstance(best, AudioStream) and best.codec_context is not None else None


def only_stream(container: InputContainer, stream: Stream) -> None:
    """Let a container read the packets of no other stream."""
    for other in container.streams:
        other.discard = Discard.default if other.index == stream.index else Discard.all


def clock_start_seconds(path: str, container: InputContainer, deadline: Deadline) -> float | None:
    """Return the container's time of 0:00 (see `Timeline`), None where no picture can be shown."""
    if any(not stream.disposition & Disposition.attached_pic for stream in container.streams.video):
        with suppress(MediaError), open_video(path, deadline) as video:
            use_threads(video.context, 1)
            if (picture := first_picture(video, [])) is not None:
                # AVI with B-frames has decoding stamps only: the first packet's is when the first picture is meant
                stamp = video.stream.start_time if picture.pts is None or is_unstamped(video) else picture.pts
                sound = sound_start(video.container, video.stream)
                return float(min(stamp or 0, sound if sound is not None else math.inf) * time_base_of(video.stream))
    return None


def _frames(
    sound: OpenStream[AudioStream], seek_to: float | None, errors: list[str], progress: Callable[[float], None]
) -> Iterator[AudioFrame]:
    """Yield the frames from the start, or from somewhat before the container's time `seek_to` if it can be found."""
    container, stream, tick = sound.container, sound.stream, float(time_base_of(sound.stream))
    if seek_to is not None and any(name in container.format.name for name in _SEEKABLE):
        # also below 0, where the packets are that a decoder begins with
        target = round((seek_to - _PREROLL_SECONDS) / tick)
        with suppress(av.error.FFmpegError):
            container.seek(target, stream=stream)
            frames = _decoded(sound, errors, progress)
            first = next(frames, None)
            if first is not None and first.pts is not None and first.pts * tick <= seek_to:
                yield first
                yield from frames
                return
        container.seek(0)
    yield from _decoded(sound, errors, progress)


def _decoded(
    sound: OpenStream[AudioStream], errors: list[str], progress: Callable[[float], None]
) -> Iterator[AudioFrame]:
    decode = sound.stream.codec_context.decode
    for number, packet in enumerate(demux_all(sound, errors)):
        if packet.size > _MOST_PACKET_BYTES:
            errors.append(f"a packet of {packet.size} bytes")
            continue
        try:
            yield from decode(packet)
        except av.error.FFmpegError as error:
            errors.append(reason(error))
        if not number % _PROGRESS_PACKETS and packet.pos is not None:
            progress(min(1.0, packet.pos / sound.size_bytes))


def _in_time(frames: Iterator[AudioFrame], tick: float, zero: float) -> Iterator[SoundChunk]:
    """Yield the resampled sound, with silence in short gaps and without repetitions; `tick` is that of the stamps."""
    resampler: _Resampler | None = None
    position = expected = shift = repeated = 0.0  # seconds: of the next sample, of the next frame; of the clock; so far
    for frame in frames:  # as little as possible: two hours have 340,000
        late = 0.0 if (pts := frame.pts) is None else pts * tick + shift - expected
        if resampler is None:
            position = expected = late
            resampler = _Resampler(frame)
        elif not -_SLACK_SECONDS <= late <= _SLACK_SECONDS:
            if late > 0:
                for samples in resampler.end():
                    yield SoundChunk(samples, position - zero)
                    position += len(samples) / RATE
                expected += late
                if expected - position <= _SILENCE_SECONDS:
                    silence = np.zeros(round((expected - position) * RATE), np.float32)
                    yield SoundChunk(silence, position - zero)
                    position += len(silence) / RATE
                else:
                    position = expected
                resampler = _Resampler(frame)
            elif late > -_REPEATED_SECONDS and repeated < _REPEATED_SECONDS:
                repeated += frame.samples / frame.sample_rate
                continue
            else:
                shift -= late
        repeated = 0.0
        try:
            resampler.push(frame)
        except av.error.ArgumentError:  # the sound's format changes within the file
            for samples in resampler.end():
                yield SoundChunk(samples, position - zero)
                position += len(samples) / RATE
            resampler = _Resampler(frame)
            resampler.push(frame)
        expected += frame.samples * resampler.sample_seconds
        if expected - position > _CHUNK_SECONDS + _SLACK_SECONDS:
            for samples in resampler.pull():
                yield SoundChunk(samples, position - zero)
                position += len(samples) / RATE
    for samples in resampler.end() if resampler else ():
        yield SoundChunk(samples, position - zero)
        position += len(samples) / RATE


class _Resampler:
    """Makes chunks of 16 kHz, one channel and 16 bits of frames of one format.

    `push` takes a frame, and raises ArgumentError for one of another format. `sample_seconds` is the time of a sample.
    """

    def __init__(self, frame: AudioFrame) -> None:
        self.sample_seconds = 1 / frame.sample_rate
        try:
            self._link(frame)
        except av.error.ArgumentError:  # where the channels have no places, such as 64 of them, all count the same
            count = frame.layout.nb_channels
            self._link(frame, "mono|c0=" + "+".join(f"{1 / count:.6f}*c{channel}" for channel in range(count)))

    def _link(self, frame: AudioFrame, mix: str | None = None) -> None:
        graph = self._graph = Graph()  # its filters don't keep it
        source = graph.add_abuffer(
            sample_rate=frame.sample_rate, format=frame.format, layout=frame.layout, time_base=frame.time_base
        )
        wanted = graph.add("aformat", f"sample_rates={RATE}:sample_fmts=s16:channel_layouts=mono")
        chunks = graph.add("asetnsamples", f"n={_CHUNK_SAMPLES}:p=0")
        self.push, self._sink = source.push, graph.add("abuffersink")
        graph.link_nodes(source, *([graph.add("pan", mix)] if mix else ()), wanted, chunks, self._sink).configure()

    def pull(self) -> Iterator[NDArray[np.float32]]:
        """Yield the chunks that are complete."""
        with suppress(BlockingIOError, EOFError):
            while True:
                frame = cast("AudioFrame", self._sink.pull())
                samples = frame.to_ndarray()[0].astype(np.float32)
                samples /= 2**15
                yield samples

    def end(self) -> Iterator[NDArray[np.float32]]:
        """Yield the rest."""
        self.push(None)
        return self.pull()


def _part(chunk: SoundChunk, start_seconds: float | None, end_seconds: float | None) -> SoundChunk:
    begin = 0 if start_seconds is None else max(0, round((start_seconds - chunk.start_seconds) * RATE))
    stop = None if end_seconds is None else round((end_seconds - chunk.start_seconds) * RATE)
    return SoundChunk(chunk.samples[begin:stop], chunk.start_seconds + begin / RATE)
