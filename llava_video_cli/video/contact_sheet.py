"""Contact sheets: the frames of a sampling in one picture, each with its time."""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import TYPE_CHECKING

from ..errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from . import Frames

_BACKGROUND, _CAPTION = (24, 24, 24), (235, 235, 235)
_ASPECT = 16 / 9  # of the sheet that `columns=None` aims at, width to height
_GAP = 6  # pixels, between pictures and around them
_MAX_CELL_ASPECT = 8  # height to width; taller frames are shown narrower
_MIN_CELL = 48  # pixels; narrower pictures have no room for their times


def contact_sheet(frames: Frames, columns: int | None = None, width_pixels: int = 1280) -> Image:
    """Return the frames as a grid, in reading order, with the time of each printed below it.

    The sheet is `width_pixels` wide and as high as needed. `columns=None` chooses the number that brings the sheet's
    shape nearest to a screen's. Raises UsageError for fewer than one column, or a sheet too narrow for its columns.
    """
    return sheet_of(frames.images, frames.times_seconds, columns, width_pixels, shots=frames.shots)


def sheet_of(
    images: NDArray[np.uint8],
    times_seconds: tuple[float, ...],
    columns: int | None = None,
    width_pixels: int = 1280,
    shots: tuple[tuple[float, float], ...] = (),
) -> Image:
    """Do the same for `images`, uint8 (frames, height, width, 3); of several shots, each time has its shot's number."""
    from PIL import Image, ImageDraw, ImageFont

    count, height, width, _ = images.shape
    if columns is None:
        columns = _columns(count, width / height)
    elif columns < 1:
        raise UsageError(f"a contact sheet needs at least 1 column, got {columns}")
    columns = min(columns, count)
    cell_width = (width_pixels - _GAP) // columns - _GAP
    if cell_width < _MIN_CELL:
        raise UsageError(
            f"{columns} columns don't fit in {width_pixels} pixels", hint=f"each needs {_MIN_CELL + _GAP} pixels"
        )
    scale = min(cell_width / width, _MAX_CELL_ASPECT * cell_width / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    cell_height = size[1]
    labels = time_labels(times_seconds)
    if len(shots) > 1:
        starts = [start for start, _ in shots]
        numbers = (max(1, bisect_right(starts, seconds)) for seconds in times_seconds)
        labels = [f"shot {number}  {label}" for number, label in zip(numbers, labels, strict=True)]
    font_size = _font_size(labels, cell_width)
    font = ImageFont.load_default(size=font_size)
    caption_height = round(1.5 * font_size)
    row_height = cell_height + caption_height + _GAP
    rows = math.ceil(count / columns)
    sheet = Image.new("RGB", (width_pixels, _GAP + rows * row_height), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    left_margin = (width_pixels - columns * (cell_width + _GAP) + _GAP) // 2
    for number, (pixels, label) in enumerate(zip(images, labels, strict=True)):
        left = left_margin + number % columns * (cell_width + _GAP)
        top = _GAP + number // columns * row_height
        picture = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)
        sheet.paste(picture, (left + (cell_width - size[0]) // 2, top))
        middle = (left + cell_width / 2, top + cell_height + caption_height / 2)
        draw.text(middle, label, fill=_CAPTION, font=font, anchor="mm")
    return sheet


def time_labels(times_seconds: tuple[float, ...]) -> list[str]:
    """Return `M:SS.ss` (`H:MM:SS.ss` from an hour on) for each time, with enough digits to tell them apart."""
    for digits in (1, 2, 3):
        labels = [_clock(seconds, digits, long=max(times_seconds) >= 3600) for seconds in times_seconds]
        if len(set(labels)) == len(set(times_seconds)):
            break
    return labels


def _clock(seconds: float, digits: int, *, long: bool) -> str:
    units = round(seconds * 10**digits)
    whole, fraction = divmod(units, 10**digits)
    minutes, rest = divmod(whole, 60)
    clock = f"{minutes // 60}:{minutes % 60:02d}" if long else f"{minutes}"
    return f"{clock}:{rest:02d}.{fraction:0{digits}d}"


def _columns(count: int, aspect: float) -> int:
    """Return the number of columns that brings the sheet nearest to the wanted shape, with few empty cells."""

    def cost(columns: int) -> float:
        rows = math.ceil(count / columns)
        empty = rows * columns - count
        return abs(math.log(columns * aspect / rows / _ASPECT)) + empty / count

    return min(range(1, min(count, 10) + 1), key=cost)


def _font_size(labels: list[str], cell_width: int) -> int:
    from PIL import ImageFont

    widest = max(ImageFont.load_default(size=100).getlength(label) for label in labels)
    return max(8, min(22, int(0.95 * cell_width * 100 / widest), round(cell_width / 9)))
