"""Which precision a checkpoint is loaded in: the widest that leaves room for a prompt, by arithmetic alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..checkpoint.config import Checkpoint
from ..checkpoint.needs import Need, need
from ..checkpoint.size import Quantized
from ..errors import ModelError, UsageError
from ..model import DType, Quantize
from .devices import Device

Width = Literal["float32", "float16", "bfloat16"]

TRAINED_FRAMES = 32
_TEXT_TOKENS = 1000  # of question and answer, beside the frames, as LLaVA-NeXT's own demo counts
_LEAST_TOKENS = 512  # beside one frame: without that much room there is no answer at all
_SHARE = {"cuda": 0.92, "cpu": 0.9, "mps": 0.9}  # of what is free: allocators leave holes, and others live there too
_SMALL = 500_000_000  # parameters below which a CPU's float32 is quick enough, and exact
_GB = 1e9


@dataclass(frozen=True)
class Choice:
    """What a checkpoint is loaded as, and on which devices; of several, accelerate shares its layers out.

    `need` is what it takes with the prompt that was thought of.
    """

    quantize: Quantized
    dtype: Width
    device: Device
    need: Need
    note: str | None = None

    @property
    def is_shared(self) -> bool:
        """Whether several devices hold a part each."""
        return len(self.device.numbers) > 1

    @property
    def most_bytes(self) -> dict[int, int]:
        """What each device may be filled with."""
        share = _SHARE[self.device.kind]
        free = zip(self.device.numbers, self.device.free_bytes, strict=True)
        return {number: int(share * each) for number, each in free}


def choose(
    name: str,
    checkpoint: Checkpoint,
    device: Device,
    quantize: Quantize = "auto",
    dtype: DType = "auto",
    frames: int | None = None,
    stored: Quantized | None = None,
    tokens: int | None = None,
) -> Choice:
    """Return the widest precision whose weights fit the device beside a prompt with so many frames.

    `tokens` are those of the prompt and the answer, if they are known.

    What a user asks for by name is taken if the weights alone fit. `stored` is the quantization of the checkpoint's
    own files, which stays. Raises `UsageError` for what the device or the checkpoint can't do, `ModelError` where
    nothing fits, with what would.
    """
    if stored is not None and quantize not in ("auto", stored):
        raise UsageError(
            f"the weights of {name} are stored in {_words(stored)}: they can't be loaded with --quantize {quantize}",
            "leave it out",
        )
    if device.kind == "mps" and (stored or quantize in ("8bit", "4bit")):
        raise ModelError("bitsandbytes can't quantize on mps", "`--quantize none`, or `--device cpu`")
    frames = frames or TRAINED_FRAMES
    tokens = tokens or min(frames * checkpoint.frame_tokens + _TEXT_TOKENS, checkpoint.context_tokens)
    kinds: tuple[Quantized, ...] = ("none", "8bit", "4bit") if quantize == "auto" else (quantize,)
    if stored is not None or device.kind == "mps":
        kinds = (stored or "none",)
    tried = [
        Choice(kind, width, part, need(checkpoint, kind, width, tokens, frames))
        for kind in kinds
        for width in _widths(checkpoint, device, kind, dtype)
        for part in _parts(device)
    ]
    roomy = [each for each in tried if each.need.total_bytes <= _usable(each.device)]
    by_name = quantize != "auto" or stored is not None
    if by_name and not roomy:
        roomy = [each for each in tried if each.need.weights_bytes <= _usable(each.device)]
    if not roomy and (best := _tightest(checkpoint, tried)) is not None:
        return best
    if not roomy:
        raise _refusal(name, checkpoint, device, tried)
    return _noted(roomy[0], tried[0])


def stored_quantization(config: Mapping[str, Any]) -> Quantized | None:
    """Return how a checkpoint's own files are quantized, None for not. Raises `ModelError` for other ways than ours."""
    stored = config.get("quantization_config")
    if stored is None:
        return None
    if isinstance(stored, Mapping) and stored.get("quant_method", "bitsandbytes") == "bitsandbytes":
        if stored.get("load_in_4bit") or stored.get("_load_in_4bit"):
            return "4bit"
        if stored.get("load_in_8bit") or stored.get("_load_in_8bit"):
            return "8bit"
    method = stored.get("quant_method") if isinstance(stored, Mapping) else stored
    raise ModelError(f"the checkpoint is quantized in a way that llvid can't load: {method!r}")


def _parts(device: Device) -> Iterator[Device]:
    """Yield the device alone, then with the others that it may share a model with."""
    for count in range(1, len(device.numbers) + 1):
        yield replace(device, numbers=device.numbers[:count], free_bytes=device.free_bytes[:count])


def _widths(checkpoint: Checkpoint, device: Device, kind: Quantized, dtype: DType) -> tuple[Width, ...]:
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
    return _SHARE[device.kind] * sum(device.free_bytes)


def _tightest(checkpoint: Checkpoint, tried: list[Choice]) -> Choice | None:
    """Return the smallest choice if it leaves room for a prompt of some frames at least, with a note on how many."""
    last = tried[-1]
    fit = 0
    while fit < TRAINED_FRAMES and _fits(last, checkpoint, fit + 1):
        fit += 1
    if not fit:
        return None
    note = f"{_loaded_as(last)}: the memory of {last.device.name} has room for about {fit} frames beside the weights"
    return replace(last, note=note)


def _fits(choice: Choice, checkpoint: Checkpoint, frames: int) -> bool:
    return _least_need(choice, checkpoint, frames).total_bytes <= _usable(choice.device)


def _least_need(choice: Choice, checkpoint: Checkpoint, frames: int) -> Need:
    """Return what a short question on so many frames takes."""
    tokens = frames * checkpoint.frame_tokens + _LEAST_TOKENS
    return need(checkpoint, choice.quantize, choice.dtype, tokens, frames)


def _noted(taken: Choice, widest: Choice) -> Choice:
    """Return a choice with a word on it, if it isn't the one that would be taken where memory is no matter."""
    if taken.is_shared:
        note = f"{_loaded_as(taken)}, shared by {', '.join(f'cuda:{number}' for number in taken.device.numbers)}"
    elif (taken.quantize, taken.dtype) != (widest.quantize, widest.dtype):
        needed = widest.need.total_bytes / _GB
        note = (
            f"{_loaded_as(taken)}: {_words(widest.quantize, widest.dtype)} would take {needed:.1f} GB with a prompt, "
            f"and {sum(widest.device.free_bytes) / _GB:.1f} GB are free on {widest.device.name}"
        )
    else:
        return taken
    return replace(taken, note=note)


def _loaded_as(choice: Choice) -> str:
    return f"weights in {_words(choice.quantize, choice.dtype)} ({choice.need.weights_bytes / _GB:.1f} GB)"


def _words(quantize: Quantized, dtype: str = "16 bits") -> str:
    return {"none": dtype, "8bit": "8 bits", "4bit": "4 bits"}[quantize]


def _refusal(name: str, checkpoint: Checkpoint, device: Device, tried: list[Choice]) -> ModelError:
    """Return the error that says what it takes, what is free, and what would fit."""
    least = tried[-1]
    where = f"{least.device.name}" if not least.is_shared else f"{len(least.device.numbers)} CUDA devices together"
    least_need = _least_need(least, checkpoint, 1)
    message = (
        f"{name} takes {least_need.total_bytes / _GB:.1f} GB in {_words(least.quantize, least.dtype)} "
        f"({least_need.weights_bytes / _GB:.1f} GB of weights), but of {sum(least.device.free_bytes) / _GB:.1f} GB "
        f"free on {where} it may take {_usable(least.device) / _GB:.1f}"
    )
    hints = []
    if device.kind != "mps":
        narrow = checkpoint.parameters.total_bytes("4bit", 2)
        if least.quantize != "4bit" and narrow <= _usable(least.device):
            hints.append(f"`--quantize 4bit` takes {narrow / _GB:.1f} GB")
    if device.kind != "cpu":
        hints.append("`--device cpu` uses the machine's memory, slowly")
    hints.append("a smaller checkpoint, or more memory free")
    return ModelError(message, "; ".join(hints[:2]))
