"""Contact sheets: the frames of a sampling in one picture, each with its time, and what of it the model gets."""

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
_LAST_FONT = 18  # pixels, of the line at the bottom
_GAP = 6  # pixels, between pictures and around them
_MAX_CELL_ASPECT = 8  # height to width; taller frames are shown narrower
_MIN_CELL = 48  # pixels; narrower pictures have no room for their times
_SHADED = 0.65  # of the background, over what the model does not get
_THUMBNAIL_PIXELS = 640  # of the longer side
_WORDS = {"whole": "", "pad": ", padded", "stretch": ", stretched", "crop": ": what is shaded is cut off"}


def contact_sheet(frames: Frames, columns: int | None = None, width_pixels: int = 1280) -> Image:
    """Return the frames as a grid, in reading order, with the time of each printed below it.

    The sheet is `width_pixels` wide and as high as needed. `columns=None` chooses the number that brings the sheet's
    shape nearest to a screen's. Of several shots, each time has its shot's number. Where a model is known (`input`),
    what it does not get of the frames is shaded, and a line at the bottom tells the size that it gets. Raises
    UsageError for fewer than one column, or a sheet too narrow for its columns.
    """
    size_line = ""
    if frames.input is not None and frames.visible is not None:
        came_to, size = frames.input.came_to(frames.sampling.fit), (frames.info.width, frames.info.height)
        is_cut = min(frames.visible) < 1
        size_line = f"the model gets {frames.input.size_of(*size)}" + _WORDS[came_to] * (is_cut or came_to != "crop")
    return sheet_of(frames, columns, width_pixels, size_line)


def sheet_of(frames: Frames, columns: int | None = None, width_pixels: int = 1280, last_line: str = "") -> Image:
    """Return the same with another last line, or none. Raises UsageError, too."""
    from PIL import Image, ImageDraw, ImageFont

    times_seconds, shots = frames.times_seconds, frames.shots
    count = len(frames.images)
    width, height = _shown_shape(frames)
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
    last_font = min(_LAST_FONT, _font_size([last_line], width_pixels)) if last_line else 0
    sheet = Image.new("RGB", (width_pixels, _GAP + rows * row_height + round(1.5 * last_font)), _BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    left_margin = (width_pixels - columns * (cell_width + _GAP) + _GAP) // 2
    if last_line:
        place = (width_pixels / 2, sheet.height - _GAP - last_font / 2)
        draw.text(place, last_line, fill=_CAPTION, font=ImageFont.load_default(size=last_font), anchor="mm")
    for number, (pixels, label) in enumerate(zip(frames.images, labels, strict=True)):
        left = left_margin + number % columns * (cell_width + _GAP)
        top = _GAP + number // columns * row_height
        picture = _shown(pixels, frames, size)
        sheet.paste(picture, (left + (cell_width - size[0]) // 2, top))
        middle = (left + cell_width / 2, top + cell_height + caption_height / 2)
        draw.text(middle, label, fill=_CAPTION, font=font, anchor="mm")
    return sheet


def thumbnail(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a frame, uint8 (height, width, 3), as small as a sheet of several needs it."""
    import numpy as np
    from PIL import Image

    picture = Image.fromarray(image)
    picture.thumbnail((_THUMBNAIL_PIXELS, _THUMBNAIL_PIXELS))
    return np.asarray(picture)


def _seen(frames: Frames) -> str:
    """Return what is done with the frames before the model gets them; empty if that is not known, or done already."""
    _, height, width, _ = frames.images.shape
    whole_width, whole_height = frames.info.width, frames.info.height
    is_whole = abs(width * whole_height - height * whole_width) <= max(whole_width, whole_height)
    return frames.input.came_to(frames.sampling.fit) if frames.input is not None and is_whole else ""


def _shown_shape(frames: Frames) -> tuple[int, int]:
    """Return the width and height of what a cell shows, in any unit."""
    if frames.input is not None and _seen(frames) in ("pad", "stretch"):
        return frames.input.width, frames.input.height
    _, height, width, _ = frames.images.shape
    return width, height


def _shown(pixels: NDArray[np.uint8], frames: Frames, size: tuple[int, int]) -> Image:
    """Return a frame as a cell of that size shows it."""
    from PIL import Image, ImageDraw

    seen = _seen(frames)
    if frames.input is not None and seen == "pad":
        pixels = frames.input.fitted(pixels, "pad")
    picture = Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS)
    if seen != "crop" or frames.visible is None or min(frames.visible) == 1:
        return picture
    left, top = (  # at least a pixel is left of each side
        min(round(side * (1 - share) / 2), (side - 1) // 2) for side, share in zip(size, frames.visible, strict=True)
    )
    right, bottom = size[0] - left, size[1] - top
    shaded = Image.blend(picture, Image.new("RGB", size, _BACKGROUND), _SHADED)
    shaded.paste(picture.crop((left, top, right, bottom)), (left, top))
    ImageDraw.Draw(shaded).rectangle((left, top, right - 1, bottom - 1), outline=_CAPTION)
    return shaded


def time_labels(times_seconds: tuple[float, ...]) -> list[str]:
    """Return `M:SS.s` (`H:MM:SS.s` from an hour on) for each time, with up to three digits if two look the same."""
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
