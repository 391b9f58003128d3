"""A checkpoint's folder to weights in memory: device, precision, quantization, attention, processor."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..checkpoint import check_bytes, locate_config
from ..checkpoint.adapter import Adapter, base_note, check_adapter, read_adapter, with_adapter
from ..checkpoint.config import Checkpoint, prompt_format_of, read_checkpoint, read_config
from ..checkpoint.families import is_generic
from ..checkpoint.random_weights import has_random_weights
from ..checkpoint.size import answer_bytes
from ..conversation import Generation
from ..demo import CHECKPOINT
from ..errors import LlvidError, ModelError, UsageError, described, first_line, last_line
from ..model import Loading
from ..prompt.budget import TokenCounter
from ..system.background import Background
from ..system.machine import check_docstrings, may_have_accelerator
from .constraints import Vocabulary
from .placement import (
    TRAINED_FRAMES,
    Placement,
    choose_attention,
    choose_placement,
    find_device,
    stored_quantization,
)

CUDNN_ATTENTION = "LLVID_CUDNN_ATTENTION"  # in the environment: 1 lets SDPA take cuDNN's kernels


@dataclass(frozen=True)
class Loaded:
    """A model ready to run, its processor, and what was decided on the way. `notes` are for the user.

    The `vocabulary` is there if answers were to be constrained.
    """

    model: Any
    processor: Any
    checkpoint: Checkpoint
    placement: Placement
    attention: str
    notes: tuple[str, ...] = ()
    adapter: Adapter | None = None
    vocabulary: Vocabulary | None = None

    def answer_bytes(self, tokens: int) -> int:
        """Return about what an answer takes of the memory; `tokens` are those of its prompt and of itself."""
        return answer_bytes(self.checkpoint, self.placement.dtype, tokens)


def foresee(name: str, folder: Path, loading: Loading) -> None:
    """Raise what `load` would raise before it reads weights, as far as that can be told without torch."""
    check_docstrings()
    config = read_config(folder)
    check_adapter(loading.adapter, folder)
    if is_generic(config):
        check_options(name, loading)
        return
    config, checkpoint = _config(folder, loading)
    if loading.device == "cpu" or (loading.device == "auto" and not may_have_accelerator()):
        _placed(name, config, checkpoint, loading)


def early_counter(
    model: str, loading: Loading, revision: str | None = None, *, rope_auto: bool = False
) -> TokenCounter | None:
    """Return what counts tokens before the model is loaded; None where only the loaded processor can.

    Of a hub id's checkpoint, only the config is fetched. Raises what `open_model` raises before it loads anything.
    """
    folder = locate_config(model, revision)
    if not is_generic(read_config(folder)):
        return token_counter(model, loading, revision)
    check_options(model, replace(loading, rope_factor=1.0) if rope_auto else loading)
    check_adapter(loading.adapter, folder)
    return None


def token_counter(model: str, loading: Loading, revision: str | None = None) -> TokenCounter:
    """Return the counter of a LLaVA-NeXT-Video model as `loading` wants it; see `early_counter`."""
    folder = locate_config(model, revision)
    foresee(model, folder, loading)
    return TokenCounter(model, _config(folder, loading)[1], CHECKPOINT if has_random_weights(folder) else folder)


def memory_left(model: str, loading: Loading, revision: str | None = None) -> tuple[str, float]:
    """Return the kind of device that a model will be on (`cuda`, `cpu`, `mps`), and the bytes that stay free there.

    Raises what `open_model` raises before it loads anything.
    """
    folder = locate_config(model, revision)
    config, checkpoint = read_facts(model, folder, replace(loading, adapter=None))  # `_placed` counts the adapter
    device = (placement := _placed(model, config, checkpoint, loading)).device
    return device.kind, sum(device.free_bytes) - placement.need.total_bytes


def load(folder: Path, loading: Loading, name: str | None = None, *, to_answer: bool = True) -> Loaded:
    """Return the checkpoint of a folder, loaded; `name` is how it was asked for, for messages.

    Without `to_answer`, 4-bit weights stay as a file stores them, instead of as this machine computes with them.

    Raises `UsageError` for what can't be done, `ModelError` for weights that can't be loaded or don't fit the memory.
    """
    check_docstrings()
    import torch

    from ..system.machine import usable_cores
    from . import device_memory as memory
    from .speed import slow_note
    from .weights import prepare_layers, weights

    _quieten()
    if usable_cores() < torch.get_num_threads():  # a CPU quota, of which torch knows nothing
        torch.set_num_threads(usable_cores())
    name = name or folder.name
    check_adapter(loading.adapter, folder)
    adapter = None if loading.adapter is None else read_adapter(loading.adapter)
    plan = _plan(folder, loading, name)
    config, checkpoint, settings = plan.config, plan.checkpoint, plan.settings
    placement = _placed(name, config, checkpoint, loading)
    attention = choose_attention(loading.attention, placement.device, placement.dtype)
    if placement.device.kind == "cuda":  # cuDNN builds a plan for each shape in each thread: docs/checkpoints.md
        torch.backends.cuda.enable_cudnn_sdp(os.environ.get(CUDNN_ATTENTION) == "1")
    if (stored := config.get("quantization_config")) is not None:
        # the precision of this machine, not of the one that stored it
        settings.quantization_config = {**stored, "bnb_4bit_compute_dtype": placement.dtype}
    early: Background[Vocabulary] | None = None
    if loading.constrained and plan.processor is not None:  # of other families, with the largest vocabularies
        early = Background("llvid-vocabulary", _vocabulary, plan.processor.tokenizer, settings, folder)
    dtype = getattr(torch, placement.dtype)
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": attention} | _device_map(placement)
    if placement.quantize != "none" and stored is None:
        options["quantization_config"] = _quantization(placement, dtype, plan.unquantized)
    with _loading_errors(name, folder, placement):
        slow = slow_note(checkpoint, placement, loading.frames or TRAINED_FRAMES)
        with memory.own_pages(), weights(folder, settings, placement) as tensors:
            model, info = plan.model_class.from_pretrained(
                None,
                config=settings,
                state_dict=tensors,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # to be reported here, by name
                **options,
            )
        scaled = [name for name in tensors if name.endswith((".weight_scale", ".weight_scale_inv"))]
    _check_loaded(folder, info, scaled)
    if adapter is not None:
        from .lora import apply

        with _loading_errors(name, adapter.folder, placement):
            apply(model, adapter, placement)
    model.eval()
    if to_answer and placement.quantize == "4bit" and placement.device.kind == "cpu":
        with _loading_errors(name, folder, placement), memory.own_pages():
            prepare_layers(model)
    model.generation_config = _generation_config(folder, settings)
    processor, form = plan.processor, checkpoint.prompt_format
    if processor is None:
        from .processor import load_processor

        processor = load_processor(folder, model.config)
        form = prompt_format_of(config, "<|im_start|>" in processor.tokenizer.get_vocab())
    vocabulary: Vocabulary | None = None
    if loading.constrained:
        vocabulary = early.result() if early else _vocabulary(processor.tokenizer, settings, folder)
    base = None if adapter is None else base_note(adapter, name)
    notes = tuple(note for note in (plan.note, placement.device.note, placement.note, slow, base) if note is not None)
    checkpoint = replace(checkpoint, prompt_format=form)
    return Loaded(model, processor, checkpoint, placement, attention, notes, adapter, vocabulary)


def _check_loaded(folder: Path, info: Mapping[str, Any], scaled: Sequence[str]) -> None:
    """Raise `ModelError` for weights that are not those of the config: which tensor, and what to do."""
    extra = sorted(info["unexpected_keys"])
    if adapters := [name for name in extra if ".lora_" in name]:
        hint = "save the adapter alone with peft, for --adapter, or merge it: `merge_and_unload()`"
        raise ModelError(f"the weights in {folder} hold an adapter that is not merged: {adapters[0]}", hint)
    if packed := [*scaled, *(name for name in extra if name.endswith((".qweight", ".qzeros")))]:
        hint = "take the checkpoint that it was made from, with `--quantize 4bit` if memory is short"
        raise ModelError(f"the weights in {folder} are quantized in a way that llvid can't load: {packed[0]}", hint)
    if mismatched := sorted(info["mismatched_keys"]):
        name, stored, wanted = mismatched[0]
        hint = "copy both again"
        if stored and ("embed_tokens" in name or "lm_head" in name):
            hint = f"the embeddings were resized: set vocab_size in its text_config to {stored[0]}"
        raise ModelError(
            f"the weights in {folder} don't fit its config.json: {name} is {_shape(stored)}, not {_shape(wanted)}", hint
        )
    if missing := sorted(info["missing_keys"]):
        message = f"the weights in {folder} are incomplete: {len(missing)} tensors missing, such as {missing[0]}"
        prefix = os.path.commonprefix(extra).rpartition(".")[0]  # noqa: RUF071 - cut at the last dot
        hint = "save the whole model again, or get the file again"
        if prefix:
            hint = f"all names begin with {prefix!r}: save the model itself, not what a trainer puts around it"
        raise ModelError(message, hint)


def _shape(sizes: Sequence[int]) -> str:
    return " x ".join(map(str, sizes)) or "a single number"


def _config(folder: Path, loading: Loading) -> tuple[dict[str, Any], Checkpoint]:
    return read_checkpoint(folder, loading.rope_factor, loading.pool_stride, loading.pool_mode)


@dataclass(frozen=True)
class Plan:
    """How a checkpoint is loaded, by its family: its `config` as a mapping, and `settings`, as transformers has it.

    The modules `unquantized` keep their precision when the language model is quantized: the frames' features would
    suffer most, and weigh little. Without a `processor`, it is LLaVA-NeXT-Video's. `note` is for the user.
    """

    config: Mapping[str, Any]
    checkpoint: Checkpoint
    settings: Any
    model_class: Any
    unquantized: Sequence[str]
    processor: Any = None
    note: str | None = None


def _plan(folder: Path, loading: Loading, name: str) -> Plan:
    if is_generic(read_config(folder)):
        from .families.facts import load_processor, plan

        check_options(name, loading)
        planned = plan(folder, load_processor(folder))
        check_bytes(folder, planned.checkpoint.parameters.total)
        return planned
    from transformers import LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration

    config, checkpoint = _config(folder, loading)
    try:
        settings = LlavaNextVideoConfig.from_dict(deepcopy(config))
        without_kernels(settings)
    except Exception as error:  # noqa: BLE001 - what it says to wrong values has many classes
        raise ModelError(f"the config in {folder} can't be used: {last_line(error)}") from None
    unquantized = ["model.vision_tower", "model.multi_modal_projector", "lm_head"]  # matched from the start
    return Plan(config, checkpoint, settings, LlavaNextVideoForConditionalGeneration, unquantized)


def without_kernels(settings: Any) -> None:
    """Forget the implementations that a config wants: one named OWNER/NAME would be code, fetched from the hub."""
    settings._attn_implementation = settings._experts_implementation = None  # noqa: SLF001 - in its parts, too


def read_facts(name: str, folder: Path, loading: Loading) -> tuple[Mapping[str, Any], Checkpoint]:
    """Return a folder's config, and the facts of its checkpoint as `loading` wants it. Raises what `load` raises.

    Only for LLaVA-NeXT-Video they are there without torch.
    """
    if not is_generic(config := read_config(folder)):
        config, checkpoint = _config(folder, loading)
        return config, with_adapter(checkpoint, loading.adapter)
    from .families.facts import checkpoint_of

    _quieten()
    check_options(name, loading)
    return config, with_adapter(checkpoint_of(folder), loading.adapter)


def check_options(name: str, loading: Loading) -> None:
    """Raise `UsageError` for options that only LLaVA-NeXT-Video has."""
    for option in ("rope_factor", "pool_stride", "pool_mode"):
        if getattr(loading, option) is not None:
            raise UsageError(f"--{option.replace('_', '-')} is for LLaVA-NeXT-Video: {name} is of another family")


def _placed(name: str, config: Mapping[str, Any], checkpoint: Checkpoint, loading: Loading) -> Placement:
    checkpoint = with_adapter(checkpoint, loading.adapter)
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
    from .device_memory import is_out_of_memory

    try:
        yield
    except LlvidError:
        raise
    except Exception as error:  # noqa: BLE001 - a config of wrong values makes transformers raise errors of any class
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
    message = f"the weights in {folder} can't be loaded: {first_line(failure)}"
    raise ModelError(message, "download config.json and the weights again, both from the same checkpoint") from failure


def _vocabulary(tokenizer: Any, settings: Any, folder: Path) -> Vocabulary:
    from .detokenizer import stop_ids, token_bytes

    tokens = token_bytes(tokenizer, settings.get_text_config().vocab_size)
    return Vocabulary(tokens, stop_ids(_generation_config(folder, settings), settings, tokenizer))


def _generation_config(folder: Path, settings: Any) -> Any:
    """Return the checkpoint's own settings of generation, or those that transformers makes of its config."""
    import torch
    from transformers import GenerationConfig

    from .sampler import Sampler

    try:
        config = GenerationConfig.from_pretrained(folder, local_files_only=True)
        Sampler(Generation(temperature=1.0), config, [], [], torch.device("cpu"))  # it takes all of them
        return config
    except OSError:  # there are none
        return GenerationConfig.from_model_config(settings)
    except Exception as error:  # noqa: BLE001 - what it says to wrong values has many classes
        raise ModelError(f"{folder / 'generation_config.json'} can't be used: {described(error)}") from None


def _quantization(placement: Placement, dtype: Any, unquantized: Sequence[str]) -> Any:
    from transformers import BitsAndBytesConfig

    if placement.quantize == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(unquantized))
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(unquantized),
    )


def _quieten() -> None:
    """Keep the libraries' own notes and progress bars out of the terminal: errors still raise."""
    import logging

    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    # of a parameter that is in no module of its own: it is placed all the same
    warnings.filterwarnings("ignore", "The following device_map keys do not match any submodules")
    warnings.filterwarnings("ignore", "Initializing zero-element tensors")  # a config's sizes of 0 are an error soon
    warnings.filterwarnings("ignore", module="peft")  # of layers that share weights, which `lora` gives their own
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # a line for each 8-bit product of float32
