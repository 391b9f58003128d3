"""A film of four shots, with a blend between the second and the third."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av
import numpy as np
from terminal import scene

from llava_video_cli.demo.world import Image, frames

RATE, LENGTH, FADE = 24, 60, 8
SHOTS: tuple[dict[str, Any], ...] = (
    {"shape": "circle", "direction": "still", "color_start": "white", "shade_start": (235, 235, 235)},
    {"shape": "triangle", "direction": "up", "color_start": "green", "shade_start": (40, 180, 60), "y": 0.7},
    {"shape": "square", "direction": "left", "color_start": "blue", "shade_start": (45, 80, 225), "x": 0.7},
    {"shape": "circle", "direction": "right", "color_start": "red", "shade_start": (215, 40, 35)},
)
GROUNDS = ((27, 30, 25), (46, 40, 49), (43, 40, 36), (49, 41, 50))
CAPTIONS = (
    "A white circle stays still.", "A green triangle moves up.", "A blue square moves left.",
    "A red circle moves right.",
)  # fmt: skip
CUTS = (60, 112, 172)  # between the second and the third shot lies a blend, [112, 120)


def pictures() -> Iterator[Image]:
    clips = [
        list(frames(scene(
            width=320, height=180, frames_per_second=RATE, duration_seconds=LENGTH / RATE, background=ground, **shot,
            color_end=shot["color_start"], shade_end=shot["shade_start"],
        )))
        for shot, ground in zip(SHOTS, GROUNDS, strict=True)
    ]  # fmt: skip
    first, second, third, fourth = clips
    yield from [*first, *second[:-FADE]]
    for number, (old, new) in enumerate(zip(second[-FADE:], third[:FADE], strict=True), start=1):
        share = number / (FADE + 1)
        yield ((1 - share) * old + share * new).round().astype(np.uint8)
    yield from islice(third, FADE, None)
    yield from fourth


def write_film(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=Fraction(RATE), options={"crf": "18", "preset": "superfast"})
        stream.width, stream.height, stream.pix_fmt = 320, 180, "yuv420p"
        for image in pictures():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path
