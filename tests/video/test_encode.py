"""Clips: the same frames come out of them, bit for bit, in every reader."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clips import sample
from numpy.typing import NDArray

from llava_video_cli import MediaError, Sampling, read_frames
from llava_video_cli.video.encode import clip_rate, make_clip

RANDOM = np.random.default_rng(0)


def noise(*shape: int) -> NDArray[np.uint8]:
    return RANDOM.integers(0, 256, (*shape, 3), np.uint8)


def read_back(data: bytes, folder: Path, count: int) -> NDArray[np.uint8]:
    path = folder / "clip.mp4"
    path.write_bytes(data)
    frames = read_frames(path, Sampling(frames=count))
    assert frames.times_seconds == tuple(range(len(frames.images)))
    return frames.images


@pytest.mark.parametrize("shape", [(8, 48, 64), (1, 33, 17), (3, 1, 3), (40, 20, 30)])
@pytest.mark.parametrize("with_sound", [False, True])
def test_frames_of_any_size_and_number_come_back_bit_for_bit(
    shape: tuple[int, int, int], with_sound: bool, tmp_path: Path
) -> None:
    images = noise(*shape)
    clip = make_clip(images, with_sound=with_sound)
    # as many as there are, and more than there are
    for count in (shape[0], 64):
        assert np.array_equal(read_back(clip, tmp_path, count), images)


@pytest.mark.parametrize(
    ("times", "wanted"),
    [
        ([0, 2.5, 5, 7.5], Fraction(2, 5)), ([30, 30 + 1 / 3, 30 + 2 / 3], Fraction(1)), ([5], Fraction(1)),
        ([0, 1, 9], Fraction(2, 9)), ([0, 1.001, 2.002], Fraction(1000, 1001)), ([0, 36000], Fraction(1, 10000)),
    ],
)  # fmt: skip
def test_a_clip_plays_as_long_as_its_frames_lasted(times: list[float], wanted: Fraction, tmp_path: Path) -> None:
    assert clip_rate(times) == wanted
    images, path = noise(len(times), 32, 48), tmp_path / "clip.mp4"
    path.write_bytes(make_clip(images, rate=wanted))
    frames = read_frames(path, Sampling(frames=len(times)))
    assert np.array_equal(frames.images, images)
    assert frames.times_seconds == pytest.approx([number / wanted for number in range(len(times))], abs=1e-4)
    with av.open(path) as container:
        assert container.streams.video[0].average_rate == wanted


def test_a_reader_that_is_told_how_many_frames_may_get_faster_ones() -> None:
    assert clip_rate([0, 0.1, 0.2], float("inf")) == 10


@pytest.mark.parametrize("name", ["bikes.mp4", "rotated_90.mov", "odd_dimensions.webm", "bt709_full_range.mp4"])
def test_frames_of_real_videos_come_back_bit_for_bit(name: str, tmp_path: Path) -> None:
    frames = read_frames(sample(name), Sampling(frames=4))
    clip = make_clip(frames.images)
    assert np.array_equal(read_back(clip, tmp_path, 4), frames.images)


def test_a_plain_decoder_sees_as_many_frames_as_the_header_says(tmp_path: Path) -> None:
    path, images = tmp_path / "clip.mp4", noise(5, 32, 48)
    path.write_bytes(make_clip(images, with_sound=True))
    with av.open(path) as container:
        assert container.streams.video[0].frames == 5
        decoded = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert np.array_equal(np.stack(decoded), images)
    with av.open(path) as container:
        sound = np.concatenate([frame.to_ndarray().ravel() for frame in container.decode(audio=0)])
    assert len(sound) > 0 and not sound.any()


def test_what_gets_too_large_loses_a_little_and_then_is_refused(tmp_path: Path) -> None:
    images = read_frames(sample("bikes.mp4"), Sampling(frames=4)).images
    lossless = len(make_clip(images))
    clip = make_clip(images, most_bytes=lossless - 1)
    assert len(clip) < lossless
    off = abs(read_back(clip, tmp_path, 4).astype(int) - images)
    assert 0 < off.max() <= 5 and off.mean() < 0.5
    with pytest.raises(MediaError, match="4 frames of 640x272 are too large to be sent"):
        make_clip(images, most_bytes=1000)
