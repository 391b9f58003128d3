"""The installed packages that llvid needs: their versions, and whether they fit each other. Nothing is imported."""

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
# Those whose own needs are looked at too: one that is too old for the other is what breaks most often.
_CHECKED = ("torch", "torchvision", "transformers", "accelerate", "bitsandbytes", "av", "huggingface-hub", "tokenizers")


@dataclass(frozen=True)
class Misfit:
    """A package that is absent or has a version that doesn't fit; `mend` is the command that puts it right."""

    text: str
    mend: str


def versions() -> dict[str, str | None]:
    """Return the versions of what llvid needs itself, None for what is absent."""
    return {requirement.name: _version(requirement.name) for requirement in _needs(OURS)}


def misfits() -> list[Misfit]:
    """Return what doesn't fit, by what the packages themselves say that they need."""
    found = []
    for owner in (OURS, *_CHECKED):
        for need in _needs(owner):
            got = _version(need.name)
            if got is not None and need.specifier.contains(got, prereleases=True):
                continue
            if got is None and owner != OURS:
                continue  # an optional part, or one that came some other way than by pip
            wants = f"{need.name}{need.specifier}"
            by = "llvid" if owner == OURS else f"{owner} {_version(owner)}"
            text = f"{by} needs {wants}, " + (f"{got} is installed" if got else "which isn't installed")
            found.append(Misfit(text, f"pip install '{wants}'"))
    if broken := _torchvision_without_cuda():
        found.append(broken)
    return found


def is_installed(name: str) -> bool:
    """Return whether a package is there."""
    return _version(name) is not None


def _needs(name: str) -> Iterator[Requirement]:
    """Yield what a package needs here, without its extras."""
    from packaging.requirements import Requirement

    try:
        lines = requires(name) or []
    except PackageNotFoundError:
        return
    for line in lines:
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            yield requirement


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _torchvision_without_cuda() -> Misfit | None:
    """Find a torchvision built for CUDA beside a torch that isn't: it fails with "torchvision::nms does not exist"."""
    torch, vision = _folder("torch"), _folder("torchvision")
    if torch is None or vision is None or any((torch / "lib").glob("*torch_cuda.*")):
        return None
    if any(b"libtorch_cuda" in path.read_bytes() for path in vision.glob("_C*.so")):
        return Misfit(
            "torchvision is built for CUDA and torch is not: torchvision can't be imported",
            "pip install --force-reinstall torch torchvision --index-url https://download.pytorch.org/whl/cpu",
        )
    return None


def _folder(module: str) -> Path | None:
    spec = find_spec(module)
    return Path(spec.origin).parent if spec is not None and spec.origin else None
