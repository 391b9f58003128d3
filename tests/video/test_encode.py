"""Clips: the same frames come out of them, bit for bit, in every reader."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest
from clips import sample
from numpy.typing import NDArray

from llava_video_cli import MediaError, Sampling, read_frames
from llava_video_cli.video.encode import make_clip

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
