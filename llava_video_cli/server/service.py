"""All that a server answers with, put together."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

from ..conversation import Request, Turn
from ..model import Model
from ..preset import Preset
from ..video import Frames, VideoInfo
from ..video.sampling import Sampling
from .auth import Guard
from .media import Places
from .media_cache import Shelf
from .metrics import Metrics
from .scheduler import Desk


@dataclass(frozen=True)
class Seen:
    """A request that was answered, for a log."""

    client: str
    method: str
    path: str
    status: int
    seconds: float


@dataclass(frozen=True)
class Service:
    """What answers are made with: `preset` has what a request leaves out, `facts` is what `/v1/models` says."""

    model: Model
    preset: Preset
    guard: Guard
    shelf: Shelf
    desk: Desk
    metrics: Metrics
    facts: Mapping[str, Any]
    log: Callable[[Seen], None] | None = None


def open_service(
    model: Model,
    preset: Preset,
    guard: Guard | None = None,
    places: Places | None = None,
    *,
    express: Model | None = None,
    most_inside: int = 256,
    most_together: int | None = None,
    log: Callable[[Seen], None] | None = None,
) -> Service:
    """Return a service around a loaded model; its threads begin.

    `express` is another model of the same weights, for short answers beside a long one.
    """
    metrics = Metrics()
    return Service(
        model,
        preset,
        guard or Guard(),
        Shelf(places or Places(), model.shrink),
        Desk(
            model,
            metrics,
            most_inside,
            most_together,
            express=express,
            short_tokens=preset.generation.max_new_tokens,
        ),
        metrics,
        _facts(model),
        log,
    )


def _facts(model: Model) -> dict[str, Any]:
    import numpy as np

    frame = Frames(np.zeros((1, 1, 1, 3), np.uint8), (0.0,), VideoInfo("", 1.0, 1, 1, None, "", 0), Sampling(1))
    budget = model.budget(Request((Turn("user", "?", (frame,)),)))
    return {
        "id": model.name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "llvid",
        "max_model_len": budget.context_tokens,
        "llvid": {
            "version": version("llava-video-cli"),
            "settings": model.settings,
            "frame_tokens": budget.media_tokens[0],
        },
    }
