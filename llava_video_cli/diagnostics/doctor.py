"""What this machine has, what a model needs of it and would get, and what to do about each problem."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from platform import platform, python_version
from typing import TypeVar

from ..checkpoint.hub import CachedCheckpoint, cache_folder, cached_checkpoints
from ..errors import LlvidError, first_line
from ..system import machine
from . import packages
from .model_check import Choice, Host, Problem, Question, choose

Result = TypeVar("Result")
# What people's videos are made with; PyAV's own wheels decode all of them.
CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mpeg2video", "prores", "mjpeg")
_PYAV = "pip install --force-reinstall av"
_IMPORTED = ("torch", "torchvision", "transformers", "bitsandbytes", "av")


@dataclass
class Report:
    """All that was found out. What could not be is None or empty, and stands among the problems."""

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
    model: Choice | None = None
    problems: list[Problem] = field(default_factory=list)

    @property
    def can_run(self) -> bool:
        """Whether the model runs here, as far as can be told."""
        return not any(problem.stops for problem in self.problems)


def examine(question: Question, *, imports: bool = False) -> Report:
    """Return the report; never raises. With `imports`, the heavy packages are imported too, which takes seconds."""
    report = Report(python=python_version())
    report.system = _try(report, "the system", platform) or ""
    report.llvid = _try(report, "llvid's version", lambda: version(packages.OURS))
    report.packages = _try(report, "the packages' versions", packages.versions) or {}
    for misfit in _try(report, "what the packages need", packages.misfits) or ():
        report.problems.append(Problem(misfit.text, misfit.mend, stops=True))
    for module in _IMPORTED if imports else ():
        _try(report, f"importing {module}", partial(machine.check_import, module), stops=True, mend=_again(module))
    report.processor = _try(report, "the processor", machine.processor)
    report.memory = _try(report, "the memory", machine.memory)
    report.accelerators = _try(
        report, "asking torch for graphics cards", machine.accelerators, stops=True, mend=_again("torch")
    )
    _check_cards(report)
    report.codecs = _try(report, "asking PyAV for codecs", _codecs, stops=True, mend=_PYAV) or {}
    report.problems += [
        Problem(f"PyAV can't decode {name} here", _PYAV) for name, is_there in report.codecs.items() if not is_there
    ]
    _look_at_cache(report)
    has_bfloat16 = report.processor is not None and report.processor.has_bfloat16
    host = Host(report.memory, report.accelerators, report.cache_free_bytes, has_bfloat16)
    chosen = _try(report, f"examining {question.model}", lambda: choose(question, host), stops=True)
    if chosen is not None:
        report.model = chosen[0]
        report.problems += chosen[1]
    return report


def _try(
    report: Report, what: str, probe: Callable[[], Result], *, stops: bool = False, mend: str | None = None
) -> Result | None:
    """Return what a probe finds out; if it fails, the reason goes among the problems."""
    try:
        return probe()
    except LlvidError as error:
        report.problems.append(Problem(str(error), error.hint, stops))
    except subprocess.TimeoutExpired as error:
        report.problems.append(Problem(f"{what} took more than {error.timeout:g} seconds", mend, stops))
    except Exception as error:  # noqa: BLE001 - whatever is broken, the rest of the report is wanted
        reason = first_line(error)
        report.problems.append(Problem(f"{what} failed: {reason}", mend, stops))
    return None


def _again(module: str) -> str:
    names = "torch torchvision" if module.startswith("torch") else module
    return f"pip install --force-reinstall {names}"


def _codecs() -> dict[str, bool]:
    import av

    found = {}
    for name in CODECS:
        try:
            found[name] = bool(av.Codec(name, "r"))
        except ValueError:  # PyAV's UnknownCodecError
            found[name] = False
    return found


def _check_cards(report: Report) -> None:
    seen = report.accelerators
    if seen is None or not seen.has_nvidia or seen.cards:
        return
    if seen.torch_built_for:
        text = f"there is an NVIDIA card, but torch, which is built for CUDA {seen.torch_built_for}, can't use it"
        mend = "nvidia-smi shows the driver's CUDA: update the driver, or take a torch from https://pytorch.org for it"
    else:
        text, mend = "there is an NVIDIA card, but this torch is built for the CPU only", _again("torch")
    report.problems.append(Problem(text, mend))


def _look_at_cache(report: Report) -> None:
    cache = _try(report, "looking for the hub's cache", cache_folder)
    if cache is None:
        return
    report.cache = str(cache)
    report.cache_free_bytes = _try(report, "asking for room on the disk", lambda: shutil.disk_usage(_there(cache)).free)
    report.checkpoints = _try(report, "looking through the hub's cache", lambda: cached_checkpoints(cache)) or []
    report.problems += [
        Problem(
            f"{each.model} at {each.commit[:8]} isn't whole: it {each.lacks}",
            f"llvid pull {each.model} --revision {each.commit}",
        )
        for each in report.checkpoints
        if each.lacks
    ]


def _there(folder: Path) -> Path:
    """Return a folder, or the nearest one above it that is there."""
    return next(each for each in (folder, *folder.parents) if each.exists())
