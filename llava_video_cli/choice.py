"""What a model would get on this machine, and whether that is enough: by its config, without its weights."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from . import packages
from .errors import ModelError
from .machine import Accelerators, Card, Memory
from .models import Loading
from .models.adaptation import adapted, can_scale, factor_for
from .models.checkpoint import Checkpoint, describe, read_config
from .models.fetch import cached, resolve
from .models.hub import ROOM_HINT, explained
from .models.needs import Need, need
from .models.parameters import Quantized
from .models.random_weights import random_folder
from .models.source import local_folder, locate

# The published checkpoints, by the geometry that they have: told before anything is downloaded.
_PUBLISHED = {
    "llava-hf/LLaVA-NeXT-Video-7B-hf": "7B",
    "llava-hf/LLaVA-NeXT-Video-7B-DPO-hf": "7B",
    "llava-hf/LLaVA-NeXT-Video-7B-32K-hf": "7B-32K",
    "llava-hf/LLaVA-NeXT-Video-34B-hf": "34B",
    "llava-hf/LLaVA-NeXT-Video-34B-DPO-hf": "34B",
}
_QUESTION_TOKENS = 100  # of a short question with what the chat template puts around it
_FILE_BYTES = 2  # for each parameter in the published files
_SLOW_PARAMETERS = 10**9
_CPU_SHARE = 0.8  # of the free memory, which float32 may fill before bfloat16 is taken


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
    need: Need | None = None
    room_bytes: int | None = None


def choose(question: Question, host: Host) -> tuple[Choice, list[Problem]]:
    """Return what a model would get, and what speaks against it. Raises `LlvidError` for a model that can't be."""
    config_folder, folder = _folders(question)
    choice = Choice(question.model, folder is not None, str(folder) if folder is not None else None)
    pull = f"llvid pull {question.model}" + (f" --revision {question.revision}" if question.revision else "")
    if config_folder is None:
        return choice, [Problem(f"{question.model} isn't downloaded, and what it needs isn't known before", pull)]
    loading = question.loading
    config = adapted(read_config(config_folder), loading.rope_factor, loading.pool_stride, loading.pool_mode)
    checkpoint = describe(config)
    tokens = (question.frames or 0) * checkpoint.frame_tokens + _QUESTION_TOKENS + question.max_new_tokens
    if question.rope_auto:
        checkpoint = describe(adapted(config, factor_for(checkpoint, tokens)))
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
    if tokens > checkpoint.context_tokens:
        problems.append(_too_long(checkpoint, tokens, question))
    device, card = _device(loading.device, host.accelerators or Accelerators())
    if device is None:
        problems.append(Problem(f"there is no device {loading.device} here", "--device auto", True))
        return choice, problems
    choice, more = _fit(choice, checkpoint, loading, device, card, host)
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


def _device(wanted: str, seen: Accelerators) -> tuple[str | None, Card | None]:
    """Return the device that is taken, and the card that it is; None for one that isn't there."""
    if wanted == "auto":
        wanted = "cuda" if seen.cards else "mps" if seen.has_mps else "cpu"
    if wanted == "cpu" or (wanted == "mps" and seen.has_mps):
        return wanted, None
    card = next((card for card in seen.cards if wanted in ("cuda", card.device)), None)
    return (card.device if card is not None else None), card


def _fit(
    choice: Choice, checkpoint: Checkpoint, loading: Loading, device: str, card: Card | None, host: Host
) -> tuple[Choice, list[Problem]]:
    """Settle precision and attention, and hold what is needed against what is free."""
    room = card.free_bytes if card is not None else host.memory.free_bytes if host.memory is not None else None
    problems = []
    quantize = loading.quantize
    if quantize != "none" and not packages.is_installed("bitsandbytes"):
        problems.append(Problem(f"--quantize {quantize} needs bitsandbytes", "pip install bitsandbytes", True))
    if quantize != "none" and device == "mps":
        problems.append(Problem("bitsandbytes can't quantize on mps", "--quantize none, or --device cpu", True))
    dtype = _dtype(loading.dtype, checkpoint, device, card, room)
    if loading.attention == "flash_attention_2" and (
        card is None or dtype == "float32" or not packages.is_installed("flash-attn")
    ):
        problems.append(
            Problem("flash_attention_2 needs the package flash-attn, a card, and 16 bits", "--attention auto", True)
        )
    tokens = choice.tokens or 0
    needed = need(checkpoint, quantize, dtype, tokens)
    choice = replace(
        choice,
        device=device,
        dtype=dtype,
        quantize=quantize,
        attention="sdpa" if loading.attention == "auto" else loading.attention,
        need=needed,
        room_bytes=room,
    )
    if room is not None and needed.total_bytes > room:
        where = f"on {device}" if card is not None else "of memory"
        text = f"{choice.model} needs about {_gb(needed.total_bytes)} {where}, {_gb(room)} are free"
        problems.append(Problem(text, _smaller(checkpoint, quantize, dtype, tokens, room), True))
    elif device == "cpu" and checkpoint.parameters.total > _SLOW_PARAMETERS:
        problems.append(Problem("it runs on the CPU: an answer takes minutes", "fewer frames take less: --frames 8"))
    return choice, problems


def _dtype(wanted: str, checkpoint: Checkpoint, device: str, card: Card | None, room: int | None) -> str:
    """Return the precision that loading would take."""
    if wanted != "auto":
        return wanted
    if card is not None:
        return "bfloat16" if card.has_bfloat16 else "float16"
    if device == "mps":
        return "float16"
    wide = 2 * _FILE_BYTES * checkpoint.parameters.total
    return "float32" if room is None or wide < _CPU_SHARE * room else "bfloat16"


def _smaller(checkpoint: Checkpoint, quantize: Quantized, dtype: str, tokens: int, room: int) -> str:
    """Return what would fit."""
    narrower: tuple[Quantized, ...] = ("8bit", "4bit") if quantize == "none" else ("4bit",)
    for each in narrower:
        for precision in (dtype, "bfloat16") if dtype == "float32" else (dtype,):
            if need(checkpoint, each, precision, tokens).total_bytes <= room:
                extra = f" --dtype {precision}" if precision != dtype else ""
                return f"--quantize {each}{extra}"
    least = need(checkpoint, "4bit", dtype, tokens).total_bytes
    return f"a machine with more memory: in 4 bits it needs about {_gb(least)}"


def _too_long(checkpoint: Checkpoint, tokens: int, question: Question) -> Problem:
    frames = checkpoint.frames_that_fit(_QUESTION_TOKENS + question.max_new_tokens)
    more = f", or --rope-factor {factor_for(checkpoint, tokens):g}" if can_scale(checkpoint) else ""
    return Problem(
        f"{question.frames} frames, a question and {question.max_new_tokens} tokens of answer are {tokens:,} tokens; "
        f"{question.model} takes {checkpoint.context_tokens:,}",
        f"--frames {frames}{more}",
        True,
    )


def _gb(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
