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
import torch
from numpy.typing import NDArray
from PIL import Image

from llava_video_cli.demo.world import Scene, random_scene, write_clip, write_picture
from llava_video_cli.video.fit import Fit, FrameInput

from .architecture import IMAGE_SIZE, image_processor, video_processor

CHUNK = 25  # scenes that a worker makes at a time
FITS: tuple[Fit, ...] = ("crop", "pad", "stretch")  # how a frame becomes a square
_INPUT = FrameInput(IMAGE_SIZE, IMAGE_SIZE, "crop", IMAGE_SIZE)
TRAINING_RATES = (8, 10, 12)  # few frames per second: training resamples them, so all of them are used


@dataclass(frozen=True)
class Clip:
    """A decoded clip: uint8 (frames, 3, 48, 48), all its frames, made square as `fit` (of `FITS`) says."""

    scene: Scene
    images: NDArray[np.uint8]
    fit: Fit

    def place(self, fraction: float) -> tuple[float, float]:
        """The place of the shape's centre after that fraction of the clip, in fractions of the square's side."""
        scene = self.scene
        short = min(scene.width, scene.height)
        shown = {"crop": (short, short), "pad": (max(scene.width, scene.height),) * 2}
        across, along = shown.get(self.fit, (scene.width, scene.height))
        x, y = scene.place(fraction)
        return 0.5 + (x - 0.5) * short / across, 0.5 + (y - 0.5) * short / along


@dataclass(frozen=True)
class Still:
    """A decoded picture, cut by AnyRes: uint8 (1 + tiles, 3, 48, 48), the whole picture first; its size in pixels."""

    scene: Scene
    images: NDArray[np.uint8]
    height: int
    width: int


def fitted(images: NDArray[np.uint8], fit: Fit) -> NDArray[np.uint8]:
    """Frames, uint8 (frames, height, width, 3), as `--fit` gives them to the processor, which cuts out the middle."""
    return np.stack([_INPUT.fitted(image, fit) for image in images])


def make_clips(count: int, seed: int, workers: int = 2) -> Iterator[Clip]:
    """Render, encode and decode random clips of `count` scenes; the same seed gives the same clips.

    A scene within the central square is a clip with `crop`; each other one, with its shape anywhere, is two clips.
    """
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
    torch.set_num_threads(1)
    seed, first, count = job
    rng = np.random.default_rng((seed, first))
    resize = video_processor()
    clips = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(count):
            side, anywhere = 854 if rng.random() < 0.08 else 426, number % 2 == 1
            scene = random_scene(rng, largest_side=side, rates=TRAINING_RATES, longest_seconds=3.0, anywhere=anywhere)
            suffix = str(rng.choice([".mp4", ".webm", ".avi"], p=[0.7, 0.15, 0.15]))
            path = Path(folder) / f"clip{suffix}"
            write_clip(path, scene)
            with av.open(str(path)) as container:
                frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
            for fit in FITS[1:] if anywhere else FITS[:1]:
                square = fitted(frames.astype(np.uint8, copy=False), fit)
                small = resize(videos=[square], do_rescale=False, do_normalize=False, return_tensors="pt")
                images = small["pixel_values_videos"][0].numpy().astype(np.uint8)
                assert images.shape[1:] == (3, IMAGE_SIZE, IMAGE_SIZE), images.shape
                clips.append(Clip(scene, images, fit))
    return clips


def _stills(job: tuple[int, int, int]) -> list[Still]:
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
