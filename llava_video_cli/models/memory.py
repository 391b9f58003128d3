"""Memory of the device that a model runs on: what is free, what an answer takes, what a run took at most."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

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
    """Whether an error of torch's says that memory ran out; on a CPU it is a plain RuntimeError."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


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
        with open("/proc/meminfo", encoding="ascii") as lines:  # noqa: PTH123 - a file of the kernel's
            return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        pass
    try:
        return float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (ValueError, OSError, AttributeError):
        return float("inf")
