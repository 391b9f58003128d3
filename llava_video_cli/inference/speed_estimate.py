"""How long an answer takes on a CPU: measured on one layer, told before minutes of waiting."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..checkpoint.config import Checkpoint
from .placement import Choice

_LARGE_PARAMETERS = 800_000_000  # from here on a CPU takes long enough for a warning
_ANSWER_TOKENS, _SHORT_SECONDS = 100, 15.0  # an answer that takes no longer needs none
_SIDE, _ROWS = 2048, 128  # of the layer that is measured, and of a piece of a prompt


@dataclass(frozen=True)
class Pace:
    """Seconds to the first word, and for each token after it."""

    first_seconds: float
    token_seconds: float


def note(checkpoint: Checkpoint, choice: Choice, frames: int) -> str | None:
    """Return a line about how long a large checkpoint takes on this CPU, None where nobody needs it."""
    if choice.device.kind != "cpu" or checkpoint.parameters.total < _LARGE_PARAMETERS:
        return None
    pace = measured(checkpoint, choice, frames)
    if pace.first_seconds + _ANSWER_TOKENS * pace.token_seconds < _SHORT_SECONDS:
        return None
    return (
        f"on this CPU, {frames} frames take about {_span(pace.first_seconds)} to the first word, and each token then "
        f"about {_span(pace.token_seconds)}; fewer --frames take less, a GPU far less"
    )


def measured(checkpoint: Checkpoint, choice: Choice, frames: int) -> Pace:
    """Return the pace by the seconds that a linear layer takes for one row and for many, on as many cores as there are.

    A quantized layer takes far more than its bytes' share: it is measured as it will be used. The layers of the
    language model take that as often as their weights hold such a layer's, those of the vision tower, which are never
    quantized, likewise; attention is left out, and so is reading weights that don't stay in memory.
    """
    dtype = getattr(torch, choice.dtype)
    one, many = (torch.ones((rows, _SIDE), dtype=dtype) for rows in (1, _ROWS))
    plain = torch.nn.Linear(_SIDE, _SIDE, bias=False, dtype=dtype)
    layer = plain if choice.quantize == "none" else _quantized(plain, choice)
    parts, size = checkpoint.parameters, _SIDE**2
    language, vision, head = parts.language_linear / size, parts.vision / size, parts.language_rest / 2 / size
    tokens, patches = frames * checkpoint.frame_tokens, frames * checkpoint.frame_side**2
    with torch.inference_mode():
        prompt = _seconds(lambda: layer(many)) * language * tokens + _seconds(lambda: plain(many)) * vision * patches
        token = _seconds(lambda: layer(one)) * language + _seconds(lambda: plain(one)) * head
    return Pace(prompt / _ROWS, token)


def _quantized(plain: torch.nn.Linear, choice: Choice) -> Any:
    import bitsandbytes

    if choice.quantize == "4bit":
        layer = bitsandbytes.nn.Linear4bit(_SIDE, _SIDE, bias=False, compute_dtype=plain.weight.dtype, quant_type="nf4")
    else:
        layer = bitsandbytes.nn.Linear8bitLt(_SIDE, _SIDE, bias=False, has_fp16_weights=False)
    layer.load_state_dict(plain.state_dict())
    return layer.to("cpu")


def _seconds(call: Callable[[], object]) -> float:
    """Return the least of three, behind one that warms up: other work only adds."""
    taken = []
    for _ in range(4):
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return min(taken[1:])


def _span(seconds: float) -> str:
    if seconds < 0.95:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 9.5:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
