"""Still pictures: read them upright as RGB, and tell them from videos."""

from __future__ import annotations

import io
import math
import mimetypes
import os
import re
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, cast

from ..errors import MediaError
from .files import JPEG, JPEG_STREAMS, check_file, file_of, is_sequence, may_be_picture
from .limits import RAISE_HINT, STILL_PIXELS, Limits

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image
    from PIL.ImageFile import ImageFile
    from PIL.TiffImagePlugin import TiffImageFile

    from . import TokenRates

_BACKGROUND = (255, 255, 255)  # what a viewer shows behind transparent parts
# Pillow reads more. Its other decoders start programs (EPS), or take time and memory that nothing bounds (JPEG 2000).
_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "HEIF", "PPM")
_COSTLY_FORMATS = ("WEBP", "AVIF", "HEIF")  # up to 20 bytes of memory a pixel: half as many pixels as others
_PASSES = 32  # over the largest picture; a smaller one may have more scans or frames
_MAX_KEPT_PIXELS = 2**25  # larger pictures are shrunk while they are read; no model takes nearly as many
HUGE_PIXELS = 2**24  # a frame of so many is shrunk before it is resized for a model, for which torch takes GBs
_STRIP_PIXELS = 2**20
_TILE_WIDTH, _TILE_HEIGHT, _STRIP_BYTES, _TILE_BYTES = 322, 323, 279, 325  # tags of TIFF
_MARKER = re.compile(rb"\xff[^\x00\x01\xff\xd0-\xd7]")  # of JPEG, but for those without content
_JPEG_BYTES = 2**26  # that are looked at: more than a picture of the largest size has
_FEWEST_PICTURES = 3  # in a row
_START_OF_SCAN, _END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"


@dataclass(frozen=True, eq=False)
class Picture:
    """A still picture, compared by identity: `pixels` is uint8 (height, width, 3), RGB, upright.

    What code asks of any medium, it answers as a video without frames.
    """

    pixels: NDArray[np.uint8]
    path: str
    notes: tuple[str, ...] = ()
    is_video: ClassVar[bool] = False
    frame_count: ClassVar[int] = 0
    part_seconds: ClassVar[tuple[float, float]] = (0.0, 0.0)

    @property
    def bytes(self) -> int:
        """Its size in memory."""
        return self.pixels.nbytes

    def tokens(self, rates: TokenRates) -> int:
        """Return how many tokens of a prompt it takes."""
        height, width, _ = self.pixels.shape
        return rates.picture_tokens(height, width)


def is_picture(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is a still picture by its content, whatever its name ends in.

    An animation (GIF, WebP, PNG of several frames) is a video if the video reader can decode it; otherwise its first
    frame is the picture. For JPEG, see `is_jpeg_stream`. A broken file, or one that only its name calls a picture, is
    one if it is no video, so that `read_image` says what is wrong with it. False for all else.
    """
    from PIL import UnidentifiedImageError

    name = os.fspath(path)
    if is_sequence(name):
        return False
    try:
        check_file(name, "picture")
    except MediaError:
        return False
    try:
        with _opened(name, Limits()) as image:
            if image.format == "JPEG" and is_jpeg_stream(name):
                return False
            moves = getattr(image, "is_animated", False)
    except MediaError:
        return True  # it is one; `read_image` says what is wrong with it
    except UnidentifiedImageError:  # if a name like a.psd is right, `read_image` lists the formats that are read
        return (mimetypes.guess_type(name)[0] or "").startswith("image/") and not _is_video(name)
    except Exception:  # noqa: BLE001 - Pillow raises whatever it stumbles over
        return not _is_video(name)
    return not (moves and _is_video(name))


def is_jpeg_stream(path: str) -> bool:
    """Return whether a JPEG file is a video: its name says so, or says nothing, and several pictures follow each other.

    A second one alone may be a preview, and so may all where the name says that it is a picture. Streams from stdin,
    and files at a server, come without a name.
    """
    suffix = Path(path).suffix.lower()
    if suffix in JPEG_STREAMS or may_be_picture(suffix):
        return suffix in JPEG_STREAMS
    content, position = _beginning(path), 0
    for _ in range(_FEWEST_PICTURES - 1):
        _, position = _scans(content, position)
        if content[position : position + len(JPEG)] != JPEG:
            return False
    return True


def read_image(
    path: str | os.PathLike[str], most_pixels: int | None = None, *, limits: Limits | None = None
) -> Picture:
    """Return a picture as it should be shown.

    EXIF rotation and mirroring are applied, palettes and CMYK are converted, 16 bits are reduced to 8, transparent
    parts get a white background. A picture of more than 33 million pixels is shrunk by a whole number. Raises
    MediaError for what is no picture of the formats that are read, is cut off, or is beyond the limits; `most_pixels`
    is a lower one for its size.
    """
    from PIL import UnidentifiedImageError

    name, limits = os.fspath(path), limits or Limits()
    if most_pixels is not None:
        limits = replace(limits, still_pixels=min(most_pixels, limits.still_pixels))
    check_file(name, "picture")
    try:
        with _opened(name, limits) as image:
            return Picture(_pixels(image), name)
    except MediaError:
        raise
    except UnidentifiedImageError:
        raise MediaError(f"{name}: not a picture", f"read are {', '.join(_formats())}") from None
    except MemoryError:
        raise MediaError(f"{name}: the picture needs more memory than is free") from None
    except Exception as error:  # Pillow raises whatever it stumbles over
        raise MediaError(f"{name}: the picture is broken or cut off ({error})") from error


def read_size(path: str, limits: Limits) -> tuple[int, int]:
    """Return the width and height that a picture's header tells, as it is stored. Raises MediaError."""
    check_file(path, "picture")
    try:
        with _opened(path, limits) as image:
            return image.size
    except MediaError:
        raise
    except Exception as error:  # Pillow raises whatever it stumbles over
        raise MediaError(f"{path}: the picture is broken or cut off ({error})") from error


def shrunk(image: NDArray[np.uint8], pixels: int | None = None) -> NDArray[np.uint8]:
    """Return a huge frame, uint8 (height, width, 3), shrunk by a whole number; others as they are.

    `pixels` are those that it will have once it is padded; None for its own.
    """
    import numpy as np
    from PIL import Image

    pixels = pixels or image.shape[0] * image.shape[1]
    if pixels < HUGE_PIXELS:
        return image
    factor = math.isqrt(4 * pixels // HUGE_PIXELS)
    return np.array(Image.fromarray(np.ascontiguousarray(image)).reduce(factor))


@contextmanager
def _opened(path: str, limits: Limits) -> Iterator[ImageFile]:
    """Open a picture for the `with` block. Raises MediaError if it is beyond the limits, also within the block."""
    from PIL import Image

    with _TimedFile(path, limits) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # from half its limit on, and for each tag of metadata that it leaves out
        if limits.still_pixels > STILL_PIXELS and Image.MAX_IMAGE_PIXELS is not None:
            Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, limits.still_pixels)
        try:
            image = Image.open(file, formats=_formats())
        except Image.DecompressionBombError:
            most = min(limits.still_pixels, 2 * (Image.MAX_IMAGE_PIXELS or 0))
            raise MediaError(f"{path}: the picture is too large: at most {most:,} pixels", RAISE_HINT) from None
        with image:
            most = limits.still_pixels // (2 if image.format in _COSTLY_FORMATS else 1)
            limits.check_size(path, image.width, image.height, most)
            passes = _passes(path, image, limits)
            if passes * image.width * image.height > _PASSES * limits.still_pixels:
                raise MediaError(
                    f"{path}: {passes:,} scans or frames of {image.width}x{image.height} are too many: at most "
                    f"{_PASSES * limits.still_pixels:,} pixels in all",
                    RAISE_HINT,
                )
            yield image


class _TimedFile(io.BufferedReader):
    """A file that ends a decoder that takes too long, as most of Pillow's ask for the file bit by bit."""

    def __init__(self, path: str, limits: Limits) -> None:
        super().__init__(io.FileIO(file_of(path)))
        self._path, self._seconds, self._started = path, limits.still_seconds, time.thread_time()

    def read(self, size: int | None = -1, /) -> bytes:
        if time.thread_time() - self._started > self._seconds:
            raise MediaError(f"{self._path}: not decoded within {self._seconds} seconds of a core", RAISE_HINT)
        return super().read(size)


@cache
def _formats() -> tuple[str, ...]:
    from PIL import Image

    Image.init()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _passes(path: str, image: ImageFile, limits: Limits) -> int:
    """Return how often the decoders go over the area of a picture: for each of its scans, or frames."""
    if image.format in ("JPEG", "MPO"):
        return _scans(_beginning(path), 0)[0]
    if image.format == "PNG":
        return Path(file_of(path)).read_bytes().count(b"fcTL")  # the header may tell fewer frames than there are
    if image.format == "TIFF":
        tags = cast("TiffImageFile", image).tag_v2
        limits.check_size(path, tags.get(_TILE_WIDTH, 1), tags.get(_TILE_HEIGHT, 1), limits.still_pixels)
        sizes = tags.get(_STRIP_BYTES) or tags.get(_TILE_BYTES) or 0  # several may lie in the same place
        return -(-sum(sizes if isinstance(sizes, tuple) else (sizes,)) // Path(file_of(path)).stat().st_size)
    frames: int = getattr(image, "n_frames", 1)
    return frames


def _beginning(path: str) -> bytes:
    with open(file_of(path), "rb") as file:  # noqa: PTH123 - a Path costs more
        return file.read(_JPEG_BYTES)


def _scans(content: bytes, position: int) -> tuple[int, int]:
    """Return the number of scans of the picture that begins at a position in a JPEG file, and where it ends."""
    scans, position = 0, position + 2
    while (marker := _MARKER.search(content, position)) and marker[0] != _END_OF_IMAGE:
        scans += marker[0] == _START_OF_SCAN
        position = marker.end() + int.from_bytes(content[marker.end() : marker.end() + 2], "big")
    return scans, marker.end() if marker else len(content)


def _pixels(image: ImageFile) -> NDArray[np.uint8]:
    """Return the pixels, uint8 (height, width, 3), upright. Strip by strip: a copy of a large picture takes a GB."""
    import numpy as np
    from PIL import ImageOps

    factor = _shrink_factor(image)
    if factor > 1:
        image.draft(None, (image.width // factor, image.height // factor))  # a JPEG is decoded to fewer pixels
    ImageOps.exif_transpose(image, in_place=True)
    factor = _shrink_factor(image)
    rows = factor * max(1, _STRIP_PIXELS // (factor * image.width))
    boxes = [(0, top, image.width, min(image.height, top + rows)) for top in range(0, image.height, rows)]
    white = None
    if image.mode.startswith(("I", "F")):
        white = _white(image.mode, max(float(np.asarray(image.crop(box)).max()) for box in boxes))
    pixels = np.empty((-(-image.height // factor), -(-image.width // factor), 3), np.uint8)
    for box in boxes:
        strip = _as_rgb(image.crop(box), white).reduce(factor)
        top = box[1] // factor
        pixels[top : top + strip.height] = np.asarray(strip)
    return pixels


def _shrink_factor(image: Image) -> int:
    return math.isqrt(max(0, image.width * image.height - 1) // _MAX_KEPT_PIXELS) + 1


def _as_rgb(image: Image, white: float | None) -> Image:
    """Convert to RGB; `white` is the value of white in a picture of 16 or more bits."""
    import numpy as np
    import PIL.Image

    if white is not None:
        levels = np.asarray(image).astype(np.float64) / white * 255
        image = PIL.Image.fromarray(np.clip(np.rint(levels), 0, 255).astype(np.uint8))
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        background = PIL.Image.new("RGBA", layer.size, (*_BACKGROUND, 255))
        image = PIL.Image.alpha_composite(background, layer)
    return image.convert("RGB")


def _white(mode: str, top: float) -> float:
    """Return the value of white, for a highest value of `top`; Pillow's own `convert` would clip at 255 instead."""
    if mode.startswith("I") and top <= 65535:
        return 65535.0
    return 1.0 if mode == "F" and top <= 1 else top


def _is_video(path: str) -> bool:
    from . import probe

    try:
        probe(path)
    except MediaError:
        return False
    return True
