"""Encode frames as a small video file that holds exactly these frames, for another program to decode."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from typing import TYPE_CHECKING

from ..errors import MediaError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

# Of all clips of a request: base64 adds a third, and `llvid serve` accepts 64 MiB.
MOST_BYTES = 44 * 2**20
# Quantizers of libx264rgb: 0 is lossless. Measured on four real videos: at 10 a value of 0 to 255 is off by at most 5
# and by 0.5 on average, at 24 by at most 25 and by 1.8.
_QUANTIZERS = (0, 10, 24)
# Qwen3-VL's processor takes 2 frames a second of a clip that is not sampled before, whatever their number.
_MOST_RATE = 1.9
_MOST_DENOMINATOR = 10_000
_EACH_SECOND = Fraction(1)
_SOUND_RATE, _SOUND_SAMPLES = 16_000, 1024


def clip_rate(times_seconds: Sequence[float], most: float = _MOST_RATE) -> Fraction:
    """Return the frames per second at which a clip of frames with these times plays as long as they last.

    It is 1 for a single frame, and for frames that come faster than `most`: readers that sample would drop some.
    """
    first, last = (times_seconds[0], times_seconds[-1]) if times_seconds else (0.0, 0.0)
    if last <= first or (rate := Fraction(len(times_seconds) - 1) / Fraction(last - first)) > most:
        return Fraction(1)
    return max(rate.limit_denominator(_MOST_DENOMINATOR), Fraction(1, _MOST_DENOMINATOR))


def make_clip(
    images: NDArray[np.uint8],
    *,
    rate: Fraction = _EACH_SECOND,
    with_sound: bool = False,
    most_bytes: int = MOST_BYTES,
) -> bytes:
    """Return an mp4 of frames, uint8 (frames, height, width, 3), RGB.

    H.264 in RGB without loss: PyAV, OpenCV, decord and torchcodec decode it to the same bits; a GPU's decoder can't.
    It has `rate` frames per second and their number in the header: a reader that samples `n` frames, or at least
    `rate` per second, gets each frame once. A file larger than `most_bytes` is encoded again with some loss.
    `with_sound` adds a silent track, for readers that need one. Raises `MediaError` for what is still too large then.
    """
    for quantizer in _QUANTIZERS:
        data = _encoded(images, rate, quantizer, with_sound, most_bytes)
        if data is not None:
            return data
    count, height, width, _ = images.shape
    raise MediaError(
        f"{count} frames of {width}x{height} are too large to be sent ({most_bytes / 2**20:.0f} MiB at most)",
        "use fewer --frames, or --send file",
    )


def _encoded(
    images: NDArray[np.uint8], rate: Fraction, quantizer: int, with_sound: bool, most_bytes: int
) -> bytes | None:
    """Return the file, or None as soon as it is too large."""
    import av

    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as container:
        video = container.add_stream("libx264rgb", rate=rate)
        _, video.height, video.width, _ = images.shape
        video.pix_fmt = "rgb24"
        video.options = {"qp": str(quantizer), "preset": "ultrafast"}
        sound = container.add_stream("aac", rate=_SOUND_RATE, layout="mono") if with_sound else None
        for image in images:
            container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            if target.tell() > most_bytes:
                return None
        container.mux(video.encode(None))
        if sound is not None:
            silence = av.AudioFrame(format="fltp", layout="mono", samples=_SOUND_SAMPLES)
            for plane in silence.planes:
                plane.update(bytes(plane.buffer_size))
            silence.sample_rate, silence.time_base, silence.pts = _SOUND_RATE, Fraction(1, _SOUND_RATE), 0
            container.mux(sound.encode(silence))
            container.mux(sound.encode(None))
    return target.getvalue() if target.tell() <= most_bytes else None
