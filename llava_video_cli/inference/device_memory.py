"""Memory of the device that a model runs on: what is free, what an answer takes, what a run took at most."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from ..checkpoint.config import TEXT_TOKENS
from ..system import machine

# What is said by torch's allocator on a CPU (on Windows: "not enough"), the system, C++, a thread's start, and oneDNN.
_OUT_OF_MEMORY = (
    "can't allocate memory", "not enough memory", "Cannot allocate memory", "bad_alloc", "can't start new thread",
    "could not create a primitive", "could not create a memory",
)  # fmt: skip
# glibc's malloc.h; the largest is what its own rule comes to at most.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE_BYTES, _LARGEST_BYTES = 2**17, 2**25
# What may be filled: on a CPU, the rest of the machine and the frames that wait need theirs.
_SHARE = {"cuda": 0.9, "cpu": 0.5, "mps": 0.5}
# Tensors of a layer's width and of its MLP's width that stand side by side while a prompt is computed.
_HIDDEN_COPIES, _MLP_COPIES = 6, 3


def free_bytes(device: torch.device) -> float:
    """Return the bytes that may be filled on a device; infinity where the system doesn't tell."""
    return _SHARE.get(device.type, 0.5) * _unused_bytes(device)


def answer_bytes(model: Any, tokens: int) -> int:
    """Return about what one answer of a batch takes: the KV cache of all its tokens, and the widest layer's tensors.

    The cache has, for each token and layer, a key and a value of every KV head.
    """
    text = model.config.get_text_config()
    heads = text.num_attention_heads
    head_width = getattr(text, "head_dim", None) or text.hidden_size // heads
    width = model.get_input_embeddings().weight.element_size()
    cache = 2 * text.num_hidden_layers * (getattr(text, "num_key_value_heads", None) or heads) * head_width
    layer = _HIDDEN_COPIES * text.hidden_size + _MLP_COPIES * text.intermediate_size
    return int(tokens * (cache + layer) * width)


def what_fits(model: Any, *, frame_tokens: int, frames: int, answer_tokens: int, can_quantize: bool) -> str:
    """Return what would fit the memory that is free now, where an answer on so many frames didn't."""
    device = model.get_input_embeddings().weight.device
    tokens = min(free_bytes(device) / answer_bytes(model, 1), 2.0**31)
    fit = int(tokens - TEXT_TOKENS - answer_tokens) // frame_tokens
    ways = [f"--frames {fit}" if 0 < fit < frames else "fewer --frames", "a smaller --max-new-tokens"]
    ways += ["--quantize 4bit"] * can_quantize
    return f"{', '.join(ways[:-1])} or {ways[-1]}; or close what else takes memory"


@contextmanager
def own_pages() -> Iterator[None]:
    """Let large blocks have pages of their own, which go back when they are freed; for the GNU C library.

    While weights are converted one after the other, what is kept would else lie in the holes of what is freed: of a
    model of 1 B parameters, 400 MB of holes stay for ever, beside 300 MB of 4-bit weights.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        yield
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
    try:
        yield
    finally:  # as the library's own rule has it after blocks of that size: fresh pages cost time at each forward
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_BYTES)
        mallopt(_M_TRIM_THRESHOLD, 2 * _LARGEST_BYTES)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: on a CPU, torch's is a plain RuntimeError."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(words in str(error) for words in _OUT_OF_MEMORY)


def give_back(device: torch.device) -> None:
    """Hand what torch keeps for later back to the device."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def reset_peak(device: torch.device) -> None:
    """Count the peak from here on, where the device counts it."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: torch.device) -> int:
    """Return the accelerator's peak since `reset_peak`, or, without one, the process's peak resident size."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    if sys.platform == "win32":  # the standard library can't tell there
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _unused_bytes(device: torch.device) -> float:
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # what torch has taken from the device and not given out counts too
        return float(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    try:
        return float(machine.memory().free_bytes)
    except (OSError, ValueError, KeyError):  # the system doesn't tell
        return float("inf")
