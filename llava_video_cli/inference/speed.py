"""What a device can do at most: the speed of copying memory, and of multiplying matrices."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

# More than any cache holds.
_COPIED_BYTES = {"cuda": 2**30, "cpu": 2**28}
_SIDE = {"cuda": 8192, "cpu": 1024}
_RUNS = 5


def copy_bytes_per_second(device: torch.device) -> float:
    """Return how many bytes a second a large copy reads and writes, both counted; the best of five."""
    source = torch.zeros(_COPIED_BYTES.get(device.type, 2**28), dtype=torch.uint8, device=device)
    target = torch.zeros_like(source)
    return 2 * source.numel() / _seconds(lambda: target.copy_(source), device)


def operations_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """Return how many multiplications and additions a second a large matrix product does; the best of five."""
    side = _SIDE.get(device.type, 2048)
    left, right = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(2))
    return 2 * side**3 / _seconds(lambda: left @ right, device)


def _seconds(call: Callable[[], object], device: torch.device) -> float:
    taken = []
    for _ in range(_RUNS + 1):
        _wait(device)
        began = time.perf_counter()
        call()
        _wait(device)
        taken.append(time.perf_counter() - began)
    return min(taken[1:])  # what others do on the machine only takes away


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
