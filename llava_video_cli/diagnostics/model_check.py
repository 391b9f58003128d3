"""What a model would get on this machine, and whether that is enough: by its config, without its weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path

from ..checkpoint import local_folder, locate
from ..checkpoint.config import Checkpoint, read_checkpoint
from ..checkpoint.hub import ROOM_HINT, cached, explained, resolve
from ..checkpoint.random_weights import random_folder
from ..checkpoint.size import MemoryEstimate, Quantized
from ..errors import LlvidError, ModelError
from ..inference.placement import Device, choose_placement, stored_quantization
from ..model import Loading
from ..prompt.budget import QUESTION_TOKENS, Budget
from ..system.machine import Accelerators, Memory
from . import packages

# The published checkpoints, by the geometry that they have: told before anything is downloaded.
_PUBLISHED = {
    "llava-hf/LLaVA-NeXT-Video-7B-hf": "7B",
    "llava-hf/LLaVA-NeXT-Video-7B-DPO-hf": "7B",
    "llava-hf/LLaVA-NeXT-Video-7B-32K-hf": "7B-32K",
    "llava-hf/LLaVA-NeXT-Video-34B-hf": "34B",
    "llava-hf/LLaVA-NeXT-Video-34B-DPO-hf": "34B",
}
_FILE_BYTES = 2  # for each parameter in the published files
_SLOW_PARAMETERS = 10**9


@dataclass(frozen=True)
class Problem:
    """Something that is wrong; `mend` is the command or option that helps, `stops` whether the model can't run so."""

    text: str
    mend: str | None = None
    stops: bool = False


@dataclass(frozen=True)
class Question:
    """A model, how it would be loaded, and what it would be asked.

    `frames` is None where it hangs on the video; `rope_auto` finds the RoPE factor by what is asked.
    """

    model: str
    revision: str | None
    loading: Loading
    frames: int | None
    max_new_tokens: int
    rope_auto: bool = False


@dataclass(frozen=True)
class Host:
    """What is known of the machine; None for what could not be found out."""

    memory: Memory | None
    accelerators: Accelerators | None
    disk_free_bytes: int | None
    has_bfloat16: bool = False


@dataclass(frozen=True)
class Choice:
    """What a model needs and would get; None where that can't be told.

    `is_here` tells that nothing is to be downloaded. `tokens` are those of prompt and answer, `room_bytes` what is free
    on the device.
    """

    model: str
    is_here: bool
    folder: str | None
    download_bytes: int | None = None
    parameters: int | None = None
    device: str | None = None
    dtype: str | None = None
    quantize: str | None = None
    attention: str | None = None
    frames: int | None = None
    tokens: int | None = None
    context_tokens: int | None = None
    need: MemoryEstimate | None = None
    room_bytes: int | None = None


def choose(question: Question, host: Host) -> tuple[Choice, list[Problem]]:
    """Return what a model would get, and what speaks against it. Raises `LlvidError` for a model that can't be."""
    config_folder, folder = _folders(question)
    choice = Choice(question.model, folder is not None, str(folder) if folder is not None else None)
    pull = f"llvid pull {question.model}" + (f" --revision {question.revision}" if question.revision else "")
    if config_folder is None:
        return choice, [Problem(f"{question.model} isn't downloaded, and what it needs isn't known before", pull)]
    loading = question.loading
    config, checkpoint = read_checkpoint(config_folder, loading.rope_factor, loading.pool_stride, loading.pool_mode)
    media_tokens = (question.frames or 0) * checkpoint.rates.frame_tokens
    tokens = media_tokens + QUESTION_TOKENS + question.max_new_tokens
    if question.rope_auto:
        factor = checkpoint.factor_for(tokens)
        _, checkpoint = read_checkpoint(config_folder, factor, loading.pool_stride, loading.pool_mode)
    budget = Budget(media_tokens + QUESTION_TOKENS, question.max_new_tokens, checkpoint.context_tokens, (media_tokens,))
    problems = []
    if folder is None:
        size = _FILE_BYTES * checkpoint.parameters.total
        choice = replace(choice, download_bytes=size)
        problems.append(Problem(f"{question.model} isn't downloaded: about {size / 1e9:.1f} GB", pull))
        if host.disk_free_bytes is not None and host.disk_free_bytes < size:
            problems.append(Problem(f"{host.disk_free_bytes / 1e9:.1f} GB are free on the disk", ROOM_HINT, True))
    choice = replace(
        choice,
        parameters=checkpoint.parameters.total,
        frames=question.frames,
        tokens=tokens,
        context_tokens=checkpoint.context_tokens,
    )
    if budget.left < 0:
        problems.append(_too_long(checkpoint, budget, question))
    device = _device(loading.device, host)
    if device is None:
        problems.append(Problem(f"there is no device {loading.device} here", "--device auto", True))
        return choice, problems
    choice, more = _fit(choice, checkpoint, stored_quantization(config), loading, device)
    return choice, problems + more


def _folders(question: Question) -> tuple[Path | None, Path | None]:
    """Return where a model's config can be read, and where the whole of it lies; None where it isn't."""
    if local_folder(question.model) is not None:
        folder = locate(question.model)
        return folder, folder
    try:
        with explained(question.model, question.revision):
            folder = resolve(question.model, question.revision, offline=True)
            return folder, cached(question.model, folder.name)
    except ModelError:
        size = _PUBLISHED.get(question.model)
        return (random_folder(f"random:{size}") if size else None), None


def _device(wanted: str, host: Host) -> Device | None:
    """Return the device that is taken; None for one that isn't there."""
    seen = host.accelerators or Accelerators()
    if wanted in ("auto", "cuda") and seen.cards:
        cards = sorted(seen.cards, key=lambda card: -card.free_bytes)
    else:
        cards = [card for card in seen.cards if card.device == wanted]
    if cards:
        numbers = tuple(int(card.device.partition(":")[2]) for card in cards)
        free = tuple(float(card.free_bytes) for card in cards)
        return Device("cuda", numbers, free, all(card.has_bfloat16 for card in cards))
    free_bytes = float(host.memory.free_bytes) if host.memory is not None else float("inf")
    if wanted in ("auto", "mps") and seen.has_mps:
        return Device("mps", (0,), (free_bytes,), bfloat16=False)
    if wanted in ("auto", "cpu"):
        return Device("cpu", (0,), (free_bytes,), host.has_bfloat16)
    return None


def _fit(
    choice: Choice, checkpoint: Checkpoint, stored: Quantized | None, loading: Loading, device: Device
) -> tuple[Choice, list[Problem]]:
    """Settle precision and attention, and hold what is needed against what is free."""
    problems = []
    if (stored or loading.quantize) in ("8bit", "4bit") and not packages.is_installed("bitsandbytes"):
        problems.append(Problem("quantized weights need bitsandbytes", "pip install bitsandbytes", True))
    choice = replace(choice, device=device.name)
    try:
        found = choose_placement(
            choice.model, checkpoint, device, loading.quantize, loading.dtype, choice.frames, stored, choice.tokens
        )
    except LlvidError as error:
        return choice, [*problems, Problem(str(error), error.hint, True)]
    if found.note is not None:
        problems.append(Problem(found.note, None))
    attention: str = loading.attention if loading.attention != "auto" else "sdpa"
    if device.kind == "cuda" and found.dtype != "float32" and packages.is_installed("flash-attn"):
        attention = loading.attention if loading.attention != "auto" else "flash_attention_2"
    elif attention == "flash_attention_2":
        text = "flash_attention_2 needs the package flash-attn, a CUDA device, and 16 bits"
        problems.append(Problem(text, "--attention auto", True))
    free = sum(found.device.free_bytes)
    choice = replace(
        choice,
        device=", ".join(f"cuda:{number}" for number in found.device.numbers) if found.is_shared else device.name,
        dtype=found.dtype,
        quantize=found.quantize,
        attention=attention,
        need=found.need,
        room_bytes=int(free) if math.isfinite(free) else None,
    )
    if device.kind == "cpu" and checkpoint.parameters.total > _SLOW_PARAMETERS:
        problems.append(Problem("it runs on the CPU: an answer takes minutes", "fewer frames take less: --frames 8"))
    return choice, problems


def _too_long(checkpoint: Checkpoint, budget: Budget, question: Question) -> Problem:
    tokens, frames = budget.prompt_tokens + budget.answer_tokens, budget.frames_each([question.frames or 0])
    more = f", or --rope-factor {checkpoint.factor_for(tokens):g}" if checkpoint.can_scale else ""
    return Problem(
        f"{question.frames} frames, a question and {question.max_new_tokens} tokens of answer are {tokens:,} tokens; "
        f"{question.model} takes {checkpoint.context_tokens:,}",
        f"--frames {frames}{more}",
        True,
    )
