"""The packages that llvid needs: their versions, and whether they work together. Nothing is imported."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.requirements import Requirement

OURS = "llava-video-cli"
# Their own requirements are checked too: the most frequent fault is a package that is too old for another one.
_CHECKED = ("torch", "torchvision", "transformers", "accelerate", "bitsandbytes", "av", "huggingface-hub", "tokenizers")


@dataclass(frozen=True)
class Problem:
    """Something that is wrong. `hint` is the command or option that helps; with `stops`, the model can't run."""

    text: str
    hint: str | None = None
    stops: bool = False


def versions() -> dict[str, str | None]:
    """Return the versions of the packages that llvid requires, None for one that is not installed."""
    return {requirement.name: installed(requirement.name) for requirement in _requirements(OURS)}


def problems() -> list[Problem]:
    """Return the requirements of llvid and of its main packages that are not met."""
    unmet = []
    for owner in (OURS, *_CHECKED):
        for requirement in _requirements(owner):
            got = installed(requirement.name)
            if got is not None and requirement.specifier.contains(got, prereleases=True):
                continue
            if got is None and owner != OURS:
                continue  # an optional part, or not installed by pip
            wanted = f"{requirement.name}{requirement.specifier}"
            by = "llvid" if owner == OURS else f"{owner} {installed(owner)}"
            text = f"{by} needs {wanted}, " + (f"{got} is installed" if got else "which isn't installed")
            unmet.append(Problem(text, f"pip install '{wanted}'", stops=True))
    if problem := _torchvision_without_cuda():
        unmet.append(problem)
    return unmet


def installed(name: str) -> str | None:
    """Return the version of a package, None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _requirements(name: str) -> Iterator[Requirement]:
    """Yield the requirements of a package on this machine, without its extras."""
    from packaging.requirements import Requirement

    try:
        lines = requires(name) or []
    except PackageNotFoundError:
        return
    for line in lines:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement


def _torchvision_without_cuda() -> Problem | None:
    """Find a torchvision for CUDA with a torch for the CPU: it fails with "torchvision::nms does not exist"."""
    torch, vision = _folder("torch"), _folder("torchvision")
    if torch is None or vision is None or any((torch / "lib").glob("*torch_cuda.*")):
        return None
    if any(b"libtorch_cuda" in path.read_bytes() for path in vision.glob("_C*.so")):
        return Problem(
            "torchvision is built for CUDA and torch is not: torchvision can't be imported",
            "pip install --force-reinstall torch torchvision --index-url https://download.pytorch.org/whl/cpu",
            stops=True,
        )
    return None


def _folder(module: str) -> Path | None:
    spec = find_spec(module)
    return Path(spec.origin).parent if spec is not None and spec.origin else None
