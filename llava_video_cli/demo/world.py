"""The demo checkpoint's world: one coloured shape on a dark background, as frames, video files and pictures."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

SHAPES = ("circle", "square", "triangle")
COLORS = {
    "red": (215, 40, 35),
    "green": (40, 180, 60),
    "blue": (45, 80, 225),
    "yellow": (235, 210, 45),
    "white": (235, 235, 235),
    "purple": (150, 50, 190),
}
DIRECTIONS = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1), "still": (0, 0)}
SIZES = (
    (128, 96), (128, 128), (160, 120), (192, 108), (128, 228), (240, 240), (320, 180), (320, 240), (240, 426),
    (426, 240), (480, 270), (480, 360), (360, 640), (640, 360), (640, 480), (480, 854), (854, 480), (1280, 720),
    (720, 1280),
)  # fmt: skip
RATES = (8, 10, 12, 15, 20, 24, 25, 30, 50, 60)
CODECS = {".mp4": "libx264", ".mkv": "libx264", ".webm": "libvpx-vp9", ".avi": "mpeg4", ".mov": "libx264"}

_REACH = 1.24  # the farthest point of any shape from its centre, in radii (the triangle's corners)

Color = tuple[int, int, int]
Image = NDArray[np.uint8]


@dataclass(frozen=True)
class Scene:
    """What a clip shows, and how it is encoded.

    Places and lengths are fractions of the side of the picture's central square, from its top left corner. `change_at`
    is the fraction of the clip after which the shape has its second colour.
    """

    width: int
    height: int
    frames_per_second: int
    duration_seconds: float
    shape: str
    color_start: str
    color_end: str
    direction: str
    shade_start: Color
    shade_end: Color
    background: Color
    x: float
    y: float
    radius: float
    travel: float
    change_at: float
    blur: float
    noise: float
    compression: float
    seed: int

    @property
    def changes(self) -> bool:
        """Whether the shape changes its colour."""
        return self.color_start != self.color_end

    @property
    def frame_count(self) -> int:
        """The number of frames of the whole clip."""
        return max(1, round(self.duration_seconds * self.frames_per_second))

    def place(self, fraction: float) -> tuple[float, float]:
        """The place of the shape's centre after that fraction of the clip."""
        right, down = DIRECTIONS[self.direction]
        return self.x + right * self.travel * fraction, self.y + down * self.travel * fraction

    def color(self, fraction: float) -> str:
        """The colour's name after that fraction of the clip."""
        return self.color_end if fraction >= self.change_at else self.color_start


def random_scene(
    rng: np.random.Generator,
    *,
    changes: bool | None = None,
    largest_side: int = 1280,
    rates: tuple[int, ...] = RATES,
    longest_seconds: float = 8.0,
    anywhere: bool = False,
) -> Scene:
    """A random scene; `changes` says whether the colour changes (by default in 40 % of the scenes).

    The shape stays within the picture's central square, or, with `anywhere`, within the whole picture.
    """
    sizes = [size for size in SIZES if max(size) <= largest_side]
    width, height = sizes[rng.integers(len(sizes))]
    start, other = (str(name) for name in rng.permutation(list(COLORS))[:2])
    if changes is None:
        changes = bool(rng.random() < 0.4)
    end = other if changes else start
    shade = _shade(rng, start)
    direction = str(rng.choice(list(DIRECTIONS)))
    radius = float(rng.uniform(0.115, 0.2))
    right, down = DIRECTIONS[direction]
    side = min(width, height)
    spans = (width / side, height / side) if anywhere else (1.0, 1.0)
    rooms = [span - 0.02 - 2 * _REACH * radius for span in spans]  # for the shape's centre, in each axis
    travel = 0.0 if direction == "still" else float(rng.uniform(0.24, rooms[0] if right else rooms[1]))
    x, y = (
        float(rng.uniform(0.5 - room / 2 - min(0, step) * travel, 0.5 + room / 2 - max(0, step) * travel))
        for room, step in zip(rooms, (right, down), strict=True)
    )
    ground = rng.uniform(8, 50)
    return Scene(
        width=width, height=height,
        frames_per_second=int(rng.choice(rates)), duration_seconds=float(rng.uniform(1.0, longest_seconds)),
        shape=str(rng.choice(SHAPES)), color_start=start, color_end=end, direction=direction,
        shade_start=shade, shade_end=_shade(rng, end) if changes else shade,
        background=_rgb(ground + rng.uniform(-8, 8, 3)),
        x=x, y=y, radius=radius, travel=travel, change_at=float(rng.uniform(0.42, 0.58)),
        blur=float(rng.uniform(0.0, 0.02)), noise=float(rng.uniform(0.0, 8.0)),
        compression=float(rng.uniform(0.0, 1.0)), seed=int(rng.integers(2**31)),
    )  # fmt: skip


def render(scene: Scene) -> Image:
    """All frames of the clip: uint8 (frames, height, width, 3)."""
    return np.stack(list(frames(scene)))


def frames(scene: Scene) -> Iterator[Image]:
    """The frames of the clip one after the other, each uint8 (height, width, 3)."""
    rng = np.random.default_rng(scene.seed)
    ground = np.full((scene.height, scene.width, 3), scene.background, np.uint8)
    grain = rng.normal(0, scene.noise, (scene.height + 32, scene.width + 32, 1)).astype(np.int16)
    for index in range(scene.frame_count):
        image = ground.copy()
        _draw(image, scene, index / scene.frame_count)
        down, right = rng.integers(32, size=2)
        noisy = image + grain[down : down + scene.height, right : right + scene.width]
        yield np.clip(noisy, 0, 255).astype(np.uint8)


def write_clip(path: str | Path, scene: Scene) -> None:
    """Encode the clip; the suffix (.mp4, .mkv, .mov, .webm, .avi) selects container and codec."""
    codec = CODECS[Path(path).suffix]
    level = scene.compression
    if codec == "libx264":
        options = {"crf": str(round(18 + 16 * level)), "preset": "veryfast"}
    elif codec == "libvpx-vp9":
        options = {"crf": str(round(24 + 18 * level)), "b": "0", "deadline": "realtime", "cpu-used": "8"}
    else:
        options = {"qmin": str(round(2 + 8 * level)), "qmax": str(round(2 + 8 * level))}
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, rate=Fraction(scene.frames_per_second), options=options)
        stream.width, stream.height, stream.pix_fmt = scene.width, scene.height, "yuv420p"
        stream.codec_context.thread_count = 1  # the bytes would depend on how many cores there are
        for image in frames(scene):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def write_picture(path: str | Path, scene: Scene) -> None:
    """Store the clip's first moment as a picture (.png, .jpg, .webp)."""
    from PIL import Image as Pillow

    picture = Pillow.fromarray(next(frames(scene)))
    quality: dict[str, Any] = {} if Path(path).suffix == ".png" else {"quality": round(95 - 40 * scene.compression)}
    picture.save(path, **quality)


def _shade(rng: np.random.Generator, name: str) -> Color:
    spread = 8 if name == "white" else 18
    base = np.array(COLORS[name]) * rng.uniform(0.88, 1.0)
    return _rgb(base + rng.uniform(-spread, spread, 3))


def _rgb(values: NDArray[np.float64]) -> Color:
    red, green, blue = (int(value) for value in np.clip(values, 0, 255).round())
    return red, green, blue


def _draw(image: Image, scene: Scene, fraction: float) -> None:
    """Draw the shape with a soft edge; only the box around it is changed."""
    side = min(scene.width, scene.height)
    x, y = scene.place(fraction)
    across = (scene.width - side) / 2 + x * side
    along = (scene.height - side) / 2 + y * side
    radius = scene.radius * side
    edge = max(1.0, 2 * scene.blur * side)  # pixels from full colour to none
    margin = _REACH * radius + edge
    left, right = max(0, int(across - margin)), min(scene.width, int(across + margin) + 2)
    top, bottom = max(0, int(along - margin)), min(scene.height, int(along + margin) + 2)
    columns = np.arange(left, right, dtype=np.float32)[None, :] + 0.5 - across
    rows = np.arange(top, bottom, dtype=np.float32)[:, None] + 0.5 - along
    outside = _distance(scene.shape, columns, rows, radius)
    cover = np.clip(0.5 - outside / edge, 0, 1)[..., None]
    shade = scene.shade_end if scene.color(fraction) == scene.color_end else scene.shade_start
    box = image[top:bottom, left:right]
    box[:] = (box + cover * (np.array(shade, np.float32) - box)).round()


def _distance(shape: str, columns: NDArray[Any], rows: NDArray[Any], radius: float) -> NDArray[Any]:
    """The distance to the outline in pixels, negative inside; the three shapes have about the same area."""
    if shape == "circle":
        return np.asarray(np.hypot(columns, rows) - radius)
    if shape == "square":
        return np.asarray(np.maximum(np.abs(columns), np.abs(rows)) - 0.87 * radius)
    return np.asarray(np.maximum(rows, 0.866 * np.abs(columns) - 0.5 * rows) - 0.62 * radius)
