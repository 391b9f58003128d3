"""Parts of the test's own, handed in where the real ones would be: a loaded checkpoint, and what captures a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from llava_video_cli.inference.cuda_graph import Capture
from llava_video_cli.inference.loader import Loaded


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


class Replayed:
    """Counts captures and their replays; by itself it captures nothing: a replay does the step again."""

    def __init__(self, capture: Capture = lambda do: do) -> None:
        self._capture = capture
        self.captures = self.replays = 0

    def __call__(self, do: Callable[[], None]) -> Callable[[], None]:
        self.captures += 1
        captured = self._capture(do)

        def replay() -> None:
            self.replays += 1
            captured()

        return replay
