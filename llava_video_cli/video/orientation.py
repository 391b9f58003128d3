"""The geometry of a video's pictures: their size, and how they are rotated and mirrored to be shown."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import numpy as np

if TYPE_CHECKING:
    from av.sidedata.sidedata import SideData
    from av.video.frame import VideoFrame
    from av.video.reformatter import VideoReformatter
    from numpy.typing import NDArray


# Numbers of colour matrices, ITU-T H.273, table 4. swscale refuses those that are not listed here.
_SUPPORTED_MATRICES = {0, 1, 2, 4, 5, 6, 7, 9}
_BT601, _BT2020, _BT2020_CONSTANT = 5, 9, 10
_ROWS_AT_ONCE = 64  # so that what one colour has read is still in the cache for the next


def replace_matrix(frame: VideoFrame) -> int | None:
    """Replace a colour matrix that swscale refuses by what FFmpeg's tools take, and return its number."""
    matrix = int(frame.colorspace)
    if matrix in _SUPPORTED_MATRICES:
        return None
    frame.colorspace = _BT2020 if matrix == _BT2020_CONSTANT else _BT601
    return matrix


@dataclass(frozen=True)
class Orientation:
    """How a decoded picture is rotated and mirrored to be shown: it is transposed first, then flipped."""

    transpose: bool = False
    flip_rows: bool = False
    flip_columns: bool = False

    @property
    def clockwise_degrees(self) -> int:
        """The rotation: 0, 90, 180 or 270 degrees. A mirror image has a flip about the vertical axis in addition."""
        if self.transpose:
            return 270 if self.flip_rows else 90
        return 180 if self.flip_rows else 0


@dataclass(frozen=True)
class Geometry:
    """The stored size of a video's pictures in pixels, and their orientation."""

    width: int
    height: int
    orientation: Orientation

    @classmethod
    def of(cls, frame: VideoFrame) -> Geometry:
        """Return the geometry of a picture.

        Its display matrix (a b u, c d v, x y w) moves a point (p, q) to (a p + c q, b p + d q).
        """
        try:
            matrix = cast("SideData | None", frame.side_data.get("DISPLAYMATRIX"))
        except ValueError:  # PyAV has no name for one kind of the picture's side data, and then gives none of it
            orientation = _turned(frame.rotation)
        else:
            orientation = Orientation() if matrix is None else _orientation(*struct.unpack("=9i", matrix))
        return cls(frame.width, frame.height, orientation)

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape of the pixels as shown: (height, width, 3)."""
        transposed = self.orientation.transpose
        return (self.width, self.height, 3) if transposed else (self.height, self.width, 3)

    def fits(self, frame: VideoFrame) -> bool:
        """Return whether a picture has this size already."""
        return (frame.width, frame.height) == (self.width, self.height)

    def pixels(
        self, frame: VideoFrame, reformatter: VideoReformatter, out: NDArray[np.uint8] | None = None
    ) -> NDArray[np.uint8]:
        """Return a picture's pixels, uint8 (height, width, 3), RGB, upright: a view of FFmpeg's buffer, or a copy.

        With `out`, they are written there, and it is returned.
        """
        rgb = reformatter.reformat(frame, width=self.width, height=self.height, format="rgb24", threads=1)
        plane = rgb.planes[0]
        rows = np.frombuffer(memoryview(plane), np.uint8).reshape(self.height, plane.line_size)
        pixels = rows[:, : self.width * 3].reshape(self.height, self.width, 3)
        if self.orientation.transpose:
            pixels = pixels.transpose(1, 0, 2)
        if self.orientation.flip_rows:
            pixels = pixels[::-1]
        if self.orientation.flip_columns:
            pixels = pixels[:, ::-1]
        if self.orientation != Orientation():
            return _copied(pixels, np.empty(pixels.shape, np.uint8) if out is None else out)
        if out is None:
            return pixels
        out[:] = pixels
        return out


def _copied(pixels: NDArray[np.uint8], out: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Copy in order of memory, and return the copy: a colour at a time takes a quarter of NumPy's time for three."""
    for first in range(0, len(pixels), _ROWS_AT_ONCE):
        rows = slice(first, first + _ROWS_AT_ONCE)
        for colour in range(3):
            out[rows, :, colour] = pixels[rows, :, colour]
    return out


def _turned(counterclockwise_degrees: int) -> Orientation:
    return {
        90: Orientation(transpose=True, flip_rows=True),
        180: Orientation(flip_rows=True, flip_columns=True),
        270: Orientation(transpose=True, flip_columns=True),
    }.get(counterclockwise_degrees % 360, Orientation())


def _orientation(a: int, b: int, _u: int, c: int, d: int, *_: int) -> Orientation:
    if abs(b) + abs(c) > abs(a) + abs(d):
        return Orientation(transpose=True, flip_rows=b < 0, flip_columns=c < 0)
    return Orientation(flip_rows=d < 0, flip_columns=a < 0)
