"""What a model gets of a frame, from the files of its checkpoint: no torch, no download."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..demo import CHECKPOINT
from ..errors import ModelError, described
from ..video.fit import CLIP_MEAN, FrameInput, Way
from . import local_folder
from .config import PUBLISHED, describe, read_config
from .families import Family, family_of, is_generic
from .files import read_json
from .random_weights import has_random_weights

# Those on the hub, whose vision tower is CLIP ViT-L/14 at 336 pixels: https://huggingface.co/llava-hf
PUBLISHED_INPUT = FrameInput(336, 336, "crop", 336)
PROCESSOR_HINT = "take preprocessor_config.json and video_preprocessor_config.json from the published checkpoint"
MOST_EDGE = 4096  # pixels: published processors resize to 2,048 at the most
_DEFAULT_EDGE = 224
# In the order of transformers' `get_video_processor_dict`; the first may hold the video processor's values.
_NESTED, *_FLAT = "processor_config.json", "video_preprocessor_config.json", "preprocessor_config.json"


def frame_input(model: str, revision: str | None = None) -> FrameInput | None:
    """Return what a model of this machine, or one of the published, gets of a frame; None for others of the hub.

    Raises `UsageError` or `ModelError` for a folder that is no checkpoint.
    """
    folder = local_folder(model, revision)
    if folder is None and model in PUBLISHED.values():
        return PUBLISHED_INPUT
    if folder is None:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        with suppress(HFValidationError):
            path = try_to_load_from_cache(model, "config.json", revision=revision)
            folder = Path(path).parent if isinstance(path, str) else None
        if folder is None:
            return None
    if is_generic(config := read_config(folder)):
        return shape_of_frames(_video_values(folder), family_of(config), str(folder))
    side = describe(config).rates.image_size
    return input_of(_video_values(CHECKPOINT if has_random_weights(folder) else folder), side, str(folder))


def input_of(values: Mapping[str, Any], side: int, name: str) -> FrameInput:
    """Return what a video processor with these values makes of a frame, for a vision tower that takes `side` pixels.

    What is missing is that of `LlavaNextVideoVideoProcessor`; one that crops to something else than a square of `side`
    gets the vision tower's size, as `load_processor` does it. Raises `ModelError` for values that make no sense.
    """
    with _sensible(name):
        size, crop = values.get("size", _DEFAULT_EDGE), values.get("crop_size")
        if crop != side and dict(crop or {}) != {"height": side, "width": side}:
            size = side
        size = {"shortest_edge": size} if isinstance(size, int) else dict(size)
        resizes, crops = values.get("do_resize", True), values.get("do_center_crop", True)
        edge = size.get("shortest_edge") if resizes else None
        is_cut = bool(crops and (edge or not resizes))
        mean, resample = _mean(values, [level / 255 for level in CLIP_MEAN]), _resample(values)
        return FrameInput(side, side, "crop" if is_cut else "stretch", edge, mean, resample)


@contextmanager
def _sensible(name: str) -> Iterator[None]:
    """Turn what values of other types raise into `ModelError`."""
    try:
        yield
    except (TypeError, ValueError, AttributeError) as error:
        message = f"the preprocessor's config in {name} can't be used: {described(error)}"
        raise ModelError(message, PROCESSOR_HINT) from None


def shape_of_frames(values: Mapping[str, Any], family: Family, name: str) -> FrameInput:
    """Return what the video processor of any family makes of a frame, as far as its values tell.

    One with a height and a width squeezes frames into these, unless it keeps the middle only; others keep their shape.
    Raises `ModelError` for values that make no sense.
    """
    with _sensible(name):
        return _shape_of_frames(values, family)


def _shape_of_frames(values: Mapping[str, Any], family: Family) -> FrameInput:
    size, crop = (dict(values.get(name) or {}) for name in ("size", "crop_size"))
    crop = crop if values.get("do_center_crop") and crop.get("height") else {}
    side = crop or size
    if not (side.get("height") and side.get("width")) or not values.get("do_resize", True):
        return FrameInput(0, 0, "whole", time_marks=family.time_marks)
    edge = size.get("shortest_edge") if crop else None
    width, height = int(side["width"]), int(side["height"])
    if not (1 <= width <= MOST_EDGE and 1 <= height <= MOST_EDGE):
        raise ValueError(f"it makes frames of {width} x {height} pixels")
    way: Way = "crop" if crop else "stretch"
    mean, resample = _mean(values, [0.5] * 3), _resample(values)
    return FrameInput(width, height, way, edge, mean, resample, time_marks=family.time_marks)


def _mean(values: Mapping[str, Any], default: list[float]) -> tuple[int, int, int]:
    """Return the mean colour of a processor's values, 0 to 255."""
    means = values.get("image_mean") or default
    red, green, blue = (round(255 * mean) for mean in ([means] * 3 if isinstance(means, float) else means))
    return red, green, blue


def _resample(values: Mapping[str, Any]) -> int:
    """Return the filter of a processor's values; 0 is the nearest pixel."""
    resample = values.get("resample")
    return PUBLISHED_INPUT.resample if resample is None else int(resample)


def _video_values(folder: Path) -> dict[str, Any]:
    """Return the values of the video processor that a folder holds; none if it lacks them."""
    found: list[Any] = []
    for name in (_NESTED, *_FLAT):
        with suppress(FileNotFoundError):
            values = read_json(folder / name)
            values = values.get("video_processor") if name == _NESTED and isinstance(values, dict) else values
            found.append(values)
    return next((values for values in found if isinstance(values, dict)), {})
