"""A checkpoint's folder to weights in memory: device, precision, quantization, attention, processor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import LlvidError, ModelError
from .adaptation import PoolMode, adapted
from .attention import Attention, choose_attention
from .checkpoint import Checkpoint, describe, read_config
from .devices import find_device, is_cpu_only
from .precision import TRAINED_FRAMES, Choice, DType, Quantize, choose, stored_quantization
from .processor import load_processor
from .random_weights import draw, has_random_weights

_SLOW_PARAMETERS = 800_000_000  # from here on a CPU takes long enough for a warning
# Kept as they are when the language model is quantized: the frames' features suffer most, and weigh little.
_UNQUANTIZED = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]  # matched from the start


@dataclass(frozen=True)
class Loading:
    """How weights are brought into memory; `auto` is decided by what is there.

    `frames` is the number that prompts are expected to have, None for 32: it counts where memory is short.
    `prefix_reuse` keeps the KV cache of the last prompt, for the next one that begins the same way, and of as many as
    there are `conversations` that take turns, if the memory suffices. `rope_factor`, `pool_stride` and `pool_mode` go
    over the config's own (see `adapted`); None leaves them.
    """

    quantize: Quantize = "auto"
    dtype: DType = "auto"
    device: str = "auto"
    attention: Attention = "auto"
    frames: int | None = None
    prefix_reuse: bool = True
    rope_factor: float | None = None
    pool_stride: int | None = None
    pool_mode: PoolMode | None = None
    conversations: int = 1


@dataclass(frozen=True)
class Loaded:
    """A model ready to run, its processor, and what was decided on the way.

    `notes` are for the user.
    """

    model: Any
    processor: Any
    checkpoint: Checkpoint
    choice: Choice
    attention: str
    notes: tuple[str, ...] = ()


def foresee(name: str, folder: Path, loading: Loading) -> None:
    """Raise what `load` would raise before it reads weights, as far as that can be told without torch."""
    config = adapted(read_config(folder), loading.rope_factor, loading.pool_stride, loading.pool_mode)
    if loading.device == "cpu" or (loading.device == "auto" and is_cpu_only()):
        _decided(name, config, loading)


def load(folder: Path, loading: Loading, name: str | None = None) -> Loaded:
    """Return the checkpoint of a folder, loaded; `name` is how it was asked for, for messages.

    Raises `UsageError` for what can't be done, `ModelError` for weights that can't be loaded or don't fit the memory.
    """
    import torch
    from transformers import LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration

    _quieten()
    name = name or folder.name
    config = adapted(read_config(folder), loading.rope_factor, loading.pool_stride, loading.pool_mode)
    choice = _decided(name, config, loading)
    attention = choose_attention(loading.attention, choice.device, choice.dtype)
    if (stored := config.get("quantization_config")) is not None:
        # the precision of this machine, not of the one that stored it
        config = {**config, "quantization_config": {**stored, "bnb_4bit_compute_dtype": choice.dtype}}
    dtype, device = getattr(torch, choice.dtype), torch.device(choice.device.name)
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": attention} | _placement(choice)
    try:
        options["config"] = LlavaNextVideoConfig.from_dict(config)
    except Exception as error:  # noqa: BLE001 - what it says to wrong values has many classes
        raise ModelError(f"the config in {folder} can't be used: {_last_line(error)}") from None
    if choice.quantize != "none" and stored is None:
        options["quantization_config"] = _quantization(choice, dtype)
    with _loading_errors(name, folder, choice):
        model, info = LlavaNextVideoForConditionalGeneration.from_pretrained(
            **_weights(folder, options["config"], dtype, device),
            trust_remote_code=False,
            output_loading_info=True,
            use_safetensors=True,
            local_files_only=True,
            **options,
        )
    absent = [*info["missing_keys"], *info["mismatched_keys"]]
    if absent:
        raise ModelError(f"the weights in {folder} are incomplete: {len(absent)} tensors missing, such as {absent[0]}")
    model.eval()
    processor = load_processor(folder, model.config)
    checkpoint = describe(config, "<|im_start|>" in processor.tokenizer.get_vocab())
    notes = [choice.note, _slowness(checkpoint, choice, loading.frames or TRAINED_FRAMES)]
    return Loaded(model, processor, checkpoint, choice, attention, tuple(note for note in notes if note is not None))


def _slowness(checkpoint: Checkpoint, choice: Choice, frames: int) -> str | None:
    """Return how long a large checkpoint takes on this CPU, by what it multiplies and copies in a second."""
    parameters = checkpoint.parameters
    if choice.device.kind != "cpu" or parameters.total < _SLOW_PARAMETERS:
        return None
    import torch

    from .speed import copy_bytes_per_second, operations_per_second

    cpu = torch.device("cpu")
    language, vision = frames * checkpoint.frame_tokens * parameters.language_linear, parameters.vision
    products = 2 * (language + frames * checkpoint.frame_side**2 * vision)  # a multiplication and an addition each
    first = products / operations_per_second(cpu, getattr(torch, choice.dtype))
    token = choice.need.weights_bytes / copy_bytes_per_second(cpu)
    return (
        f"on this CPU, {frames} frames take about {_span(first)} to the first word, and each token then {token:.1f} s"
        " at least; fewer --frames take less, a GPU far less"
    )


def _span(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"


def _decided(name: str, config: Mapping[str, Any], loading: Loading) -> Choice:
    stored, device = stored_quantization(config), find_device(loading.device)
    return choose(name, describe(config), device, loading.quantize, loading.dtype, loading.frames, stored)


def _placement(choice: Choice) -> dict[str, Any]:
    """Return where the weights go: accelerate shares the layers of a model out that one device can't hold."""
    if choice.is_shared:
        return {"device_map": "auto", "max_memory": choice.most_bytes}
    return {} if choice.device.kind == "cpu" else {"device_map": {"": choice.device.name}}


@contextmanager
def _loading_errors(name: str, folder: Path, choice: Choice) -> Iterator[None]:
    """Turn what loading raises into one line."""
    from safetensors import SafetensorError

    from .memory import is_out_of_memory

    try:
        yield
    except LlvidError:
        raise
    except (SafetensorError, OSError, ValueError, ImportError, RuntimeError, MemoryError) as error:
        failure = error
    else:
        return
    # Outside the handler: the error holds the frames, and so the tensors, of what failed.
    if is_out_of_memory(failure):
        needed = choice.need.weights_bytes / 1e9
        narrower = "" if choice.quantize == "4bit" or choice.device.kind == "mps" else "`--quantize 4bit`, or "
        raise ModelError(
            f"out of memory on {choice.device.name} while {name} was loaded: its weights take {needed:.1f} GB",
            f"{narrower}a smaller checkpoint, or more memory free",
        )
    raise ModelError(f"the weights in {folder} can't be loaded: {_first_line(failure)}") from failure


def _weights(folder: Path, config: Any, dtype: Any, device: Any) -> dict[str, Any]:
    """Return where `from_pretrained` finds the weights: in the folder, or, for random ones, drawn on the device."""
    if not has_random_weights(folder):
        return {"pretrained_model_name_or_path": folder}
    return {"pretrained_model_name_or_path": None, "state_dict": draw(config, dtype, device)}


def _quantization(choice: Choice, dtype: Any) -> Any:
    from transformers import BitsAndBytesConfig

    if choice.quantize == "8bit":
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


def _last_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
