"""What --verbose tells: what was decided, and why."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from ..conversation import Answer
from ..model import Model
from .options import ModelFlags, PresetFlag
from .settings import Settings


def chosen(settings: Settings, preset: PresetFlag, model: ModelFlags) -> Iterator[str]:
    """Yield where the preset and the model come from, and how frames are chosen and answers generated."""
    used = settings.preset
    otherwise = "goes with -m demo" if used.name == "demo" else "without -p"
    yield f"preset {used.name}: {_source(preset.preset, 'LLVID_PRESET', '-p', otherwise)}, {used.path}"
    if settings.remote is not None:
        yield f"model {settings.model}: of the server {settings.remote.settings['server']}"
    else:
        yield f"model {settings.model}: {_source(model.model, 'LLVID_MODEL', '-m', 'the preset')}"
    yield f"sampling: {_pairs(used.sampling.values())}"
    yield f"generation: {_pairs(vars(used.generation))}"


def loaded(model: Model, settings: Settings) -> Iterator[str]:
    """Yield how the model was loaded."""
    reasons: Mapping[str, str] = getattr(model, "reasons", {})
    for name, value in model.settings.items():
        if name in reasons:
            is_asked = getattr(settings.loading, name) != "auto"
            yield f"{name} {value}: {'as asked' if is_asked else reasons[name]}"
    rest = {name: value for name, value in model.settings.items() if name not in ("model", *reasons)}
    yield f"loaded: {_pairs(rest)}"


def read(media: Mapping[str, Any]) -> str:
    """Return which frames of a video were read; `media` is what `media_values` says of it."""
    if (frames := media["frames"]) is None:
        return f"{media['path']}: a picture"
    times = ", ".join(f"{seconds:g}" for seconds in frames["times_seconds"])
    return f"{media['path']}: {frames['count']} frames of {frames['duration_seconds']:g} s, at {times}"


def answered(answer: Answer) -> str:
    """Return what an answer took, and why it ended."""
    usage = answer.usage
    return (
        f"prompt {usage.prompt_tokens:,} tokens ({usage.cached_tokens:,} reused), answer {usage.generated_tokens:,}; "
        f"first token after {usage.first_token_seconds:.2f} s, {usage.total_seconds:.2f} s in all; "
        f"ended by {answer.finish_reason}"
    )


def _source(value: str | None, variable: str, option: str, otherwise: str) -> str:
    if value is None:
        return otherwise
    return variable if os.environ.get(variable) == value else option


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value not in ("", (), None))
