"""Memory of the device that a model runs on: what is free, what would fit, the peak of a run."""

from __future__ import annotations

import ctypes
import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch

from ..checkpoint.config import Checkpoint
from ..checkpoint.size import BATCH_SHARE, answer_bytes
from ..conversation import Request
from ..prompt.budget import SHORT_TEXT_TOKENS
from .placement import unused_bytes

# What errors say when memory runs out, in lower case.
_OUT_OF_MEMORY = (
    "out of memory",  # CUDA, HIP, bitsandbytes ("Error out of memory"), Apple ("MPS backend out of memory"), Triton
    "alloc_failed", "allocation_failed",  # with CUBLAS_STATUS_ or CUDNN_STATUS_ before it
    "cublas_status_not_initialized",  # there is no room for cuBLAS' workspace
    "cudaerrormemoryallocation", "failed to allocate", "unable to allocate", "invalid buffer size",  # NumPy, Metal
    "can't allocate memory", "not enough memory",  # torch's allocator on a CPU, on Windows
    "cannot allocate memory", "bad_alloc", "bad allocation",  # the system, C++
    "can't start new thread",
    "could not create a primitive", "could not create a memory",  # oneDNN
)  # fmt: skip
# From glibc's malloc.h; `_LARGEST_BYTES` is the most that its own rule sets.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE_BYTES, _LARGEST_BYTES = 2**17, 2**25


def free_bytes(device: torch.device) -> float:
    """Return the bytes that a batch or a kept cache may fill on a device; infinity where the system doesn't tell."""
    return BATCH_SHARE.get(device.type, 0.5) * unused_bytes(device.type, device.index)


def what_fits(
    device: torch.device, checkpoint: Checkpoint, dtype: str, requests: Sequence[Request], *, can_quantize: bool
) -> str:
    """Return what would fit the memory that is free now, where the answers to requests didn't."""
    tokens = int(min(free_bytes(device) / answer_bytes(checkpoint, dtype, 1), 2.0**31))
    answer_tokens = max(request.generation.max_new_tokens for request in requests)
    fit = (tokens - SHORT_TEXT_TOKENS - answer_tokens) // checkpoint.rates.frame_tokens
    frames = max((medium.frame_count for request in requests for medium in request.media), default=0)
    ways = [f"--frames {fit}" if 0 < fit < frames else "fewer --frames", "a smaller --max-new-tokens"]
    ways += ["--quantize 4bit"] * can_quantize
    return f"{', '.join(ways[:-1])} or {ways[-1]}; or close other programs that use memory"


@contextmanager
def own_pages() -> Iterator[None]:
    """Give large blocks pages of their own, which the system gets back when they are freed; for the GNU C library.

    Weights are converted one after the other. Without this, what is kept is allocated between what is freed, and the
    holes stay: for a model of 1 B parameters 400 MB, beside 300 MB of 4-bit weights.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        yield
        return
    mallopt(_M_MMAP_THRESHOLD, _LARGE_BYTES)
    try:
        yield
    finally:  # where the library's own rule ends after such blocks: fresh pages would cost time in each forward pass
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_BYTES)
        mallopt(_M_TRIM_THRESHOLD, 2 * _LARGEST_BYTES)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that memory ran out: many libraries raise a plain RuntimeError."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return any(words in text for words in _OUT_OF_MEMORY)


def give_back(device: torch.device) -> None:
    """Give the memory of what failed, and what torch keeps for later use, back to the device."""
    gc.collect()  # an error that was handed from thread to thread is part of a cycle, with the tensors of its frames
    if device.type == "cuda":
        with suppress(RuntimeError):  # after some errors a card is of no more use to the process
            torch.cuda.empty_cache()


def reset_peak(device: torch.device) -> None:
    """Start counting the peak anew, where the device counts it."""
    if device.type == "cuda":
        for number in range(torch.cuda.device_count()):  # several may share a model
            torch.cuda.reset_peak_memory_stats(number)


def peak_bytes(device: torch.device) -> int:
    """Return the peak since `reset_peak`: the sum of all cards, or, without one, the process's peak resident size."""
    if device.type == "cuda":
        return sum(torch.cuda.max_memory_allocated(number) for number in range(torch.cuda.device_count()))
    if sys.platform == "win32":  # the standard library can't say there
        return 0
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def copy_to_host(values: torch.Tensor) -> Callable[[], list[Any]]:
    """Begin to copy a row of numbers to the host; the call returned waits for them, and for no later work."""
    if values.device.type != "cuda":
        return values.tolist
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    is_copied = torch.cuda.Event()
    is_copied.record(torch.cuda.current_stream(values.device))

    def wait() -> list[Any]:
        is_copied.synchronize()
        return host.tolist()

    return wait
