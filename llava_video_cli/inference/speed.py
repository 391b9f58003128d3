"""Speed: what a device can do at most, and how long an answer takes on a CPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..checkpoint.config import Checkpoint
from .placement import Placement

# More than a processor's caches hold.
_COPIED_BYTES = {"cuda": 2**30, "cpu": 2**28}
_MATRIX_SIDE = {"cuda": 8192, "cpu": 1024}
_LARGE_PARAMETERS = 800_000_000  # with fewer, a CPU is quick enough without a warning
_ANSWER_TOKENS, _SHORT_SECONDS = 100, 15.0  # such an answer that takes no longer needs no warning
_SIDE, _ROWS = 2048, 128  # of the layer that is measured, and of a part of a prompt


@dataclass(frozen=True)
class SpeedEstimate:
    """Seconds to the first word, and for each token after it."""

    first_seconds: float
    token_seconds: float


def copy_bytes_per_second(device: torch.device) -> float:
    """Return how many bytes a second a large copy reads and writes, both counted; the best of five."""
    source = torch.zeros(_COPIED_BYTES.get(device.type, 2**28), dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return 2 * source.numel() / _seconds(lambda: target.copy_(source), 5, device)


def operations_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """Return how many multiplications and additions a second a large matrix product does; the best of five."""
    side = _MATRIX_SIDE.get(device.type, 2048)
    left, right = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(2))
    return 2 * side**3 / _seconds(lambda: left @ right, 5, device)


def slow_note(checkpoint: Checkpoint, placement: Placement, frames: int) -> str | None:
    """Return a note on how long a large checkpoint takes on this CPU; None if it is quick enough or on a GPU."""
    if placement.device.kind != "cpu" or checkpoint.parameters.total < _LARGE_PARAMETERS:
        return None
    speed = estimate_speed(checkpoint, placement, frames)
    if speed.first_seconds + _ANSWER_TOKENS * speed.token_seconds < _SHORT_SECONDS:
        return None
    return (
        f"on this CPU, {frames} frames take about {_span(speed.first_seconds)} to the first token, and each later one "
        f"about {_span(speed.token_seconds)}; fewer --frames take less time, a GPU much less"
    )


def estimate_speed(checkpoint: Checkpoint, placement: Placement, frames: int) -> SpeedEstimate:
    """Return the speed of an answer, from the seconds that one linear layer takes for one row and for many.

    The layer is measured as it will be used: a quantized one takes far longer than its bytes would say. The result is
    scaled by how many such layers the weights of the language model, and of the vision tower, which is never quantized,
    are worth. Attention is left out, and so is reading weights that don't stay in memory.
    """
    dtype = getattr(torch, placement.dtype)
    one, many = (torch.ones((rows, _SIDE), dtype=dtype) for rows in (1, _ROWS))
    plain = torch.nn.Linear(_SIDE, _SIDE, bias=False, dtype=dtype)
    layer = plain if placement.quantize == "none" else _quantized(plain, placement)
    parts, size = checkpoint.parameters, _SIDE**2
    language, vision, head = parts.language_linear / size, parts.vision / size, parts.language_rest / 2 / size
    language_rows, vision_rows = frames * checkpoint.rates.frame_tokens, frames * checkpoint.rates.side**2
    with torch.inference_mode():
        prompt = _seconds(lambda: layer(many), 3) * language * language_rows
        prompt += _seconds(lambda: plain(many), 3) * vision * vision_rows
        token = _seconds(lambda: layer(one), 3) * language + _seconds(lambda: plain(one), 3) * head
    return SpeedEstimate(prompt / _ROWS, token)


def _quantized(plain: torch.nn.Linear, placement: Placement) -> Any:
    import bitsandbytes

    if placement.quantize == "4bit":
        layer = bitsandbytes.nn.Linear4bit(_SIDE, _SIDE, bias=False, compute_dtype=plain.weight.dtype, quant_type="nf4")
    else:
        layer = bitsandbytes.nn.Linear8bitLt(_SIDE, _SIDE, bias=False, has_fp16_weights=False)
    layer.load_state_dict(plain.state_dict())
    return layer.to("cpu")


def _seconds(call: Callable[[], object], runs: int, device: torch.device | None = None) -> float:
    """Return the least of so many runs, after one that warms up: other work on the machine only adds."""
    seconds = []
    for _ in range(runs + 1):
        _wait(device)
        began = time.perf_counter()
        call()
        _wait(device)
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


def _wait(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device is not None and device.type == "mps":
        torch.mps.synchronize()


def _span(seconds: float) -> str:
    if seconds < 0.95:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 9.5:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
