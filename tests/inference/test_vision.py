"""Frames are resized as the processor does it; thin ones don't multiply on the way."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from scenes import checkpoint
from transformers import AutoProcessor

from llava_video_cli.inference.vision import resize


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
