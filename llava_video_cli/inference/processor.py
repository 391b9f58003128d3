"""The checkpoint's processor, completed: how frames and pictures become tensors, and the tokenizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..checkpoint.files import TOKENIZER_HINT
from ..checkpoint.frame_input import PROCESSOR_HINT
from ..checkpoint.random_weights import has_random_weights
from ..demo import CHECKPOINT
from ..errors import ModelError, first_line

_MOST_TIMES_SIDE = 4  # of the vision tower: what is resized to more takes memory for nothing


def load_processor(folder: Path, config: Any) -> Any:
    """Return the checkpoint's processor; what old or incomplete copies lack is filled in from the config.

    A copy without its preprocessor files would get the class defaults, 224 pixels and 64 tokens a frame; the vision
    tower's own `image_size` is used instead. Raises `ModelError` if there is no tokenizer, or for values with
    which no frame can be prepared.
    """
    try:
        processor = _completed(folder, config)
        _try_out(processor, config.vision_config.image_size)
    except ModelError:
        raise
    except Exception as error:  # noqa: BLE001 - wrong values raise errors of any class
        message = f"the preprocessor's config in {folder} can't be used: {first_line(error)}"
        raise ModelError(message, PROCESSOR_HINT) from None
    return processor


def _try_out(processor: Any, side: int) -> None:
    """Prepare a frame and a picture. Raises errors of any class for wrong values, before they take memory."""
    import numpy as np

    from .vision import resize

    sizes = [dict(part.size) for part in (processor.video_processor, processor.image_processor)]
    if not all(edge is None or 1 <= edge <= _MOST_TIMES_SIDE * side for size in sizes for edge in size.values()):
        raise ValueError(f"it resizes to {sizes}, the model takes {side} pixels")
    image = np.zeros((side, 2 * side, 3), np.uint8)
    processor.image_processor(images=[image], return_tensors="pt", input_data_format="channels_last")
    frames = resize(image, processor)[None]
    values = processor.video_processor(videos=[frames], return_tensors="pt", do_sample_frames=False)
    height, width = values["pixel_values_videos"].shape[-2:]
    if (height, width) != (side, side):
        raise ValueError(f"it makes frames of {width} x {height} pixels, the model takes {side} x {side}")


def _completed(folder: Path, config: Any) -> Any:
    from transformers import LlavaNextVideoProcessor

    folder = CHECKPOINT if has_random_weights(folder) else folder
    try:
        processor = LlavaNextVideoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception:  # noqa: BLE001 - a missing file raises other errors in each version: RecursionError in 5.23
        processor = _processor_from_parts(folder, config)
    size = config.vision_config.image_size
    for part in (processor.image_processor, processor.video_processor):
        if _side(part) != size:
            part.size, part.crop_size = {"shortest_edge": size}, {"height": size, "width": size}
    processor.image_processor.image_grid_pinpoints = config.image_grid_pinpoints
    processor.patch_size = config.vision_config.patch_size
    processor.vision_feature_select_strategy = (
        processor.vision_feature_select_strategy or config.vision_feature_select_strategy
    )
    processor.num_additional_image_tokens = processor.num_additional_image_tokens or 1  # CLIP's class token
    tokenizer = processor.tokenizer
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return processor


def _processor_from_parts(folder: Path, config: Any) -> Any:
    """Build a processor around the tokenizer alone, with the vision tower's sizes."""
    from transformers import AutoTokenizer, LlavaNextVideoProcessor
    from transformers.models.llava_next import LlavaNextImageProcessor
    from transformers.models.llava_next_video import LlavaNextVideoVideoProcessor

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise ModelError(f"the tokenizer in {folder} can't be loaded: {first_line(error)}", TOKENIZER_HINT) from error
    size = config.vision_config.image_size
    sizes: dict[str, Any] = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
    return LlavaNextVideoProcessor(LlavaNextVideoVideoProcessor(**sizes), LlavaNextImageProcessor(**sizes), tokenizer)


def _side(part: Any) -> int | None:
    """Return the side of the square that a part of the processor crops to, in pixels; None if it is no square."""
    crop = part.crop_size
    return crop["height"] if crop and crop["height"] == crop["width"] else None
