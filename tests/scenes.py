"""Small clips and pictures made of noise, and conversations about them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from llava_video_cli import Frames, Picture, Sampling, Turn, VideoInfo
from llava_video_cli.demo import CHECKPOINT


def moving_square(count: int, seed: int = 0, height: int = 96, width: int = 128) -> Frames:
    """A clip as read from a file: a bright square that moves over noise."""
    noise = np.random.default_rng(seed)
    images = noise.integers(0, 80, (count, height, width, 3), dtype=np.uint8)
    for index in range(count):
        left = 10 + index * (width - 50) // max(1, count)
        images[index, 30:60, left : left + 30] = noise.integers(120, 255, 3)
    info = VideoInfo("clip.mp4", float(count), width, height, 1.0, "h264", 0)
    return Frames(images, tuple(float(index) for index in range(count)), info, Sampling(frames=count))


def still(seed: int = 5, height: int = 120, width: int = 200) -> Picture:
    return Picture(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8), "still.png")


VIDEO, OTHER, STILL = moving_square(3), moving_square(3, seed=3), still()

CONVERSATIONS: dict[str, tuple[Turn, ...]] = {
    "video": (Turn("user", "What happens in this video?", (VIDEO,)),),
    "picture": (Turn("user", "What shape is it?", (STILL,)),),
    "both": (Turn("user", "Is it the same shape?", (STILL, VIDEO)),),
    "two videos": (Turn("user", "Which is longer?", (VIDEO, OTHER)),),
    "two turns": (
        Turn("user", "What shape is it?", (VIDEO,)),
        Turn("assistant", "It is a square."),
        Turn("user", "Which way does it move?"),
    ),
}


def checkpoint(name: str, layouts: dict[str, Path]) -> Path:
    return CHECKPOINT if name == "demo" else layouts[name]
