"""How a frame becomes what a model gets: arithmetic on its sides, and Pillow; no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from .image import shrunk

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Fit = Literal["auto", "crop", "pad", "stretch"]
TimeMarks = Literal["seconds", "clock", "none"]
# What `auto` can come to; what a server does is not known here.
Way = Literal["crop", "stretch", "server", "whole"]
CLIP_MEAN = (123, 117, 104)  # OPENAI_CLIP_MEAN of transformers, times 255
_BICUBIC = 3  # of Pillow's `Resampling`


@dataclass(frozen=True)
class FrameInput:
    """What a model gets of a frame: a picture of `width` x `height` pixels, made by its video processor.

    `way` is the processor's own: `crop` resizes the frame's shorter side to `edge` pixels (None: it does not resize)
    and keeps the middle, `stretch` resizes both sides, `whole` keeps the frame's shape, whatever it is (then there
    is no width and no height). `mean` is the processor's mean colour, 0 to 255, and `resample` its filter, a number of
    Pillow's `Resampling`. `time_marks` are how the model's own prompt tells when a frame is on screen:
    `seconds` (`<0.6 seconds>`, for each pair of frames), `clock` (`00:07`) or `none`; None if that is not known.
    """

    width: int
    height: int
    way: Way = "crop"
    edge: int | None = None
    mean: tuple[int, int, int] = CLIP_MEAN
    resample: int = _BICUBIC
    time_marks: TimeMarks | None = None

    def fitted(self, image: NDArray[np.uint8], fit: Fit) -> NDArray[np.uint8]:
        """Return a frame, uint8 (height, width, 3), as it goes to the processor; one that has been fitted stays.

        `pad` fills it up with the mean colour to the model's shape (width to height), `stretch` resizes it to the
        model's size, and `crop` cuts its middle out in the model's shape, unless the processor does that by itself.
        """
        import numpy as np
        from PIL import Image

        height, width, _ = image.shape
        if fit in ("auto", self.way) or self.way == "whole" or (height, width) == (self.height, self.width):
            return image
        if fit == "stretch":
            whole = Image.fromarray(np.ascontiguousarray(shrunk(image)))
            return np.array(whole.resize((self.width, self.height), Image.Resampling(self.resample)))
        if fit == "crop":
            wide, high = self._shaped(width, height, min)
            left, top = (width - wide) // 2, (height - high) // 2
            return image[top : top + high, left : left + wide]
        wide, high = self._shaped(width, height, max)
        image = shrunk(image, wide * high)
        height, width, _ = image.shape
        wide, high = self._shaped(width, height, max)
        left, top = (wide - width) // 2, (high - height) // 2
        padded = np.empty((high, wide, 3), np.uint8)
        padded[:] = self.mean
        padded[top : top + height, left : left + width] = image
        return padded

    def came_to(self, fit: Fit) -> str:
        """Return what is done with a frame: `crop`, `pad`, `stretch`, `whole`, or `server`, which decides by itself."""
        return self.way if fit == "auto" or self.way == "whole" else fit

    def visible(self, width: int, height: int, fit: Fit) -> tuple[float, float] | None:
        """Return the shares of a frame's width and height that the model gets, of the middle; None for a server's way.

        Both are above 0 and at most 1.
        """
        if self.way == "server" and fit == "auto":
            return None
        if self.way == "whole":
            return 1.0, 1.0
        wide, high = width, height  # of what goes to the processor
        if fit == "crop" and self.way != "crop":
            wide, high = self._shaped(width, height, min)
        elif fit == "pad":
            wide, high = self._shaped(width, height, max)
        elif fit == "stretch" and self.way != "stretch":
            wide, high = self.width, self.height
        scale = self.edge / min(wide, high) if self.edge else 1.0
        across, along = self.width / (scale * wide), self.height / (scale * high)
        if self.way != "crop":  # what goes to the processor is not cut
            across = along = 1.0
        if fit != "stretch":  # of the picture, which may have been cut or padded
            across, along = across * wide / width, along * high / height
        return min(1.0, across), min(1.0, along)

    def size_of(self, width: int, height: int) -> str:
        """Return the sizes of a frame as a user reads them: `frames of 640 x 360 as 336 x 336`."""
        if self.way == "whole":
            return f"whole frames of {width} x {height}, in a size that its processor chooses"
        return f"frames of {width} x {height} as {self.width} x {self.height}"

    def _shaped(self, width: int, height: int, most: Callable[[int, int], int]) -> tuple[int, int]:
        """Return the sides with the model's shape: the largest within a frame with `min`, around it with `max`."""
        wide, high = round(height * self.width / self.height), round(width * self.height / self.width)
        if width == wide or height == high:  # but for less than a pixel, it has that shape
            return width, height
        return max(1, most(width, wide)), max(1, most(height, high))


@dataclass(frozen=True, eq=False)
class FrameResize:
    """Makes frames what a model gets: fits them as `input` says, then has the processor `resize` and crop them.

    Frames that have the model's size already stay as they are, so it may be applied twice.
    """

    input: FrameInput
    resize: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]

    def __call__(self, image: NDArray[np.uint8], fit: Fit = "auto") -> NDArray[np.uint8]:
        """Return uint8 (height, width, 3) at the model's size; a server's model gets the frame in its own."""
        if image.shape[:2] == (self.input.height, self.input.width):
            return image
        return self.resize(self.input.fitted(image, fit))
