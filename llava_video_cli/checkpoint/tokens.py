"""How many tokens of a prompt a model takes for a frame and for a picture: LLaVA-NeXT's AnyRes cuts it into tiles."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AnyResRates:
    """The token arithmetic of one checkpoint.

    Sizes are in pixels. `grids` has the (height, width) that a picture's tiles may fill together; `has_class_token` is
    whether the vision tower's class token stands before the patches of a picture.
    """

    image_size: int
    patch_size: int
    pool_stride: int
    grids: tuple[tuple[int, int], ...]
    has_class_token: bool

    @property
    def side(self) -> int:
        """Patches along one side of a frame, before they are pooled."""
        return self.image_size // self.patch_size

    @property
    def strides(self) -> list[int]:
        """The pooling strides that divide a frame's patches evenly, in ascending order."""
        return [stride for stride in range(2, self.side // 2 + 1) if self.side % stride == 0]

    @property
    def frame_tokens(self) -> int:
        """Tokens of one frame: the pooled patch grid, `side // stride` squared.

        Source: LlavaNextVideoPooler, whose pooling has kernel and stride `pool_stride`.
        """
        return (self.side // self.pool_stride) ** 2

    def picture_tokens(self, height: int, width: int) -> int:
        """Return the tokens of a picture of so many pixels: the whole, its tiles, and an end for each line of patches.

        Source: LlavaNextVideoProcessor's `_get_number_of_features` and LlavaNextImageProcessor in transformers.
        """
        grid_height, grid_width = self._grid(height, width)
        rows = self.side * (grid_height // self.image_size)
        columns = self.side * (grid_width // self.image_size)
        if width / height > columns / rows:
            filled = int(round(height * (columns / width), 7))
            rows -= (rows - filled) // 2 * 2
        else:
            filled = int(round(width * (rows / height), 7))
            columns -= (columns - filled) // 2 * 2
        return self.side**2 + self.has_class_token + rows * columns + rows

    def _grid(self, height: int, width: int) -> tuple[int, int]:
        """Return the grid that keeps most of a picture's pixels and, of those, wastes the least of its own."""

        def merit(grid: tuple[int, int]) -> tuple[int, int]:
            scale = min(grid[1] / width, grid[0] / height)
            kept = min(int(width * scale) * int(height * scale), width * height)
            return kept, kept - grid[0] * grid[1]

        return max(self.grids, key=merit)


SAMPLE = (2, 720, 1280)  # frames, height, width


@dataclass(frozen=True)
class MeasuredRates(AnyResRates):
    """What a processor made of `SAMPLE`: the tokens of a frame with its time, and of a picture.

    Other sizes may take more or less: prompts are counted by running the processor.
    """

    frame: int = 1
    picture: int = 1

    @property
    def frame_tokens(self) -> int:
        """Tokens of one of the sample's frames."""
        return self.frame

    def picture_tokens(self, height: int, width: int) -> int:
        """Return the tokens of the sample."""
        del height, width
        return self.picture
