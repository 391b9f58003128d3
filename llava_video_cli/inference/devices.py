"""What a model can run on: the device, its memory, and the precision that it is quick with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..errors import ModelError, UsageError
from ..system.machine import may_have_accelerator, memory, processor

Kind = Literal["cpu", "cuda", "mps"]


@dataclass(frozen=True)
class Device:
    """A device, or several CUDA devices that may share a model.

    `numbers` and `free_bytes` go together, the one that is taken first stands first. `bfloat16` tells whether the
    device multiplies in it natively.
    """

    kind: Kind
    numbers: tuple[int, ...]
    free_bytes: tuple[float, ...]
    bfloat16: bool

    @property
    def name(self) -> str:
        """The name of the first one, as torch has it."""
        return f"cuda:{self.numbers[0]}" if self.kind == "cuda" else self.kind


def find_device(device: str) -> Device:
    """Return the device asked for; `auto` takes all CUDA devices, or Apple's, or the CPU.

    Imports torch, but for a CPU. Raises `UsageError` for what is no device, `ModelError` for one that isn't there.
    """
    kind, _, number = device.partition(":")
    if kind not in ("auto", "cpu", "cuda", "mps") or (number and (kind != "cuda" or not number.isdecimal())):
        raise UsageError(f"no device is called {device!r}", "auto, cpu, cuda, cuda:N or mps")
    if kind == "cpu" or (kind == "auto" and is_cpu_only()):
        return _cpu()
    import torch

    count = torch.cuda.device_count() if kind != "mps" and torch.cuda.is_available() else 0
    if count and int(number or 0) < count:
        return _cuda([int(number)] if number else list(range(count)))
    if kind in ("auto", "mps") and torch.backends.mps.is_available():
        return Device("mps", (0,), (float(torch.mps.recommended_max_memory()),), bfloat16=False)
    if kind == "auto":
        return _cpu()
    raise ModelError(f"there is no device {device} here", "`--device auto` takes what is there")


def is_cpu_only() -> bool:
    """Whether this machine surely has no device but the CPU, found out without torch."""
    return not may_have_accelerator()


def _cpu() -> Device:
    try:
        free = float(memory().free_bytes)
    except (OSError, ValueError, KeyError):  # the system doesn't tell
        free = float("inf")
    return Device("cpu", (0,), (free,), processor().has_bfloat16)


def _cuda(numbers: list[int]) -> Device:
    import torch

    free = {}
    for number in numbers:
        taken, given = torch.cuda.memory_reserved(number), torch.cuda.memory_allocated(number)
        free[number] = float(torch.cuda.mem_get_info(number)[0] + taken - given)
    numbers = sorted(numbers, key=lambda number: -free[number])  # stable: of equal ones the first stays the first
    native = all(torch.cuda.get_device_capability(number) >= (8, 0) for number in numbers)
    return Device("cuda", tuple(numbers), tuple(free[number] for number in numbers), native)
