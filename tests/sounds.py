"""Films whose sound beeps at known times, and the times at which beeps are heard in decoded sound."""

from __future__ import annotations

import wave
from collections.abc import Iterable, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
from clips import Pixels, picture
from numpy.typing import NDArray

from llava_video_cli.video.sound import RATE, SoundChunk

BEEP_SECONDS = 0.2
_WINDOW = RATE // 200  # 5 ms
# Beeps need no search for the best bits.
_QUICK = {"aac": {"aac_coder": "fast"}, "libx264": {"preset": "ultrafast", "bf": "2"}}


@cache
def _picture(number: int) -> Pixels:
    return picture(number)


def beeping(beeps: Sequence[float], seconds: float, rate: int) -> NDArray[np.float32]:
    """Return sound with a beep of 1 kHz at each time, over faint noise."""
    sound = np.random.default_rng(0).normal(0, 0.002, round(seconds * rate)).astype(np.float32)
    tone = 0.5 * np.sin(2000 * np.pi * np.arange(round(BEEP_SECONDS * rate)) / rate)
    for time in beeps:
        begin = round(time * rate)
        sound[begin : begin + len(tone)] += tone[: len(sound) - begin]
    return sound


def make_film(
    path: Path,
    beeps: Sequence[float],
    seconds: float = 6.0,
    *,
    codec: str = "aac",
    rate: int = 48_000,
    channels: int = 2,
    video_codec: str | None = "libx264",
    stamps: Iterable[int] | None = None,
    first_stamp: int = 0,
    sound_from: float = 0.0,
    gaps: Sequence[tuple[float, float]] = (),
    **options: str,
) -> Path:
    """Write a film of 24 pictures a second, its sound with beeps, all in seconds of the container's clock.

    The first picture is number `first_stamp`, or the pictures are those of `stamps`. The sound's first packet is that
    of `sound_from`; in each of the `gaps` `[start, end)` there are no packets. `options` are the muxer's.
    """
    stamps = range(first_stamp, round(seconds * 24)) if stamps is None else stamps
    with av.open(str(path), "w", options=options) as container:
        video = container.add_stream(video_codec, rate=24, options=_QUICK.get(video_codec, {})) if video_codec else None
        layout = "stereo" if channels == 2 else f"{channels} channels"
        sound = container.add_stream(codec, rate=rate, layout=layout, options=_QUICK.get(codec, {}))
        assert isinstance(sound, av.AudioStream)
        packets = []
        if video is not None:
            assert isinstance(video, av.VideoStream)
            video.codec_context.thread_count = 1  # several of libvpx wait for each other in a loop
            video.width, video.height, video.pix_fmt = 96, 64, "yuv420p"
            video.time_base = video.codec_context.time_base = Fraction(1, 24)
            for number in stamps:
                frame = av.VideoFrame.from_ndarray(_picture(number % 24), format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 24)
                packets += video.encode(frame)
            packets += video.encode(None)
        samples = beeping(beeps, seconds, rate)
        step = sound.codec_context.frame_size or 1024
        kind = sound.codec_context.format.name
        for begin in range(0, len(samples), step):
            block = samples[begin : begin + step]
            if begin / rate < sound_from:
                continue
            array = np.tile(block, (channels, 1))
            if kind.startswith("s"):
                integer = np.int16 if "16" in kind else np.int32
                array = (array * np.iinfo(integer).max).astype(integer)
            if not kind.endswith("p"):
                array = np.ascontiguousarray(array.T).reshape(1, -1)
            heard = av.AudioFrame.from_ndarray(array, format=kind, layout=sound.codec_context.layout.name)
            heard.sample_rate, heard.pts, heard.time_base = rate, begin, Fraction(1, rate)
            packets += sound.encode(heard)
        packets += sound.encode(None)
        timed = ((float((packet.dts or 0) * packet.time_base), number) for number, packet in enumerate(packets))
        for time, number in sorted(timed):
            packet = packets[number]
            is_left_out = packet.stream is sound and any(start <= time < end for start, end in gaps)
            if packet.size and not is_left_out:
                container.mux(packet)
    return path


def heard_beeps(chunks: Iterable[SoundChunk]) -> list[float]:
    """Return the time at which each beep begins, in seconds of the frames' clock."""
    times: list[float] = []
    last = -1.0
    for chunk in chunks:
        windows = chunk.samples[: len(chunk.samples) // _WINDOW * _WINDOW].reshape(-1, _WINDOW)
        for index in np.flatnonzero(np.abs(windows).max(axis=1) > 0.15) if len(windows) else ():
            time = chunk.start_seconds + int(index) * _WINDOW / RATE
            if time > last + BEEP_SECONDS / 2:
                times.append(time)
            last = time
    return times


def write_voices(path: Path, seconds: float) -> Path:
    """Write a WAV file with what a voice activity detector takes for speech: vowels, and pauses between them."""
    times = np.arange(round(seconds * RATE)) / RATE
    pitch = 100 * (1 + 0.15 * np.sin(6 * np.pi * times))
    spectrum = np.fft.rfft(2 * (np.cumsum(pitch) / RATE % 1) - 1)
    frequencies = np.fft.rfftfreq(len(times), 1 / RATE)
    formants = sum(1 / (1 + ((frequencies - peak) / width) ** 2) for peak, width in ((600, 80), (1200, 100)))
    vowels = np.fft.irfft(spectrum * formants, len(times)) * (np.sin(8 * np.pi * times) > -0.3) * (times % 4 < 2.5)
    samples = (vowels / np.abs(vowels).max() * 2**14).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples.tobytes())
    return path
