"""Still pictures: read them upright as RGB, and tell them from videos."""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from ..errors import MediaError
from .files import check_file

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from . import TokenRates

_BACKGROUND = (255, 255, 255)  # what a viewer shows behind transparent parts


@dataclass(frozen=True, eq=False)
class Picture:
    """A still picture, compared by identity: `pixels` is uint8 (height, width, 3), RGB, upright.

    What code asks of any medium, it answers as a video without frames and without notes.
    """

    pixels: NDArray[np.uint8]
    path: str
    is_video: ClassVar[bool] = False
    frame_count: ClassVar[int] = 0
    notes: ClassVar[tuple[str, ...]] = ()
    part_seconds: ClassVar[tuple[float, float]] = (0.0, 0.0)

    @property
    def bytes(self) -> int:
        """What it holds in memory."""
        return self.pixels.nbytes

    def tokens(self, rates: TokenRates) -> int:
        """Return how many tokens of a prompt it takes."""
        height, width, _ = self.pixels.shape
        return rates.picture_tokens(height, width)


def is_picture(path: str | os.PathLike[str]) -> bool:
    """Return whether a file is a still picture by its content, whatever its name ends in.

    An animation (GIF, WebP, PNG of several frames) is a video if the video reader can decode it; otherwise its first
    frame is the picture. False for what can't be opened: reading it as a video then says why.
    """
    from PIL import Image

    name = os.fspath(path)
    try:
        check_file(name, "picture")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(name) as image:
                moves = getattr(image, "n_frames", 1) > 1
    except Image.DecompressionBombError:
        return True  # it is one; `read_image` says what is wrong with it
    except (MediaError, OSError, ValueError, SyntaxError):
        return False
    return not (moves and _is_video(name))


def read_image(path: str | os.PathLike[str], most_pixels: int | None = None) -> Picture:
    """Return a picture as it should be shown.

    EXIF rotation and mirroring are applied, palettes and CMYK are converted, 16 bits are reduced to 8, transparent
    parts get a white background. Raises MediaError for what is no picture, is cut off, or has more pixels than
    `most_pixels` or than PIL's limit for decompression bombs (about 179 million).
    """
    import numpy as np
    from PIL import Image, ImageOps, UnidentifiedImageError

    name = os.fspath(path)
    check_file(name, "picture")
    try:
        with warnings.catch_warnings():
            # PIL only warns from half its limit on, and refuses above it
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(name) as image:
                if image.width * image.height > (most_pixels or _limit()):
                    raise MediaError(f"{name}: the picture is too large ({image.width}x{image.height})")
                image.load()
                upright = ImageOps.exif_transpose(image)
                pixels = np.array(_as_rgb(upright), dtype=np.uint8)
    except Image.DecompressionBombError:
        raise MediaError(f"{name}: the picture is too large (more than {_limit():,} pixels)") from None
    except UnidentifiedImageError:
        raise MediaError(f"{name}: not a picture") from None
    except (OSError, ValueError, SyntaxError, EOFError) as error:
        raise MediaError(f"{name}: the picture is broken or cut off ({error})") from error
    return Picture(pixels, name)


def _as_rgb(image: Image) -> Image:
    import PIL.Image

    if image.mode.startswith(("I", "F")):
        image = _to_eight_bits(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        background = PIL.Image.new("RGBA", layer.size, (*_BACKGROUND, 255))
        return PIL.Image.alpha_composite(background, layer).convert("RGB")
    return image.convert("RGB")


def _to_eight_bits(image: Image) -> Image:
    """Scale a picture of 16 or more bits; PIL's own `convert` would clip at 255 instead."""
    import numpy as np
    import PIL.Image

    values = np.asarray(image).astype(np.float64)
    top = 65535.0 if image.mode.startswith("I") and values.max(initial=0) <= 65535 else values.max(initial=0)
    if image.mode == "F" and top <= 1:
        top = 1.0
    return PIL.Image.fromarray(np.clip(np.rint(values / (top or 1) * 255), 0, 255).astype(np.uint8))


def _is_video(path: str) -> bool:
    from . import probe

    try:
        probe(path)
    except MediaError:
        return False
    return True


def _limit() -> int:
    from PIL import Image

    return 2 * (Image.MAX_IMAGE_PIXELS or 0)
