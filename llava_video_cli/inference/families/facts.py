"""The facts of a checkpoint of any family: its config's model, built without memory, and its processor, tried out."""

from __future__ import annotations

import inspect
from math import ceil, isqrt
from pathlib import Path
from typing import Any

from ...checkpoint.config import Checkpoint, read_config
from ...checkpoint.families import family_of, untried
from ...checkpoint.files import TOKENIZER_HINT
from ...checkpoint.frame_input import MOST_EDGE
from ...checkpoint.size import Parameters
from ...checkpoint.tokens import SAMPLE, MeasuredRates
from ...errors import ModelError, described, first_line, last_line
from ..loader import Plan, without_kernels

# Tokens of a frame and of a picture, for memory, where no processor is there to tell: many families have about so many.
_GUESSED = MeasuredRates(384, 14, 1, (), False, 256, 256)


def settings_of(folder: Path) -> Any:
    """Return the config of a checkpoint's folder, as transformers has it. Raises `ModelError`."""
    from transformers import AutoConfig

    try:
        settings = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        without_kernels(settings)
    except Exception as error:  # noqa: BLE001 - what it says to wrong values has many classes
        raise ModelError(f"the config in {folder} can't be used: {last_line(error)}") from None
    return settings


def model_class(settings: Any) -> Any:
    """Return the class of a config's model. Raises `ModelError` if this transformers has none that takes media."""
    from transformers import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

    try:
        return MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(settings)]
    except KeyError:
        hint = "a newer transformers may have one: `pip install -U transformers`"
        raise ModelError(f"this transformers has no model of kind {settings.model_type}", hint) from None


def load_processor(folder: Path) -> Any:
    """Return the checkpoint's processor. Raises `ModelError` if it takes no videos, or can't be loaded."""
    from transformers import AutoProcessor

    settings_of(folder)  # a processor reads the config, too: what is wrong there is told as such
    try:
        processor = AutoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # noqa: BLE001 - a missing file raises other errors in each version
        why = first_line(error).partition(". If you were trying")[0]  # ... to load it from the hub
        raise ModelError(f"the processor in {folder} can't be loaded: {why}", TOKENIZER_HINT) from None
    if getattr(processor, "video_processor", None) is None or getattr(processor, "tokenizer", None) is None:
        kind = type(processor).__name__
        raise ModelError(f"the checkpoint in {folder} takes no videos: it has a {kind}", TOKENIZER_HINT)
    if "videos" not in inspect.signature(processor.__call__).parameters:  # InstructBlipVideo's takes four pictures
        raise ModelError(f"the {type(processor).__name__} in {folder} takes no videos as those of other models do")
    for part in (processor.video_processor, getattr(processor, "image_processor", None)):
        _check_size(part, folder)
    return processor


def _check_size(part: Any, folder: Path) -> None:
    """Raise `ModelError` for sizes to which no published processor resizes: they take memory for nothing.

    Beside a `longest_edge`, the `shortest_edge` of some is a number of pixels, the least that a picture is given.
    """
    size = getattr(part, "size", None) or {}
    for name, value in dict(size).items():
        is_area = name == "shortest_edge" and "longest_edge" in size
        most = MOST_EDGE**2 if is_area else MOST_EDGE
        if isinstance(value, int) and value > most and name in ("shortest_edge", "height", "width"):
            raise ModelError(f"the processor in {folder} resizes to {value:,} pixels ({name})", TOKENIZER_HINT)


def checkpoint_of(folder: Path) -> Checkpoint:
    """Return the facts of a checkpoint, of which only the config need be there. Raises `ModelError`."""
    try:
        processor = load_processor(folder)
    except ModelError:
        processor = None
    return plan(folder, processor).checkpoint


def plan(folder: Path, processor: Any) -> Plan:
    """Return how a checkpoint is loaded; without a processor, a frame's tokens are guessed.

    Raises `ModelError` for a checkpoint that makes no sense.
    """
    import torch

    config, settings = read_config(folder), settings_of(folder)
    family, kind = family_of(config), model_class(settings)
    try:
        with torch.device("meta"):
            model = kind(settings)
        checkpoint = facts_of(model, settings, processor, _measured(processor, settings))
    except Exception as error:  # noqa: BLE001 - what it says to wrong values has many classes
        raise ModelError(f"the config in {folder} can't be used: {described(error)}") from None
    if checkpoint.position_count < 1:
        raise ModelError(f"the config in {folder} can't be used: its context is {checkpoint.position_count}")
    note = None if family.was_tried else untried(family)
    return Plan(config, checkpoint, settings, kind, _unquantized(model), processor, note)


def _language_part(model: Any) -> str:
    """Return the name of the language model's module."""
    decoder = model.get_decoder()
    return next(str(name) for name, module in model.named_modules() if module is decoder)


def _unquantized(model: Any) -> list[str]:
    """Return the modules that are neither the language model nor hold it, from the outermost on."""
    own = _language_part(model)
    return [
        name
        for name, _ in model.named_modules()
        if name and not f"{own}.".startswith(f"{name}.") and f"{own}.".startswith(name.rpartition(".")[0])
    ]


def facts_of(model: Any, settings: Any, processor: Any, rates: MeasuredRates) -> Checkpoint:
    """Return the facts of a model that was built on the meta device."""
    import torch

    text, vision = settings.get_text_config(), getattr(settings, "vision_config", None)
    own = f"{_language_part(model)}."
    parts = {name: part for name, part in model.named_modules() if name.startswith(own)}
    linear = {name: part for name, part in parts.items() if isinstance(part, torch.nn.Linear)}
    keys = sum(part.out_features for name, part in linear.items() if name.endswith((".k_proj", ".v_proj")))
    head_width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}  # tied ones once
    in_linear = sum(part.weight.numel() for part in linear.values())
    in_language = sum(size for name, size in sizes.items() if name.startswith((own, "lm_head.")))
    width = getattr(vision, "hidden_size", text.hidden_size)
    return Checkpoint(
        prompt_format="own",
        image_token_id=_id(settings, processor, "image"),
        video_token_id=_id(settings, processor, "video"),
        rates=rates,
        pool_mode="",
        position_count=text.max_position_embeddings,
        rope_type="",
        rope_factor=1.0,
        layers=text.num_hidden_layers,
        kv_elements=keys or 2 * text.num_hidden_layers * heads * head_width,
        widths=(text.hidden_size, getattr(text, "intermediate_size", None) or 4 * text.hidden_size),
        vision_widths=(width, getattr(vision, "intermediate_size", None) or 4 * width),
        parameters=Parameters(
            language_linear=in_linear,
            language_linear_rows=sum(part.out_features for part in linear.values()),
            language_rest=in_language - in_linear,
            vision=sum(sizes.values()) - in_language,
            projector=0,
        ),
    )


def _measured(processor: Any, settings: Any) -> MeasuredRates:
    """Return what a processor makes of frames and of a picture of a usual size."""
    import numpy as np

    from .generic import process, token_of

    if processor is None:
        return _GUESSED
    count, height, width = SAMPLE
    frames = np.zeros((count, height, width, 3), np.uint8)
    video, text = token_of(processor, "video"), token_of(processor, "image")
    empty = process(processor, "", [], [])["input_ids"].shape[1]
    with_frames = process(processor, video, [(frames, tuple(float(each) for each in range(count)), count)], [])
    picture = process(processor, text, [], [frames[0]])["input_ids"].shape[1] - empty
    tokens = ceil((with_frames["input_ids"].shape[1] - empty) / count)
    patch = getattr(getattr(settings, "vision_config", None), "patch_size", None) or 14
    patch = patch if isinstance(patch, int) else max(patch)
    pixels = next(value for name, value in with_frames.items() if name.startswith("pixel_values"))
    side = isqrt(pixels.numel() // (3 * count * patch * patch))
    return MeasuredRates(side * patch, patch, 1, (), False, tokens, picture)


def _id(settings: Any, processor: Any, kind: str) -> int:
    """Return the id of a medium's tokens in a prompt."""
    from .generic import token_of

    names = (f"{kind}_token_id", f"{kind}_token_index")
    found = next((each for name in names if (each := getattr(settings, name, None)) is not None), None)
    if found is None and processor is None:
        return -1
    if found is None:
        found = processor.tokenizer.convert_tokens_to_ids(token_of(processor, kind))
    return int(found)
