"""What `--json` writes: an answer with all that is needed to trust it and to get it again."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ..conversation import Answer, Media
from ..image import Picture
from ..models import Model
from .options import Settings

_LIBRARIES = ("llava-video-cli", "torch", "torchvision", "transformers", "av", "pillow", "bitsandbytes")


def ask_record(
    paths: Sequence[str], contents: Sequence[Media], question: str, answer: Answer, model: Model, settings: Settings
) -> dict[str, Any]:
    """Return the record of one answered question, as JSON values."""
    first, *others = (media_record(path, medium) for path, medium in zip(paths, contents, strict=True))
    return {
        "video": first["path"],
        "question": question,
        "answer": answer.text,
        "model": model.name,
        "finish_reason": answer.finish_reason,
        "frames": first["frames"],
        **({"with": others} if others else {}),
        "notes": [line for medium in (first, *others) for line in medium["notes"]],
        "usage": asdict(answer.usage),
        "settings": settings_record(model, settings),
    }


def media_record(path: str, medium: Media) -> dict[str, Any]:
    """Return a medium's path, its frames (None for a picture) and its notes."""
    if isinstance(medium, Picture):
        return {"path": path, "frames": None, "notes": []}
    frames = {
        "count": len(medium.images),
        "times_seconds": list(medium.times_seconds),
        "sampling": medium.sampling.mode,
        "duration_seconds": medium.info.duration_seconds,
    }
    return {"path": path, "frames": frames, "notes": list(medium.notes)}


def settings_record(model: Model, settings: Settings) -> dict[str, Any]:
    """Return everything needed to repeat a run, library versions included."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {"python": platform.python_version()}
    for library in _LIBRARIES:
        try:
            versions[library] = version(library)
        except PackageNotFoundError:
            continue
    preset = settings.preset
    return {
        "preset": preset.name,
        "system": preset.system,
        "sampling": asdict(preset.sampling),
        "generation": asdict(preset.generation),
        **model.settings,
        "versions": versions,
    }
