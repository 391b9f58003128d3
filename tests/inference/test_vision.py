"""Frames are resized as the processor does it; thin ones don't multiply on the way."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from scenes import checkpoint, moving_square
from transformers import AutoProcessor

from llava_video_cli import Loading, Sampling
from llava_video_cli.demo import CHECKPOINT
from llava_video_cli.inference.loader import load
from llava_video_cli.inference.vision import Vision, frame_resize, resize
from llava_video_cli.video.fit import Fit


@pytest.fixture(scope="module")
def processor() -> Any:
    return AutoProcessor.from_pretrained(checkpoint("demo", {}))


@pytest.mark.parametrize("size", [(1080, 1920), (1920, 1080), (48, 48), (31, 47), (100, 797), (800, 100), (7, 56)])
def test_the_same_pixels_as_the_processor(processor: Any, size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    whole = processor.video_processor(videos=[image[None]], return_tensors="pt", do_sample_frames=False)
    small = processor.video_processor(
        videos=[resize(image, processor)[None]], return_tensors="pt", do_sample_frames=False
    )
    assert torch.equal(whole["pixel_values_videos"], small["pixel_values_videos"])


@pytest.mark.parametrize("size", [(66, 65_000), (65_000, 66)])
def test_a_thin_frame_shows_its_middle(processor: Any, size: tuple[int, int]) -> None:
    image = np.zeros((*size, 3), np.uint8)
    middle = slice(32_500 - 20, 32_500 + 20)
    image[(slice(None), middle) if size[1] > size[0] else middle] = 255
    small = resize(image, processor)
    assert small.shape == (48, 48, 3)
    white = (small[..., 0] > 128).mean()
    assert white == pytest.approx(40 / 66, abs=0.05)


def test_a_huge_frame_is_shrunk_on_the_way(processor: Any) -> None:
    image = np.zeros((4320, 7680, 3), np.uint8)
    image[: 4320 // 2, 7680 // 2 :] = (0, 200, 0)
    small = resize(image, processor)
    assert small.shape == (48, 48, 3)
    assert np.abs(small[4, -4].astype(int) - (0, 200, 0)).max() < 3
    assert small[-4, -4].max() < 3
    assert small[4, 4].max() < 3


def documented(image: NDArray[np.uint8], fit: Fit) -> NDArray[np.uint8]:
    """What the docs say of `--fit`, by Pillow alone; the processor does the rest."""
    height, width, _ = image.shape
    side = max(height, width)
    if fit == "pad":
        whole = Image.new("RGB", (side, side), (123, 117, 104))
        whole.paste(Image.fromarray(image), ((side - width) // 2, (side - height) // 2))
        return np.asarray(whole)
    if fit == "stretch":
        return np.asarray(Image.fromarray(image).resize((48, 48), Image.Resampling.BICUBIC))
    return image


@pytest.mark.parametrize("fit", ["auto", "crop", "pad", "stretch"])
@pytest.mark.parametrize("size", [(1080, 1920), (1920, 1080), (48, 48), (31, 47), (800, 6), (6, 800)])
def test_the_same_pixels_as_documented(processor: Any, size: tuple[int, int], fit: Fit) -> None:
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    if min(size) == 6 and fit in ("auto", "crop"):
        image = np.repeat(np.repeat(image[:1, :1], size[0], 0), size[1], 1)  # of thin ones, the processor's is blurred
    options = {"return_tensors": "pt", "do_sample_frames": False}
    whole = processor.video_processor(videos=[documented(image, fit)[None]], **options)
    small = frame_resize(processor, 48)(image, fit)
    assert small.shape == (48, 48, 3)
    fitted = processor.video_processor(videos=[small[None]], **options)
    assert torch.equal(whole["pixel_values_videos"], fitted["pixel_values_videos"])


def test_whole_frames_and_small_ones_give_the_same_features() -> None:
    vision = Vision(load(CHECKPOINT, Loading()))
    clip = moving_square(3)
    features = {}
    for fit in ("auto", "crop", "pad", "stretch"):
        whole = replace(clip, sampling=Sampling(3, fit=fit))
        small = replace(whole, images=np.stack([vision.shrink(image, whole.sampling.fit) for image in clip.images]))
        fitted = replace(clip, images=np.stack([documented(image, whole.sampling.fit) for image in clip.images]))
        features[fit], *others = vision.encode([whole, small, fitted])
        assert all(torch.equal(features[fit], other) for other in others)
    assert torch.equal(features["auto"], features["crop"])
    assert not torch.equal(features["auto"], features["pad"]) and not torch.equal(features["pad"], features["stretch"])
