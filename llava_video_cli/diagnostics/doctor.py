"""What this machine has, what a model needs and how it would run here, and what to do about each problem."""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from platform import platform, python_version
from typing import TypeVar

from ..checkpoint import local_folder, locate
from ..checkpoint.config import Checkpoint, read_checkpoint
from ..checkpoint.hub import ROOM_HINT, CachedCheckpoint, cache_folder, cached, cached_checkpoints, explained, resolve
from ..checkpoint.random_weights import random_folder
from ..checkpoint.size import MemoryEstimate, Quantized
from ..errors import LlvidError, ModelError, first_line
from ..inference.placement import Device, choose_placement, stored_quantization
from ..model import Loading
from ..prompt.budget import QUESTION_TOKENS, Budget
from ..system import machine
from . import packages
from .packages import Problem

Result = TypeVar("Result")
# The codecs of most videos. PyAV's own wheels decode all of them.
CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mpeg2video", "prores", "mjpeg")
_REINSTALL_PYAV = "pip install --force-reinstall av"
_IMPORTED = ("torch", "torchvision", "transformers", "bitsandbytes", "av")
# The published checkpoints by their geometry, which gives their needs before anything is downloaded.
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
class Workload:
    """A model, how it would be loaded, and what it would be asked.

    `frames` is None where it depends on the video. With `rope_auto`, the RoPE factor follows from the prompt's length.
    """

    model: str
    revision: str | None
    loading: Loading
    frames: int | None
    max_new_tokens: int
    rope_auto: bool = False


@dataclass(frozen=True)
class ModelFit:
    """What a model needs, and how it would run; None for what could not be determined.

    `is_here` is true if nothing has to be downloaded. `tokens` counts prompt and answer, `room_bytes` is the free
    memory of the device.
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


@dataclass
class Diagnosis:
    """All results. What could not be determined is None or empty, and its reason is among the problems."""

    llvid: str | None = None
    python: str = ""
    system: str = ""
    packages: dict[str, str | None] = field(default_factory=dict)
    processor: machine.Processor | None = None
    memory: machine.Memory | None = None
    accelerators: machine.Accelerators | None = None
    codecs: dict[str, bool] = field(default_factory=dict)
    cache: str | None = None
    cache_free_bytes: int | None = None
    checkpoints: list[CachedCheckpoint] = field(default_factory=list)
    model: ModelFit | None = None
    problems: list[Problem] = field(default_factory=list)

    @property
    def can_run(self) -> bool:
        """Whether the model runs here, as far as is known."""
        return not any(problem.stops for problem in self.problems)


def examine(workload: Workload, *, imports: bool = False) -> Diagnosis:
    """Return the diagnosis; never raises. With `imports`, the heavy packages are imported too, which takes seconds."""
    diagnosis = Diagnosis(python=python_version())
    diagnosis.system = _try(diagnosis, "reading the system's name", platform) or ""
    diagnosis.llvid = _try(diagnosis, "reading llvid's version", lambda: version(packages.OURS))
    diagnosis.packages = _try(diagnosis, "reading the packages' versions", packages.versions) or {}
    diagnosis.problems += _try(diagnosis, "reading the packages' requirements", packages.problems) or ()
    for module in _IMPORTED if imports else ():
        probe = partial(machine.check_import, module)
        _try(diagnosis, f"importing {module}", probe, stops=True, hint=_reinstall(module))
    diagnosis.processor = _try(diagnosis, "reading the processor", machine.processor)
    diagnosis.memory = _try(diagnosis, "reading the memory", machine.memory)
    diagnosis.accelerators = _try(
        diagnosis, "asking torch for graphics cards", machine.accelerators, stops=True, hint=_reinstall("torch")
    )
    _check_cards(diagnosis)
    diagnosis.codecs = _try(diagnosis, "asking PyAV for codecs", _codecs, stops=True, hint=_REINSTALL_PYAV) or {}
    diagnosis.problems += [
        Problem(f"PyAV can't decode {name} here", _REINSTALL_PYAV)
        for name, can_decode in diagnosis.codecs.items()
        if not can_decode
    ]
    _check_cache(diagnosis)
    result = _try(diagnosis, f"examining {workload.model}", lambda: fit_model(workload, diagnosis), stops=True)
    if result is not None:
        diagnosis.model = result[0]
        diagnosis.problems += result[1]
    return diagnosis


def _try(
    diagnosis: Diagnosis, what: str, probe: Callable[[], Result], *, stops: bool = False, hint: str | None = None
) -> Result | None:
    """Return a probe's result; if it fails, the reason goes among the problems."""
    try:
        return probe()
    except LlvidError as error:
        diagnosis.problems.append(Problem(str(error), error.hint, stops))
    except subprocess.TimeoutExpired as error:
        diagnosis.problems.append(Problem(f"{what} took more than {error.timeout:g} seconds", hint, stops))
    except Exception as error:  # noqa: BLE001 - one broken part must not hide the rest of the diagnosis
        diagnosis.problems.append(Problem(f"{what} failed: {first_line(error)}", hint, stops))
    return None


def _reinstall(module: str) -> str:
    names = "torch torchvision" if module.startswith("torch") else module
    return f"pip install --force-reinstall {names}"


def _codecs() -> dict[str, bool]:
    import av

    codecs = {}
    for name in CODECS:
        try:
            codecs[name] = bool(av.Codec(name, "r"))
        except ValueError:  # PyAV's UnknownCodecError
            codecs[name] = False
    return codecs


def _check_cards(diagnosis: Diagnosis) -> None:
    accelerators = diagnosis.accelerators
    if accelerators is None or not accelerators.has_nvidia or accelerators.cards:
        return
    if cuda := accelerators.torch_built_for:
        text = f"there is an NVIDIA card, but torch, which is built for CUDA {cuda}, can't use it"
        hint = (
            "nvidia-smi shows the driver's CUDA version: update the driver, "
            "or install a torch for that version from https://pytorch.org"
        )
    else:
        text, hint = "there is an NVIDIA card, but this torch is built for the CPU only", _reinstall("torch")
    diagnosis.problems.append(Problem(text, hint))


def _check_cache(diagnosis: Diagnosis) -> None:
    cache = _try(diagnosis, "looking for the hub's cache", cache_folder)
    if cache is None:
        return
    diagnosis.cache = str(cache)
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free_bytes = _try(diagnosis, "reading the free space of the disk", lambda: shutil.disk_usage(existing).free)
    diagnosis.cache_free_bytes = free_bytes
    diagnosis.checkpoints = _try(diagnosis, "reading the hub's cache", lambda: cached_checkpoints(cache)) or []
    diagnosis.problems += [
        Problem(
            f"{each.model} at {each.commit[:8]} is incomplete: it {each.lacks}",
            f"llvid pull {each.model} --revision {each.commit}",
        )
        for each in diagnosis.checkpoints
        if each.lacks
    ]


def fit_model(workload: Workload, host: Diagnosis) -> tuple[ModelFit, list[Problem]]:
    """Return how a model would run on a machine, by its config and without its weights, and the problems.

    Raises `LlvidError` for a model that does not exist or can't be read.
    """
    config_folder, folder = _folders(workload)
    fit = ModelFit(workload.model, folder is not None, str(folder) if folder is not None else None)
    pull = f"llvid pull {workload.model}" + (f" --revision {workload.revision}" if workload.revision else "")
    if config_folder is None:
        text = f"{workload.model} isn't downloaded, and its needs are known only after the download"
        return fit, [Problem(text, pull)]
    loading = workload.loading
    config, checkpoint = read_checkpoint(config_folder, loading.rope_factor, loading.pool_stride, loading.pool_mode)
    media_tokens = (workload.frames or 0) * checkpoint.rates.frame_tokens
    tokens = media_tokens + QUESTION_TOKENS + workload.max_new_tokens
    if workload.rope_auto:
        factor = checkpoint.factor_for(tokens)
        _, checkpoint = read_checkpoint(config_folder, factor, loading.pool_stride, loading.pool_mode)
    budget = Budget(media_tokens + QUESTION_TOKENS, workload.max_new_tokens, checkpoint.context_tokens, (media_tokens,))
    problems = []
    if folder is None:
        size = _FILE_BYTES * checkpoint.parameters.total
        fit = replace(fit, download_bytes=size)
        problems.append(Problem(f"{workload.model} isn't downloaded: about {size / 1e9:.1f} GB", pull))
        if host.cache_free_bytes is not None and host.cache_free_bytes < size:
            problems.append(Problem(f"{host.cache_free_bytes / 1e9:.1f} GB are free on the disk", ROOM_HINT, True))
    fit = replace(
        fit,
        parameters=checkpoint.parameters.total,
        frames=workload.frames,
        tokens=tokens,
        context_tokens=checkpoint.context_tokens,
    )
    if budget.left < 0:
        problems.append(_too_long(checkpoint, budget, workload))
    device = _device(loading.device, host)
    if device is None:
        problems.append(Problem(f"there is no device {loading.device} here", "--device auto", True))
        return fit, problems
    fit, more = _place(fit, checkpoint, stored_quantization(config), loading, device)
    return fit, problems + more


def _folders(workload: Workload) -> tuple[Path | None, Path | None]:
    """Return the folder with a model's config, and the folder with the whole model; None where there is none."""
    if local_folder(workload.model) is not None:
        folder = locate(workload.model)
        return folder, folder
    try:
        with explained(workload.model, workload.revision):
            folder = resolve(workload.model, workload.revision, offline=True)
            return folder, cached(workload.model, folder.name)
    except ModelError:
        size = _PUBLISHED.get(workload.model)
        return (random_folder(f"random:{size}") if size else None), None


def _device(wanted: str, host: Diagnosis) -> Device | None:
    """Return the device that the model would run on; None for one that does not exist."""
    accelerators = host.accelerators or machine.Accelerators()
    if wanted in ("auto", "cuda") and accelerators.cards:
        cards = sorted(accelerators.cards, key=lambda card: -card.free_bytes)
    else:
        cards = [card for card in accelerators.cards if card.device == wanted]
    if cards:
        numbers = tuple(int(card.device.partition(":")[2]) for card in cards)
        free = tuple(float(card.free_bytes) for card in cards)
        return Device("cuda", numbers, free, all(card.has_bfloat16 for card in cards))
    free_bytes = float(host.memory.free_bytes) if host.memory is not None else float("inf")
    if wanted in ("auto", "mps") and accelerators.has_mps:
        return Device("mps", (0,), (free_bytes,), bfloat16=False)
    if wanted in ("auto", "cpu"):
        return Device("cpu", (0,), (free_bytes,), host.processor is not None and host.processor.has_bfloat16)
    return None


def _place(
    fit: ModelFit, checkpoint: Checkpoint, stored: Quantized | None, loading: Loading, device: Device
) -> tuple[ModelFit, list[Problem]]:
    """Choose precision and attention, and compare the needed memory with the free memory."""
    problems = []
    if (stored or loading.quantize) in ("8bit", "4bit") and not packages.is_installed("bitsandbytes"):
        problems.append(Problem("quantized weights need bitsandbytes", "pip install bitsandbytes", True))
    fit = replace(fit, device=device.name)
    try:
        placement = choose_placement(
            fit.model, checkpoint, device, loading.quantize, loading.dtype, fit.frames, stored, fit.tokens
        )
    except LlvidError as error:
        return fit, [*problems, Problem(str(error), error.hint, True)]
    if placement.note is not None:
        problems.append(Problem(placement.note))
    attention: str = loading.attention if loading.attention != "auto" else "sdpa"
    if device.kind == "cuda" and placement.dtype != "float32" and packages.is_installed("flash-attn"):
        attention = loading.attention if loading.attention != "auto" else "flash_attention_2"
    elif attention == "flash_attention_2":
        text = "flash_attention_2 needs the package flash-attn, a CUDA device, and a 16-bit precision"
        problems.append(Problem(text, "--attention auto", True))
    free = sum(placement.device.free_bytes)
    fit = replace(
        fit,
        device=", ".join(f"cuda:{number}" for number in placement.device.numbers)
        if placement.is_shared
        else device.name,
        dtype=placement.dtype,
        quantize=placement.quantize,
        attention=attention,
        need=placement.need,
        room_bytes=int(free) if math.isfinite(free) else None,
    )
    if device.kind == "cpu" and checkpoint.parameters.total > _SLOW_PARAMETERS:
        problems.append(Problem("it runs on the CPU: an answer takes minutes", "fewer frames are faster: --frames 8"))
    return fit, problems


def _too_long(checkpoint: Checkpoint, budget: Budget, workload: Workload) -> Problem:
    tokens, frames = budget.prompt_tokens + budget.answer_tokens, budget.frames_each([workload.frames or 0])
    rope = f", or --rope-factor {checkpoint.factor_for(tokens):g}" if checkpoint.can_scale else ""
    return Problem(
        f"{workload.frames} frames, a question and {workload.max_new_tokens} tokens of answer are {tokens:,} tokens; "
        f"{workload.model} takes {checkpoint.context_tokens:,}",
        f"--frames {frames}{rope}",
        True,
    )
