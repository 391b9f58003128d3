"""Where and how a checkpoint is loaded: device, precision and attention kernel, by what is there and by arithmetic."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..checkpoint.config import Checkpoint
from ..checkpoint.size import LOAD_SHARE, MemoryEstimate, Quantized, estimate_memory
from ..errors import ModelError, UsageError
from ..model import Attention, DType, Quantize
from ..prompt.budget import SHORT_TEXT_TOKENS, TEXT_TOKENS
from ..system.machine import has_nvidia, may_have_accelerator, memory, processor
from .cards import Card, find_cards, why_none

DeviceKind = Literal["cpu", "cuda", "mps"]
Precision = Literal["float32", "float16", "bfloat16"]
Kernel = Literal["sdpa", "flash_attention_2", "eager"]

TRAINED_FRAMES = 32
_SMALL = 500_000_000  # parameters below which a CPU's float32 is quick enough, and exact
_GB = 1e9


@dataclass(frozen=True)
class Device:
    """A device, or several CUDA devices that may share a model.

    `numbers` and `free_bytes` go together, in the order in which the devices are filled. `bfloat16` tells whether the
    device multiplies in it natively. `note` says which cards can't be used, and why.
    """

    kind: DeviceKind
    numbers: tuple[int, ...]
    free_bytes: tuple[float, ...]
    bfloat16: bool
    note: str | None = None

    @property
    def name(self) -> str:
        """The name of the first one, as torch has it."""
        return f"cuda:{self.numbers[0]}" if self.kind == "cuda" else self.kind


def find_device(device: str) -> Device:
    """Return the device of a name; `auto` takes all CUDA devices, or Apple's, or the CPU.

    Torch is imported unless it is the CPU. Raises `UsageError` for an unknown name, `ModelError` for a device that
    isn't there.
    """
    kind, _, number = device.partition(":")
    if kind not in ("auto", "cpu", "cuda", "mps") or (number and (kind != "cuda" or not number.isdecimal())):
        raise UsageError(f"unknown device {device!r}", "use auto, cpu, cuda, cuda:N or mps")
    if kind == "cpu" or (kind == "auto" and not may_have_accelerator()):
        return _cpu()
    import torch

    cards = find_cards(int(number) if number else None) if kind != "mps" else []
    usable = cuda_device(cards)
    if usable is not None:
        return usable
    why = _problems(cards) or (why_none() if has_nvidia() and not number else "")
    if kind in ("auto", "mps") and torch.backends.mps.is_available():
        return Device("mps", (0,), (float(torch.mps.recommended_max_memory()),), bfloat16=False)
    if kind == "auto":
        return replace(_cpu(), note=f"the CPU is used: {why}" if why else None)
    message = why if cards else f"there is no device {device} here" + (f": {why}" if why else "")
    raise ModelError(message, "`--device auto` uses what is available")


def cuda_device(cards: Sequence[Card]) -> Device | None:
    """Return the cards that can be used as a device, the one with the most free memory first; None if there is none."""
    usable = sorted((card for card in cards if not card.problem), key=lambda card: -card.free_bytes)  # stable
    if not usable:
        return None
    numbers = tuple(int(card.device.partition(":")[2]) for card in usable)
    free = tuple(float(card.free_bytes) for card in usable)
    return Device("cuda", numbers, free, all(card.has_bfloat16 for card in usable), _problems(cards) or None)


def _problems(cards: Sequence[Card]) -> str:
    return "; ".join(f"{card.device} can't be used: {card.problem}" for card in cards if card.problem)


def unused_bytes(kind: str, number: int | None = None) -> float:
    """Return the bytes that are free on a device; infinity where the system doesn't tell.

    Of a CUDA device (None for the current one), what torch holds and has given to nobody counts as free.
    """
    if kind == "cuda":
        import torch

        held = torch.cuda.memory_reserved(number) - torch.cuda.memory_allocated(number)
        return float(torch.cuda.mem_get_info(number)[0] + held)
    try:
        return float(memory().free_bytes)
    except (OSError, ValueError, KeyError):
        return float("inf")


def _cpu() -> Device:
    return Device("cpu", (0,), (unused_bytes("cpu"),), processor().has_bfloat16)


@dataclass(frozen=True)
class Placement:
    """How a checkpoint is loaded, and on which devices; accelerate spreads its layers over several.

    `need` is the memory that it takes with the expected prompt.
    """

    quantize: Quantized
    dtype: Precision
    device: Device
    need: MemoryEstimate
    note: str | None = None

    @property
    def is_shared(self) -> bool:
        """Whether several devices hold a part each."""
        return len(self.device.numbers) > 1

    @property
    def most_bytes(self) -> dict[int, int]:
        """The bytes that each device may be filled with."""
        share = LOAD_SHARE[self.device.kind]
        free = zip(self.device.numbers, self.device.free_bytes, strict=True)
        return {number: int(share * each) for number, each in free}


def choose_placement(
    name: str,
    checkpoint: Checkpoint,
    device: Device,
    quantize: Quantize = "auto",
    dtype: DType = "auto",
    frames: int | None = None,
    stored: Quantized | None = None,
    tokens: int | None = None,
) -> Placement:
    """Return how to load: the highest precision whose weights fit the device with a prompt of so many frames.

    `auto` is not quantized, or 4 bits: where 8 bits fit, 4 bits do, and they are faster.

    `tokens` are those of the prompt and the answer, if they are known. A quantization that a user names is used even if
    only the weights fit. `stored` is the quantization of the checkpoint's own files, which can't be changed. Raises
    `UsageError` for what the device or the checkpoint can't do, and `ModelError` where nothing fits, with a hint.
    """
    if stored is not None and quantize not in ("auto", stored):
        raise UsageError(
            f"the weights of {name} are stored in {_words(stored)}: they can't be loaded with --quantize {quantize}",
            "leave out --quantize",
        )
    if device.kind == "mps" and (stored or quantize in ("8bit", "4bit")):
        raise ModelError("bitsandbytes can't quantize on mps", "use `--quantize none` or `--device cpu`")
    frames = frames or TRAINED_FRAMES
    tokens = tokens or min(frames * checkpoint.rates.frame_tokens + TEXT_TOKENS, checkpoint.context_tokens)
    kinds: tuple[Quantized, ...] = ("none", "4bit") if quantize == "auto" else (quantize,)
    if stored is not None or device.kind == "mps":
        kinds = (stored or "none",)
    tried = [
        Placement(kind, precision, part, estimate_memory(checkpoint, kind, precision, tokens, frames))
        for kind in kinds
        for precision in _precisions(checkpoint, device, kind, dtype)
        for part in _parts(device)
    ]
    roomy = [each for each in tried if each.need.total_bytes <= _usable(each.device)]
    by_name = quantize != "auto" or stored is not None
    if by_name and not roomy:
        roomy = [each for each in tried if each.need.weights_bytes <= _usable(each.device)]
    if not roomy and (best := _tightest(checkpoint, tried)) is not None:
        return best
    if not roomy:
        raise _no_memory_error(name, checkpoint, device, tried)
    return _noted(roomy[0], tried[0])


def stored_quantization(config: Mapping[str, Any]) -> Quantized | None:
    """Return how a checkpoint's own files are quantized, or None. Raises `ModelError` for an unknown way."""
    inner = config.get("text_config")
    within = inner.get("quantization_config") if isinstance(inner, Mapping) else None
    stored = config.get("quantization_config", within)
    if stored is None:
        return None
    if within is None and isinstance(stored, Mapping) and stored.get("quant_method", "bitsandbytes") == "bitsandbytes":
        if stored.get("load_in_4bit") or stored.get("_load_in_4bit"):
            return "4bit"
        if stored.get("load_in_8bit") or stored.get("_load_in_8bit"):
            return "8bit"
    method = stored.get("quant_method") if isinstance(stored, Mapping) else stored
    raise ModelError(
        f"the checkpoint is quantized in a way that llvid can't load: {method!r}"
        + (" in its text_config" if within is not None else ""),
        "take the checkpoint that it was made from, with `--quantize 4bit` if memory is short",
    )


def _parts(device: Device) -> Iterator[Device]:
    """Yield the first device alone, then with one more of the others at a time."""
    for count in range(1, len(device.numbers) + 1):
        yield replace(device, numbers=device.numbers[:count], free_bytes=device.free_bytes[:count])


def _precisions(checkpoint: Checkpoint, device: Device, kind: Quantized, dtype: DType) -> tuple[Precision, ...]:
    if dtype != "auto":
        return (dtype,)
    if device.kind == "mps":
        return ("float16",)
    if device.kind == "cuda":
        return ("bfloat16",) if device.bfloat16 else ("float16",)
    if device.bfloat16 and (kind != "none" or checkpoint.parameters.total >= _SMALL):
        return ("bfloat16",)
    return ("float32", "bfloat16")


def _usable(device: Device) -> float:
    return LOAD_SHARE[device.kind] * sum(device.free_bytes)


def _tightest(checkpoint: Checkpoint, tried: list[Placement]) -> Placement | None:
    """Return the smallest placement, with a note on how many frames fit, or None if not a single frame does."""
    last = tried[-1]
    fit = 0
    while fit < TRAINED_FRAMES and _fits(last, checkpoint, fit + 1):
        fit += 1
    if not fit:
        return None
    frames = "1 frame" if fit == 1 else f"{fit} frames"
    note = f"{_loaded_as(last)}: the other memory of {last.device.name} is enough for about {frames}"
    return replace(last, note=note)


def _fits(placement: Placement, checkpoint: Checkpoint, frames: int) -> bool:
    return _least_need(placement, checkpoint, frames).total_bytes <= _usable(placement.device)


def _least_need(placement: Placement, checkpoint: Checkpoint, frames: int) -> MemoryEstimate:
    """Return what a short question about so many frames takes."""
    tokens = frames * checkpoint.rates.frame_tokens + SHORT_TEXT_TOKENS
    return estimate_memory(checkpoint, placement.quantize, placement.dtype, tokens, frames)


def _noted(placement: Placement, widest: Placement) -> Placement:
    """Return a placement with a note for the user, unless it is what any amount of memory would give."""
    if placement.is_shared:
        note = (
            f"{_loaded_as(placement)}, shared by {', '.join(f'cuda:{number}' for number in placement.device.numbers)}"
        )
    elif (placement.quantize, placement.dtype) != (widest.quantize, widest.dtype):
        wanted, needed = _words(widest.quantize, widest.dtype), widest.need.total_bytes / _GB
        note = (
            f"{_loaded_as(placement)}: {wanted} would need {needed:.1f} GB with a prompt, but "
            f"{sum(widest.device.free_bytes) / _GB:.1f} GB is free on {widest.device.name}"
        )
    else:
        return placement
    return replace(placement, note=note)


def _loaded_as(placement: Placement) -> str:
    return f"weights in {_words(placement.quantize, placement.dtype)} ({placement.need.weights_bytes / _GB:.1f} GB)"


def _words(quantize: Quantized, dtype: str = "16 bits") -> str:
    return {"none": dtype, "8bit": "8 bits", "4bit": "4 bits"}[quantize]


def _no_memory_error(name: str, checkpoint: Checkpoint, device: Device, tried: list[Placement]) -> ModelError:
    """Return the error that says what the checkpoint takes, what is free, and what would fit."""
    least = tried[-1]
    where = f"{least.device.name}" if not least.is_shared else f"{len(least.device.numbers)} CUDA devices together"
    least_need = _least_need(least, checkpoint, 1)
    message = (
        f"{name} needs {least_need.total_bytes / _GB:.1f} GB in {_words(least.quantize, least.dtype)} "
        f"({least_need.weights_bytes / _GB:.1f} GB of weights), but it may use only {_usable(least.device) / _GB:.1f} "
        f"of the {sum(least.device.free_bytes) / _GB:.1f} GB that is free on {where}"
    )
    hints = []
    if device.kind != "mps":
        narrow = checkpoint.parameters.total_bytes("4bit", 2)
        if least.quantize != "4bit" and narrow <= _usable(least.device):
            hints.append(f"`--quantize 4bit` needs {narrow / _GB:.1f} GB")
    if device.kind != "cpu":
        hints.append("`--device cpu` uses the machine's memory, slowly")
    hints.append("use a smaller checkpoint, or free some memory")
    return ModelError(message, "; ".join(hints[:2]))


def choose_attention(attention: Attention, device: Device, dtype: Precision) -> Kernel:
    """Return the attention kernel asked for; `auto` takes flash_attention_2 where it can run, else sdpa.

    Raises `ModelError` with the reason for one that can't run on the device.
    """
    if attention in ("sdpa", "eager"):
        return attention
    why = _why_no_flash(device, dtype)
    if why is None:
        return "flash_attention_2"
    if attention == "auto":
        return "sdpa"
    raise ModelError(f"flash_attention_2 can't be used: {why}", "`--attention auto` uses what is available")


def reasons(placement: Placement, attention: str, parameters: int) -> dict[str, str]:
    """Return why `auto` comes to the device, the precision, the quantization and the attention of a placement."""
    device, need = placement.device, placement.need
    free = sum(device.free_bytes) / _GB
    devices = {
        "cpu": "no GPU that torch can use",
        "mps": "Apple's GPU",
        "cuda": f"it has the most free memory, {free:.1f} GB",
    }
    if placement.is_shared:
        devices["cuda"] = "one GPU alone can't hold it"
    if placement.dtype == "float32":
        precision = "exact, and quick enough for a small model" if parameters < _SMALL else "no bfloat16 in hardware"
    elif placement.dtype == "bfloat16":
        precision = f"{device.name} computes in it" if device.bfloat16 else "float32 would not fit"
    else:
        precision = f"{device.name} has no bfloat16"
    fits = f"with a prompt, it needs {need.total_bytes / _GB:.1f} of {free:.1f} GB free"
    kernel = "the fastest"
    if attention == "sdpa":
        kernel = f"flash_attention_2 can't be used: {_why_no_flash(device, placement.dtype)}"
    return {"device": devices[device.kind], "dtype": precision, "quantize": fits, "attention": kernel}


def _why_no_flash(device: Device, dtype: Precision) -> str | None:
    if device.kind != "cuda":
        return f"it runs on CUDA devices, not on {device.kind}"
    if dtype == "float32":
        return "it needs float16 or bfloat16, not float32"
    import torch
    from transformers.utils import is_flash_attn_2_available

    if any(torch.cuda.get_device_capability(number) < (8, 0) for number in device.numbers):
        return "it needs an Ampere GPU or a newer one"
    if not is_flash_attn_2_available():
        return "the package flash-attn isn't installed, or is built for another torch"
    return None
