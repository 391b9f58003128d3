"""A loaded checkpoint with parts of the test's own, handed in where the real one would be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from llava_video_cli.models.loading import Loaded


def wrapped(loaded: Loaded, call: Callable[..., Any] | None = None, **methods: Callable[..., Any]) -> Loaded:
    """Return a checkpoint with methods of the test's own, which get the real model first.

    `call` takes the place of the model's forward.
    """
    real = loaded.model

    class Wrapped:
        def __getattr__(self, name: str) -> Any:
            return partial(methods[name], real) if name in methods else getattr(real, name)

        def __call__(self, **inputs: Any) -> Any:
            return call(real, **inputs) if call else real(**inputs)

    return replace(loaded, model=Wrapped())
