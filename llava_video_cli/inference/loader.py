"""A checkpoint's folder to weights in memory: device, precision, quantization, attention, processor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..checkpoint import locate_config
from ..checkpoint.adaptation import adapted
from ..checkpoint.config import Checkpoint, describe, read_config
from ..checkpoint.random_weights import has_random_weights
from ..demo import CHECKPOINT
from ..errors import LlvidError, ModelError, first_line, last_line
from ..model import Loading
from ..prompt.budget import Outline
from .attention import choose_attention
from .devices import find_device, is_cpu_only
from .placement import TRAINED_FRAMES, Choice, choose, stored_quantization

# Kept as they are when the language model is quantized: the frames' features suffer most, and weigh little.
_UNQUANTIZED = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]  # matched from the start


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


def outline(model: str, loading: Loading, revision: str | None = None) -> Outline:
    """Return what is known of a model as `loading` wants it; of a hub id's checkpoint, the config is fetched.

    Raises what `open_model` raises before it loads anything.
    """
    folder = locate_config(model, revision)
    config = adapted(read_config(folder), loading.rope_factor, loading.pool_stride, loading.pool_mode)
    foresee(model, folder, loading)
    return Outline(model, describe(config), CHECKPOINT if has_random_weights(folder) else folder)


def load(folder: Path, loading: Loading, name: str | None = None) -> Loaded:
    """Return the checkpoint of a folder, loaded; `name` is how it was asked for, for messages.

    Raises `UsageError` for what can't be done, `ModelError` for weights that can't be loaded or don't fit the memory.
    """
    import torch
    from transformers import LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration

    from . import device_memory as memory
    from . import speed_estimate as pace
    from .processor import load_processor  # brings along all that fetches: --help need not pay
    from .weights import weights

    _quieten()
    name = name or folder.name
    config = adapted(read_config(folder), loading.rope_factor, loading.pool_stride, loading.pool_mode)
    choice = _decided(name, config, loading)
    attention = choose_attention(loading.attention, choice.device, choice.dtype)
    if (stored := config.get("quantization_config")) is not None:
        # the precision of this machine, not of the one that stored it
        config = {**config, "quantization_config": {**stored, "bnb_4bit_compute_dtype": choice.dtype}}
    dtype = getattr(torch, choice.dtype)
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": attention} | _placement(choice)
    try:
        settings = LlavaNextVideoConfig.from_dict(config)
    except Exception as error:  # noqa: BLE001 - what it says to wrong values has many classes
        raise ModelError(f"the config in {folder} can't be used: {last_line(error)}") from None
    if choice.quantize != "none" and stored is None:
        options["quantization_config"] = _quantization(choice, dtype)
    with _loading_errors(name, folder, choice):
        slow = pace.note(describe(config), choice, loading.frames or TRAINED_FRAMES)
        with memory.own_pages(), weights(folder, settings, choice) as tensors:
            model, info = LlavaNextVideoForConditionalGeneration.from_pretrained(
                None, config=settings, state_dict=tensors, output_loading_info=True, **options
            )
    absent = [*info["missing_keys"], *info["mismatched_keys"]]
    if absent:
        raise ModelError(f"the weights in {folder} are incomplete: {len(absent)} tensors missing, such as {absent[0]}")
    model.eval()
    _settle_generation(model, folder)
    processor = load_processor(folder, model.config)
    checkpoint = describe(config, "<|im_start|>" in processor.tokenizer.get_vocab())
    notes = tuple(note for note in (choice.note, slow) if note is not None)
    return Loaded(model, processor, checkpoint, choice, attention, notes)


def _decided(name: str, config: Mapping[str, Any], loading: Loading) -> Choice:
    stored, device = stored_quantization(config), find_device(loading.device)
    return choose(name, describe(config), device, loading.quantize, loading.dtype, loading.frames, stored)


def _placement(choice: Choice) -> dict[str, Any]:
    """Return where the weights go: accelerate shares the layers of a model out that one device can't hold."""
    if choice.is_shared:
        return {"device_map": "auto", "max_memory": choice.most_bytes}
    # without a map, weights that are quantized would go to a GPU wherever there is one
    is_plain = choice.device.kind == "cpu" and choice.quantize == "none"
    return {} if is_plain else {"device_map": {"": choice.device.name}}


@contextmanager
def _loading_errors(name: str, folder: Path, choice: Choice) -> Iterator[None]:
    """Turn what loading raises into one line."""
    from safetensors import SafetensorError

    from .device_memory import is_out_of_memory

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
    raise ModelError(f"the weights in {folder} can't be loaded: {first_line(failure)}") from failure


def _settle_generation(model: Any, folder: Path) -> None:
    """Take the checkpoint's own settings of generation, if it has them."""
    from transformers import GenerationConfig

    with suppress(OSError):  # there are none
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)


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
