"""The training data: random scenes, encoded, decoded and resized as a user's file is."""

from __future__ import annotations

import multiprocessing
import tempfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from llava_video_cli.demo.world import Scene, random_scene, write_clip, write_picture

CHUNK = 25  # scenes that a worker makes at a time
TRAINING_RATES = (8, 10, 12)  # few frames per second: training resamples them, so all of them are used


@dataclass(frozen=True)
class Clip:
    """A decoded clip: uint8 (frames, 3, 48, 48), all its frames."""

    scene: Scene
    images: NDArray[np.uint8]


@dataclass(frozen=True)
class Still:
    """A decoded picture, cut by AnyRes: uint8 (1 + tiles, 3, 48, 48), the whole picture first; its size in pixels."""

    scene: Scene
    images: NDArray[np.uint8]
    height: int
    width: int


def make_clips(count: int, seed: int, workers: int = 2) -> Iterator[Clip]:
    """Render, encode and decode `count` random clips; the same seed gives the same clips."""
    with _pool(workers) as pool:
        for clips in pool.map(_clips, _seeds(count, seed)):
            yield from clips


def make_stills(count: int, seed: int, workers: int = 2) -> Iterator[Still]:
    """Render, store and read `count` random pictures; the same seed gives the same pictures."""
    with _pool(workers) as pool:
        for stills in pool.map(_stills, _seeds(count, seed)):
            yield from stills


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))


def _seeds(count: int, seed: int) -> list[tuple[int, int, int]]:
    return [(seed, first, min(CHUNK, count - first)) for first in range(0, count, CHUNK)]


def _clips(job: tuple[int, int, int]) -> list[Clip]:
    import torch

    from .architecture import IMAGE_SIZE, video_processor

    torch.set_num_threads(1)
    seed, first, count = job
    rng = np.random.default_rng((seed, first))
    resize = video_processor()
    clips = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(count):
            side = 854 if rng.random() < 0.08 else 426
            scene = random_scene(rng, largest_side=side, rates=TRAINING_RATES, longest_seconds=3.0)
            suffix = str(rng.choice([".mp4", ".webm", ".avi"], p=[0.7, 0.15, 0.15]))
            path = Path(folder) / f"clip{suffix}"
            write_clip(path, scene)
            with av.open(str(path)) as container:
                frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
            small = resize(videos=[frames], do_rescale=False, do_normalize=False, return_tensors="pt")
            images = small["pixel_values_videos"][0].numpy().astype(np.uint8)
            assert images.shape[1:] == (3, IMAGE_SIZE, IMAGE_SIZE), images.shape
            clips.append(Clip(scene, images))
    return clips


def _stills(job: tuple[int, int, int]) -> list[Still]:
    import torch
    from PIL import Image

    from .architecture import image_processor

    torch.set_num_threads(1)
    seed, first, count = job
    rng = np.random.default_rng((seed, first))
    cut = image_processor()
    stills = []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(count):
            scene = random_scene(rng, changes=False, largest_side=1280 if rng.random() < 0.3 else 480)
            path = Path(folder) / f"picture{rng.choice(['.png', '.jpg', '.webp'])}"
            write_picture(path, scene)
            with Image.open(path) as picture:
                pixels = np.asarray(picture.convert("RGB"))
            cut_up = cut(images=[pixels], do_rescale=False, do_normalize=False, return_tensors="pt")
            images = cut_up["pixel_values"][0].numpy().astype(np.uint8)
            stills.append(Still(scene, images, scene.height, scene.width))
    return stills
