"""Speed: what a device can do at most, how long an answer takes on a CPU, and how many cores gain something."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from ..checkpoint.config import Checkpoint
from .placement import Placement
from .weights import prepare_layers

# More than a processor's caches hold.
_COPIED_BYTES = {"cuda": 2**30, "cpu": 2**28}
_MATRIX_SIDE = {"cuda": 8192, "cpu": 1024}
_LARGE_PARAMETERS = 800_000_000  # with fewer, a CPU is quick enough without a warning
_ANSWER_TOKENS, _SHORT_SECONDS = 100, 15.0  # such an answer that takes no longer needs no warning
_SIDE, _ROWS = 2048, 512  # of the layer that is measured, and of a part of a prompt
_HEAD, _VISION_HEAD = 128, 64  # elements of an attention head: of the published language models, of CLIP
_COPIES = 32  # of that layer; caches don't hold them, even in 4 bits
_ONE_CORE_BYTES = 2**23  # of weights: with fewer, torch's threads take longer to wake than they save
_choosing = threading.Lock()  # another model's thread would take the one core for what the user chose


@dataclass(frozen=True)
class SpeedEstimate:
    """Seconds to the first word, and for each token after it."""

    first_seconds: float
    token_seconds: float


@dataclass(frozen=True)
class CpuRates:
    """Seconds on this CPU: for a weight and a row of many, for a weight and a single row, and of attention.

    `plain` weights are not quantized, `language` ones are held as the language model's. Attention counts each element
    of a query and each key: of all patches of a frame, of a prompt where a token sees those before it, and of a token.
    """

    plain_row: float
    language_row: float
    plain_token: float
    language_token: float
    vision_attention: float
    prompt_attention: float
    token_attention: float


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


def choose_threads(model: torch.nn.Module) -> None:
    """Have torch use one core for what this thread computes, if that is faster; threads that come later have all."""
    weights = list(model.parameters())
    is_large = weights[0].device.type != "cpu" or sum(weight.nbytes for weight in weights) >= _ONE_CORE_BYTES
    with _choosing:
        count = torch.get_num_threads()  # a large model's thread has its own from here on
        if is_large:
            return
        torch.set_num_threads(1)  # of this thread, and of all that have computed nothing yet
        restore = threading.Thread(target=torch.set_num_threads, args=(count,), daemon=True)
        restore.start()
        restore.join()


def slow_note(checkpoint: Checkpoint, placement: Placement, frames: int) -> str | None:
    """Return a note on how long a large checkpoint takes on this CPU; None if it is quick enough or on a GPU."""
    if placement.device.kind != "cpu" or checkpoint.parameters.total < _LARGE_PARAMETERS:
        return None
    speed = estimate_speed(checkpoint, measure_rates(placement), frames)
    if speed.first_seconds + _ANSWER_TOKENS * speed.token_seconds < _SHORT_SECONDS:
        return None
    return (
        f"on this CPU, {frames} frames take about {_span(speed.first_seconds)} to the first token, and each later one "
        f"about {_span(speed.token_seconds)}; fewer --frames take less time, a GPU much less"
    )


def estimate_speed(checkpoint: Checkpoint, rates: CpuRates, frames: int) -> SpeedEstimate:
    """Return the speed of an answer from its multiplications: those of linear layers, and those of attention.

    Only the vision tower, which is never quantized, and the language model count. Reading weights that don't stay in
    memory is left out.
    """
    parts, layers, hidden = checkpoint.parameters, checkpoint.layers, checkpoint.widths[0]
    width, inner = checkpoint.vision_widths
    vision_layers = parts.vision / (4 * width**2 + 2 * width * inner)
    tokens, patches = frames * checkpoint.rates.frame_tokens, checkpoint.rates.side**2
    vision = patches * parts.vision * rates.plain_row + vision_layers * width * patches**2 * rates.vision_attention
    prompt = tokens * parts.language_linear * rates.language_row + layers * hidden * tokens**2 * rates.prompt_attention
    token = parts.language_linear * rates.language_token + parts.language_rest / 2 * rates.plain_token
    return SpeedEstimate(frames * vision + prompt, token + layers * hidden * tokens * rates.token_attention)


def measure_rates(placement: Placement) -> CpuRates:
    """Measure the parts of a layer as they will be used: a quantized weight takes far longer than its bytes would say.

    A prompt's rows share a weight that the caches hold. A single row reads weights that no cache holds.
    """
    dtype = getattr(torch, placement.dtype)
    plain = torch.nn.Linear(_SIDE, _SIDE, bias=False, dtype=dtype)
    layer = plain if placement.quantize == "none" else _quantized(plain, placement)
    one, many = (torch.ones((rows, _SIDE), dtype=dtype) for rows in (1, _ROWS))
    with torch.inference_mode():
        return CpuRates(
            plain_row=_seconds(partial(plain, many), 3) / _ROWS / _SIDE**2,
            language_row=_seconds(partial(layer, many), 3) / _ROWS / _SIDE**2,
            plain_token=_cold_seconds(plain, one) / _SIDE**2,
            language_token=_cold_seconds(layer, one) / _SIDE**2,
            vision_attention=_attention(_VISION_HEAD, _ROWS, dtype),
            prompt_attention=_attention(_HEAD, _ROWS, dtype, is_causal=True),
            token_attention=_attention(_HEAD, 1, dtype),
        )


def _cold_seconds(layer: Any, row: torch.Tensor) -> float:
    layers = [deepcopy(layer) for _ in range(_COPIES)]
    return _seconds(lambda: [each(row) for each in layers], 3) / _COPIES


def _attention(head_width: int, queries: int, dtype: torch.dtype, is_causal: bool = False) -> float:
    """Return the seconds for each element of a query and each key; there are as many keys as a part of a prompt has."""
    heads = _SIDE // head_width
    query, key = (torch.ones((1, heads, rows, head_width), dtype=dtype) for rows in (queries, _ROWS))
    call = partial(torch.nn.functional.scaled_dot_product_attention, query, key, key, is_causal=is_causal)
    return _seconds(call, 3) / queries / _ROWS / _SIDE


def _quantized(plain: torch.nn.Linear, placement: Placement) -> Any:
    import bitsandbytes

    if placement.quantize == "4bit":
        layer = bitsandbytes.nn.Linear4bit(_SIDE, _SIDE, bias=False, compute_dtype=plain.weight.dtype, quant_type="nf4")
    else:
        layer = bitsandbytes.nn.Linear8bitLt(_SIDE, _SIDE, bias=False, has_fp16_weights=False)
    layer.load_state_dict(plain.state_dict())
    layer = layer.to("cpu").eval()  # bitsandbytes takes other kernels in training
    prepare_layers(layer)
    return layer


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
