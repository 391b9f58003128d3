"""A checkpoint's folder to weights in memory: device, precision, quantization, attention, processor."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import ModelError, UsageError
from .adaptation import PoolMode, adapted
from .checkpoint import Checkpoint, describe, read_config
from .random_weights import draw, has_random_weights
from .source import DEMO

if TYPE_CHECKING:
    import torch

Quantize = Literal["none", "8bit", "4bit"]
DType = Literal["auto", "float32", "float16", "bfloat16"]
Attention = Literal["auto", "sdpa", "flash_attention_2", "eager"]

# Kept as they are when the language model is quantized: the frames' features suffer most, and weigh little.
_UNQUANTIZED = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]  # matched from the start


@dataclass(frozen=True)
class Loading:
    """How weights are brought into memory; `auto` is decided by what is there.

    `prefix_reuse` keeps the KV cache of the last prompt, for the next one that begins the same way. `rope_factor`,
    `pool_stride` and `pool_mode` go over the config's own (see `adapted`); None leaves them.
    """

    quantize: Quantize = "none"
    dtype: DType = "auto"
    device: str = "auto"
    attention: Attention = "auto"
    prefix_reuse: bool = True
    rope_factor: float | None = None
    pool_stride: int | None = None
    pool_mode: PoolMode | None = None


@dataclass(frozen=True)
class Loaded:
    """A model ready to run, its processor, and what was decided on the way."""

    model: Any
    processor: Any
    checkpoint: Checkpoint
    device: str
    dtype: str
    attention: str
    quantize: Quantize


def load(folder: Path, loading: Loading) -> Loaded:
    """Return the checkpoint of a folder, loaded.

    Raises `UsageError` for a device that isn't there, `ModelError` for weights that can't be loaded or don't
    fit the memory.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration

    _quieten()
    config = adapted(read_config(folder), loading.rope_factor, loading.pool_stride, loading.pool_mode)
    device = choose_device(loading.device)
    dtype = choose_dtype(loading.dtype, device, _weight_bytes(folder))
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "local_files_only": True}
    try:
        options["config"] = LlavaNextVideoConfig.from_dict(config)
    except Exception as error:  # noqa: BLE001 - what it says to wrong values has many classes
        raise ModelError(f"the config in {folder} can't be used: {_last_line(error)}") from None
    if loading.attention != "auto":
        options["attn_implementation"] = loading.attention
    if loading.quantize != "none":
        options["quantization_config"] = _quantization(loading.quantize, device, dtype)
    if device.type != "cpu":
        options["device_map"] = {"": device}
    try:
        model, info = LlavaNextVideoForConditionalGeneration.from_pretrained(
            **_weights(folder, options["config"], dtype, device),
            trust_remote_code=False,
            output_loading_info=True,
            **options,
        )
    except torch.OutOfMemoryError:
        raise ModelError(
            f"the weights of {folder.name} don't fit the memory of {device}", "`--quantize 4bit` needs a quarter"
        ) from None
    except (SafetensorError, OSError, ValueError, ImportError, RuntimeError) as error:
        if isinstance(error, ImportError) and loading.attention == "flash_attention_2":
            why = "the package flash-attn isn't installed, or doesn't run here"
            raise ModelError(
                f"flash_attention_2 can't be used: {why}", "`--attention auto` takes what is there"
            ) from None
        raise ModelError(f"the weights in {folder} can't be loaded: {_first_line(error)}") from error
    absent = [*info["missing_keys"], *info["mismatched_keys"]]
    if absent:
        raise ModelError(f"the weights in {folder} are incomplete: {len(absent)} tensors missing, such as {absent[0]}")
    model.eval()
    processor = load_processor(folder, model.config)
    return Loaded(
        model=model,
        processor=processor,
        checkpoint=describe(config, "<|im_start|>" in processor.tokenizer.get_vocab()),
        device=str(device),
        dtype=str(dtype).removeprefix("torch."),
        attention=model.config._attn_implementation,  # noqa: SLF001 - what was chosen stands nowhere else
        quantize=loading.quantize,
    )


def _weights(folder: Path, config: Any, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """Return where `from_pretrained` finds the weights: in the folder, or, for random ones, drawn on the device."""
    if not has_random_weights(folder):
        return {"pretrained_model_name_or_path": folder}
    return {"pretrained_model_name_or_path": None, "state_dict": draw(config, dtype, device)}


def choose_device(device: str) -> torch.device:
    """Return the device asked for; `auto` takes a CUDA device, then Apple's, then the CPU."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (number and (kind != "cuda" or not number.isdigit())):
        raise UsageError(f"no device is called {device!r}", "auto, cpu, cuda, cuda:N or mps")
    there = torch.cuda.device_count() if kind == "cuda" else int(kind == "cpu" or torch.backends.mps.is_available())
    if int(number or 0) >= there:
        raise ModelError(f"there is no device {device} here", "`--device auto` takes what is there")
    return torch.device(device)


def choose_dtype(dtype: DType, device: torch.device, weight_bytes: int) -> torch.dtype:
    """Return the dtype asked for; `auto` takes bfloat16 on CUDA, float16 where that is lacking or on Apple's.

    On the CPU it takes float32, which is exact and, without bfloat16 instructions, faster; unless the
    weights, at twice their stored 16 bits, would fill more than 0.8 of the memory that is free.
    """
    import torch

    if dtype != "auto":
        return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[dtype]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "mps":
        return torch.float16
    return torch.float32 if 2 * weight_bytes < 0.8 * _free_memory_bytes() else torch.bfloat16


def load_processor(folder: Path, config: Any) -> Any:
    """Return the checkpoint's processor, with what old or incomplete copies lack filled in from the config.

    Without its preprocessor files a copy would get the class defaults, 224 pixels and 64 tokens a frame: the
    vision tower's own `image_size` is used. Raises `ModelError` if there is no tokenizer.
    """
    from transformers import LlavaNextVideoProcessor

    folder = DEMO if has_random_weights(folder) else folder
    try:
        processor = LlavaNextVideoProcessor.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception:  # noqa: BLE001 - what a missing file raises differs by version: RecursionError in 5.23
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
        raise ModelError(f"the tokenizer in {folder} can't be loaded: {_first_line(error)}") from error
    size = config.vision_config.image_size
    sizes: dict[str, Any] = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}
    return LlavaNextVideoProcessor(LlavaNextVideoVideoProcessor(**sizes), LlavaNextImageProcessor(**sizes), tokenizer)


def _side(part: Any) -> int | None:
    """The side of the square that a part of the processor crops to, in pixels."""
    crop = part.crop_size
    return crop["height"] if crop and crop["height"] == crop["width"] else None


def _quantization(quantize: Quantize, device: torch.device, dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    if device.type == "mps":
        raise ModelError("bitsandbytes can't quantize on mps", "`--quantize none`, or `--device cpu`")
    if quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=_UNQUANTIZED)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=_UNQUANTIZED,
    )


def _quieten() -> None:
    """Keep the libraries' own notes and progress bars out of the terminal: errors still raise."""
    import logging

    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # a line for each 8-bit product of float32


def _weight_bytes(folder: Path) -> int:
    if has_random_weights(folder):
        return describe(read_config(folder)).parameters.total_bytes("none")
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _free_memory_bytes() -> float:
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):  # not every system tells
        return float("inf")


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
