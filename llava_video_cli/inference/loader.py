"""A checkpoint's folder to weights in memory: device, precision, quantization, attention, processor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..checkpoint import locate_config
from ..checkpoint.config import Checkpoint, family_of, read_checkpoint
from ..checkpoint.random_weights import has_random_weights
from ..checkpoint.size import answer_bytes
from ..demo import CHECKPOINT
from ..errors import LlvidError, ModelError, first_line, last_line
from ..model import Loading
from ..prompt.budget import TokenCounter
from ..system.machine import may_have_accelerator
from .placement import (
    TRAINED_FRAMES,
    Placement,
    choose_attention,
    choose_placement,
    find_device,
    stored_quantization,
)

# Kept as they are when the language model is quantized: the frames' features suffer most, and weigh little.
_UNQUANTIZED = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]  # matched from the start


@dataclass(frozen=True)
class Loaded:
    """A model ready to run, its processor, and what was decided on the way. `notes` are for the user."""

    model: Any
    processor: Any
    checkpoint: Checkpoint
    placement: Placement
    attention: str
    notes: tuple[str, ...] = ()

    def answer_bytes(self, tokens: int) -> int:
        """Return about what an answer takes of the memory; `tokens` are those of its prompt and of itself."""
        return answer_bytes(self.checkpoint, self.placement.dtype, tokens)


def foresee(name: str, folder: Path, loading: Loading) -> None:
    """Raise what `load` would raise before it reads weights, as far as that can be told without torch."""
    config, checkpoint = _config(folder, loading)
    if loading.device == "cpu" or (loading.device == "auto" and not may_have_accelerator()):
        _placed(name, config, checkpoint, loading)


def token_counter(model: str, loading: Loading, revision: str | None = None) -> TokenCounter:
    """Return the counter of a model as `loading` wants it; of a hub id's checkpoint, only the config is fetched.

    Raises what `open_model` raises before it loads anything.
    """
    folder = locate_config(model, revision)
    foresee(model, folder, loading)
    return TokenCounter(model, _config(folder, loading)[1], CHECKPOINT if has_random_weights(folder) else folder)


def load(folder: Path, loading: Loading, name: str | None = None) -> Loaded:
    """Return the checkpoint of a folder, loaded; `name` is how it was asked for, for messages.

    Raises `UsageError` for what can't be done, `ModelError` for weights that can't be loaded or don't fit the memory.
    """
    import torch
    from transformers import LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration

    from . import device_memory as memory
    from .processor import load_processor  # brings along all that fetches: --help need not pay
    from .speed import slow_note
    from .weights import weights

    _quieten()
    name = name or folder.name
    config, checkpoint = _config(folder, loading)
    placement = _placed(name, config, checkpoint, loading)
    attention = choose_attention(loading.attention, placement.device, placement.dtype)
    if (stored := config.get("quantization_config")) is not None:
        # the precision of this machine, not of the one that stored it
        config = {**config, "quantization_config": {**stored, "bnb_4bit_compute_dtype": placement.dtype}}
    dtype = getattr(torch, placement.dtype)
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": attention} | _device_map(placement)
    try:
        settings = LlavaNextVideoConfig.from_dict(deepcopy(config))
    except Exception as error:  # noqa: BLE001 - what it says to wrong values has many classes
        raise ModelError(f"the config in {folder} can't be used: {last_line(error)}") from None
    if placement.quantize != "none" and stored is None:
        options["quantization_config"] = _quantization(placement, dtype)
    with _loading_errors(name, folder, placement):
        slow = slow_note(checkpoint, placement, loading.frames or TRAINED_FRAMES)
        with memory.own_pages(), weights(folder, settings, placement) as tensors:
            model, info = LlavaNextVideoForConditionalGeneration.from_pretrained(
                None, config=settings, state_dict=tensors, output_loading_info=True, **options
            )
    absent = [*info["missing_keys"], *info["mismatched_keys"]]
    if absent:
        raise ModelError(f"the weights in {folder} are incomplete: {len(absent)} tensors missing, such as {absent[0]}")
    model.eval()
    _settle_generation(model, folder)
    processor = load_processor(folder, model.config)
    family = family_of(config, "<|im_start|>" in processor.tokenizer.get_vocab())
    notes = tuple(note for note in (placement.note, slow) if note is not None)
    return Loaded(model, processor, replace(checkpoint, family=family), placement, attention, notes)


def _config(folder: Path, loading: Loading) -> tuple[dict[str, Any], Checkpoint]:
    return read_checkpoint(folder, loading.rope_factor, loading.pool_stride, loading.pool_mode)


def _placed(name: str, config: Mapping[str, Any], checkpoint: Checkpoint, loading: Loading) -> Placement:
    stored, device = stored_quantization(config), find_device(loading.device)
    return choose_placement(name, checkpoint, device, loading.quantize, loading.dtype, loading.frames, stored)


def _device_map(placement: Placement) -> dict[str, Any]:
    """Return where the weights go: accelerate shares the layers of a model out that one device can't hold."""
    if placement.is_shared:
        return {"device_map": "auto", "max_memory": placement.most_bytes}
    # without a map, weights that are quantized would go to a GPU wherever there is one
    is_plain = placement.device.kind == "cpu" and placement.quantize == "none"
    return {} if is_plain else {"device_map": {"": placement.device.name}}


@contextmanager
def _loading_errors(name: str, folder: Path, placement: Placement) -> Iterator[None]:
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
        needed = placement.need.weights_bytes / 1e9
        narrower = "" if placement.quantize == "4bit" or placement.device.kind == "mps" else "`--quantize 4bit`, or "
        raise ModelError(
            f"out of memory on {placement.device.name} while {name} was loaded: its weights take {needed:.1f} GB",
            f"{narrower}use a smaller checkpoint, or free some memory",
        )
    raise ModelError(f"the weights in {folder} can't be loaded: {first_line(failure)}") from failure


def _settle_generation(model: Any, folder: Path) -> None:
    """Take the checkpoint's own settings of generation, if it has them."""
    from transformers import GenerationConfig

    with suppress(OSError):  # there are none
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)


def _quantization(placement: Placement, dtype: Any) -> Any:
    from transformers import BitsAndBytesConfig

    if placement.quantize == "8bit":
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
