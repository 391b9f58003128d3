"""What this machine has, what a model needs and how it would run here, and what to do about each problem."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from platform import platform, python_version
from typing import TypeVar

from ..checkpoint import local_folder, locate
from ..checkpoint.config import PUBLISHED, Checkpoint
from ..checkpoint.families import family_of, untried
from ..checkpoint.hub import ROOM_HINT, CachedCheckpoint, cache_folder, cached, cached_checkpoints, explained, resolve
from ..checkpoint.random_weights import random_folder
from ..checkpoint.size import LOAD_SHARE, MemoryEstimate, Quantized
from ..errors import LlvidError, ModelError, first_line
from ..inference.cards import Accelerators, accelerators
from ..inference.loader import read_facts
from ..inference.placement import Device, choose_placement, cuda_device, stored_quantization
from ..model import Loading
from ..preset import load_preset
from ..prompt.budget import QUESTION_TOKENS, Budget, too_long
from ..system import machine
from . import packages
from .packages import Problem

Result = TypeVar("Result")
# The codecs of most videos. PyAV's own wheels decode all of them.
CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mpeg2video", "prores", "mjpeg")
_IMPORTED = ("torch", "torchvision", "transformers", "bitsandbytes", "av")
# The sizes of the published checkpoints, which give the memory that they need before anything is downloaded.
_SIZES = {name: size.removesuffix("-dpo") for size, name in PUBLISHED.items()}
# Presets of models that have the better score on Video-MME the later they stand.
_GOOD = ("small", "laptop", "best-8gb", "best-24gb")
# Those whose answers a CPU gives in minutes, not in hours.
_GOOD_ON_CPU = ("small", "laptop")
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


@dataclass
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
    accelerators: Accelerators | None = None
    codecs: dict[str, bool] = field(default_factory=dict)
    cache: str | None = None
    cache_free_bytes: int | None = None
    checkpoints: list[CachedCheckpoint] = field(default_factory=list)
    model: ModelFit | None = None
    best_preset: str | None = None
    problems: list[Problem] = field(default_factory=list)

    @property
    def can_run(self) -> bool:
        """Whether the model runs here, as far as is known."""
        return not any(problem.stops for problem in self.problems)

    def attempt(
        self, what: str, probe: Callable[[], Result], *, stops: bool = False, hint: str | None = None
    ) -> Result | None:
        """Return a probe's result; if it fails, the reason goes among the problems."""
        try:
            return probe()
        except LlvidError as error:
            self.problems.append(Problem(str(error), error.hint, stops))
        except Exception as error:  # noqa: BLE001 - one broken part must not hide the rest of the diagnosis
            self.problems.append(Problem(f"{what} failed: {first_line(error)}", hint, stops))
        return None


def examine(workload: Workload, *, imports: bool = False) -> Diagnosis:
    """Return the diagnosis; never raises. With `imports`, the heavy packages are imported too, which takes seconds."""
    diagnosis = Diagnosis(python=python_version())
    diagnosis.system = diagnosis.attempt("reading the system's name", platform) or ""
    diagnosis.llvid = diagnosis.attempt("reading llvid's version", lambda: version(packages.OURS))
    diagnosis.packages = diagnosis.attempt("reading the packages' versions", packages.versions) or {}
    diagnosis.problems += diagnosis.attempt("reading the packages' requirements", packages.problems) or ()
    diagnosis.attempt("looking for docstrings", machine.check_docstrings, stops=True)
    for module in _IMPORTED if imports else ():
        probe = partial(machine.check_import, module)
        diagnosis.attempt(f"importing {module}", probe, stops=True, hint=_reinstall(module))
    diagnosis.processor = diagnosis.attempt("reading the processor", machine.processor)
    diagnosis.memory = diagnosis.attempt("reading the memory", machine.memory)
    diagnosis.accelerators = diagnosis.attempt(
        "asking torch for GPUs", accelerators, stops=True, hint=_reinstall("torch")
    )
    _check_cards(diagnosis)
    diagnosis.codecs = diagnosis.attempt("asking PyAV for codecs", _codecs, stops=True, hint=_reinstall("av")) or {}
    diagnosis.problems += [
        Problem(f"PyAV can't decode {name} here", _reinstall("av"))
        for name, can_decode in diagnosis.codecs.items()
        if not can_decode
    ]
    _check_cache(diagnosis)
    diagnosis.best_preset = diagnosis.attempt("choosing a preset", lambda: best_preset(diagnosis))
    result = diagnosis.attempt(f"examining {workload.model}", lambda: fit_model(workload, diagnosis), stops=True)
    if result is not None:
        diagnosis.model = result[0]
        diagnosis.problems += result[1]
    return diagnosis


def _reinstall(module: str) -> str:
    return f"pip install --force-reinstall {'torch torchvision' if module.startswith('torch') else module}"


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
    found = diagnosis.accelerators
    if found is None:
        return
    for card in found.cards:
        if card.problem:
            text = f"{card.device} ({card.name}) can't be used: {card.problem}"
            old = "another torch may have them: https://pytorch.org/get-started/previous-versions"
            hint = old if "no kernels" in card.problem else "nvidia-smi shows which processes use it"
            diagnosis.problems.append(Problem(text, hint))
    if not found.has_nvidia or found.cards:
        return
    if cuda := found.torch_built_for:
        why = f": {found.why_none}" if found.why_none else ""
        text = f"there is an NVIDIA GPU, but torch, which is built for CUDA {cuda}, can't use it{why}"
        hint = "update the driver, or install a torch (https://pytorch.org) for the CUDA version that nvidia-smi shows"
    else:
        text, hint = "there is an NVIDIA GPU, but this torch is built for the CPU only", _reinstall("torch")
    diagnosis.problems.append(Problem(text, hint))


def _check_cache(diagnosis: Diagnosis) -> None:
    cache = diagnosis.attempt("finding the hub's cache", cache_folder)
    if cache is None:
        return
    diagnosis.cache = str(cache)
    existing = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free_bytes = diagnosis.attempt("reading the free space of the disk", lambda: shutil.disk_usage(existing).free)
    diagnosis.cache_free_bytes = free_bytes
    diagnosis.checkpoints = diagnosis.attempt("reading the hub's cache", lambda: cached_checkpoints(cache)) or []
    diagnosis.problems += [
        Problem(
            f"{each.model} at {each.commit[:8]} is incomplete: it {each.lacks}",
            f"llvid pull {each.model} --revision {each.commit}",
        )
        for each in diagnosis.checkpoints
        if each.lacks
    ]


def fit_model(workload: Workload, host: Diagnosis) -> tuple[ModelFit, list[Problem]]:
    """Return how a model would run on a machine, from its config and without its weights, and the problems.

    Raises `LlvidError` for a model that does not exist or can't be read.
    """
    config_folder, folder = _folders(workload)
    fit = ModelFit(workload.model, folder is not None, str(folder) if folder is not None else None)
    pull = f"llvid pull {workload.model}" + (f" --revision {workload.revision}" if workload.revision else "")
    if config_folder is None:
        text = f"{workload.model} isn't downloaded; the memory that it needs is known only after the download"
        return fit, [Problem(text, pull)]
    problems, loading = list[Problem](), workload.loading
    config, checkpoint = read_facts(workload.model, config_folder, loading)
    if not (family := family_of(config)).was_tried:
        problems.append(Problem(untried(family)))
    media_tokens = (workload.frames or 0) * checkpoint.rates.frame_tokens
    fit.frames, fit.tokens = workload.frames, media_tokens + QUESTION_TOKENS + workload.max_new_tokens
    if workload.rope_auto:
        factor = checkpoint.factor_for(fit.tokens)
        _, checkpoint = read_facts(workload.model, config_folder, replace(loading, rope_factor=factor))
    fit.parameters, fit.context_tokens = checkpoint.parameters.total, checkpoint.context_tokens
    if folder is None:
        fit.download_bytes = _FILE_BYTES * fit.parameters
        problems.append(Problem(f"{workload.model} isn't downloaded: about {fit.download_bytes / 1e9:.1f} GB", pull))
        if host.cache_free_bytes is not None and host.cache_free_bytes < fit.download_bytes:
            problems.append(Problem(f"only {host.cache_free_bytes / 1e9:.1f} GB is free on the disk", ROOM_HINT, True))
    budget = Budget(media_tokens + QUESTION_TOKENS, workload.max_new_tokens, fit.context_tokens, (media_tokens,))
    if budget.left < 0:
        error = too_long(workload.model, checkpoint, budget, [workload.frames or 0])
        problems.append(Problem(str(error), error.hint, True))
    device = _device(loading.device, host)
    if device is None:
        problems.append(Problem(f"there is no device {loading.device} here", "--device auto", True))
    else:
        problems += _place(fit, checkpoint, stored_quantization(config), loading, device)
    return fit, problems


def best_preset(host: Diagnosis) -> str | None:
    """Return the preset of the best model that fits the free memory of a machine; None if there is none."""
    if (device := _device("auto", host)) is None:
        return None
    room = LOAD_SHARE[device.kind] * device.free_bytes[0]
    names = [name for name in (_GOOD_ON_CPU if device.kind == "cpu" else _GOOD) if _suits(name, device.kind, room)]
    return names[-1] if names else None


def _suits(name: str, kind: str, room_bytes: float) -> bool:
    preset = load_preset(name)
    return (
        preset.memory_gb is not None
        and 1e9 * preset.memory_gb <= room_bytes
        and not (kind == "mps" and preset.quantize != "auto")  # bitsandbytes can't quantize there
    )


def _folders(workload: Workload) -> tuple[Path | None, Path | None]:
    """Return the folder with a model's config, and the folder with the whole model; None where there is none."""
    if local_folder(workload.model, workload.revision) is not None:
        folder = locate(workload.model)
        return folder, folder
    try:
        with explained(workload.model, workload.revision):
            folder = resolve(workload.model, workload.revision, offline=True)
            return folder, cached(workload.model, folder.name)
    except ModelError:
        size = _SIZES.get(workload.model)
        return (random_folder(f"random:{size}") if size else None), None


def _device(wanted: str, host: Diagnosis) -> Device | None:
    """Return the device that the model would run on; None for one that does not exist."""
    found = host.accelerators or Accelerators()
    cards = [card for card in found.cards if wanted in ("auto", "cuda", card.device)]
    if (device := cuda_device(cards)) is not None:
        return device
    free_bytes = float(host.memory.free_bytes) if host.memory is not None else float("inf")
    if wanted in ("auto", "mps") and found.has_mps:
        return Device("mps", (0,), (free_bytes,), bfloat16=False)
    if wanted in ("auto", "cpu"):
        return Device("cpu", (0,), (free_bytes,), host.processor is not None and host.processor.has_bfloat16)
    return None


def _place(
    fit: ModelFit, checkpoint: Checkpoint, stored: Quantized | None, loading: Loading, device: Device
) -> Iterator[Problem]:
    """Choose precision and attention, and compare the needed memory with the free memory; yield the problems."""
    if (stored or loading.quantize) in ("8bit", "4bit") and packages.installed("bitsandbytes") is None:
        yield Problem("quantized weights need bitsandbytes", "pip install bitsandbytes", True)
    fit.device = device.name
    try:
        placement = choose_placement(
            fit.model, checkpoint, device, loading.quantize, loading.dtype, fit.frames, stored, fit.tokens
        )
    except LlvidError as error:
        yield Problem(str(error), error.hint, True)
        return
    if placement.note is not None:
        yield Problem(placement.note)
    can_flash = device.kind == "cuda" and placement.dtype != "float32" and packages.installed("flash-attn") is not None
    fit.attention = loading.attention
    if fit.attention == "auto":
        fit.attention = "flash_attention_2" if can_flash else "sdpa"
    elif fit.attention == "flash_attention_2" and not can_flash:
        text = "flash_attention_2 needs the package flash-attn, a CUDA device, and a 16-bit precision"
        yield Problem(text, "--attention auto", True)
    if placement.is_shared:
        fit.device = ", ".join(f"cuda:{number}" for number in placement.device.numbers)
    fit.dtype, fit.quantize, fit.need = placement.dtype, placement.quantize, placement.need
    free = sum(placement.device.free_bytes)
    fit.room_bytes = int(free) if math.isfinite(free) else None
    if device.kind == "cpu" and checkpoint.parameters.total > _SLOW_PARAMETERS:
        yield Problem("it runs on the CPU: an answer takes minutes", "fewer frames are faster: --frames 8")
