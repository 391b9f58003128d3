"""How many tokens a picture takes: AnyRes cuts it into tiles, and leaves out what only fills them up."""

from __future__ import annotations

from .config import Checkpoint


def picture_tokens(checkpoint: Checkpoint, height: int, width: int) -> int:
    """Return the tokens of a picture of so many pixels: the whole, its tiles, and an end for each line of patches.

    Source: LlavaNextVideoProcessor's `_get_number_of_features` and LlavaNextImageProcessor in transformers.
    """
    side = checkpoint.frame_side
    grid_height, grid_width = _grid(checkpoint, height, width)
    rows = side * (grid_height // checkpoint.image_size)
    columns = side * (grid_width // checkpoint.image_size)
    if width / height > columns / rows:
        filled = int(round(height * (columns / width), 7))
        rows -= (rows - filled) // 2 * 2
    else:
        filled = int(round(width * (rows / height), 7))
        columns -= (columns - filled) // 2 * 2
    class_token = 0 if checkpoint.feature_strategy == "default" else 1
    return side * side + class_token + rows * columns + rows


def _grid(checkpoint: Checkpoint, height: int, width: int) -> tuple[int, int]:
    """Return the grid that keeps most of a picture's pixels and, of those, wastes the least of its own."""

    def merit(grid: tuple[int, int]) -> tuple[int, int]:
        scale = min(grid[1] / width, grid[0] / height)
        kept = min(int(width * scale) * int(height * scale), width * height)
        return kept, kept - grid[0] * grid[1]

    return max(checkpoint.grids, key=merit)
