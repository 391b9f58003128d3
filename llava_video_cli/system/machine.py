"""What this machine has: processor, memory, graphics cards. This process does not import torch for it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ASK_SECONDS = 60.0
_ASK_TORCH = """
import json, torch
cards = []
if torch.cuda.is_available():
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        with torch.cuda.device(number):
            bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
        major, minor = torch.cuda.get_device_capability(number)
        cards.append([torch.cuda.get_device_name(number), f"{major}.{minor}", total, free, bfloat16])
mps = torch.backends.mps.is_available()
print(json.dumps({"cards": cards, "mps": mps, "built": torch.version.cuda or torch.version.hip or ""}))
"""
# Instructions for bfloat16 products, as the kernel names them on x86 and ARM.
_BFLOAT16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}


@dataclass(frozen=True)
class Processor:
    """The CPU. `cores` are those that this process may use; `has_bfloat16` means bfloat16 products in hardware."""

    name: str
    cores: int
    has_bfloat16: bool


@dataclass(frozen=True)
class Memory:
    """The memory of the machine or of its container; `free_bytes` includes caches that the system can drop."""

    total_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class Card:
    """A graphics card that torch can use. `compute_capability` is NVIDIA's."""

    device: str
    name: str
    compute_capability: str
    total_bytes: int
    free_bytes: int
    has_bfloat16: bool


@dataclass(frozen=True)
class Accelerators:
    """The devices that torch can use; `has_nvidia` means that there is an NVIDIA card, even if torch can't use it.

    `torch_built_for` is the version of CUDA or ROCm that torch was built for, or empty.
    """

    cards: tuple[Card, ...] = ()
    has_mps: bool = False
    has_nvidia: bool = False
    torch_built_for: str = ""


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor() -> Processor:
    """Return the CPU, as the kernel describes it."""
    name, flags = platform.processor() or platform.machine(), set[str]()
    path = Path("/proc/cpuinfo")
    if path.exists():
        pairs = (line.partition(":") for line in path.read_text(encoding="utf-8", errors="replace").splitlines())
        facts = {key.strip(): value.strip() for key, _, value in pairs}  # of each core; they are the same
        name, flags = facts.get("model name", name), set((facts.get("flags") or facts.get("Features", "")).split())
    elif sys.platform == "darwin":
        name = _sysctl("machdep.cpu.brand_string") or name
        flags = {"bf16"} if _sysctl("hw.optional.arm.FEAT_BF16") == "1" else flags
    return Processor(name, usable_cores(), bool(_BFLOAT16_FLAGS & flags))


def memory() -> Memory:
    """Return the memory; raises OSError if the system does not report it."""
    path = Path("/proc/meminfo")
    if not path.exists():
        total = int(_sysctl("hw.memsize") or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        return Memory(total, total)
    values = dict(line.split(":", 1) for line in path.read_text(encoding="ascii").splitlines())
    total, free = (int(values[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    with suppress(OSError, ValueError):  # no container, or a limit of "max"
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current"))
        if limit < total:
            stat = dict(line.split() for line in (group / "memory.stat").read_text(encoding="ascii").splitlines())
            # the system can drop what only caches files
            total, free = limit, min(free, max(0, limit - used + int(stat.get("inactive_file", 0))))
    return Memory(total, free)


def accelerators() -> Accelerators:
    """Return the devices that torch can use. A separate process asks torch, and only if there may be a device.

    Raises OSError with the reason if torch fails.
    """
    if not may_have_accelerator():
        return Accelerators()
    answer = _ask_python(_ASK_TORCH)
    cards = tuple(Card(f"cuda:{number}", *values) for number, values in enumerate(answer["cards"]))
    return Accelerators(cards, bool(answer["mps"]), _has_nvidia(), answer["built"])


def may_have_accelerator() -> bool:
    """Return whether torch may have another device than the CPU."""
    return _has_nvidia() or sys.platform != "linux" or Path("/dev/kfd").exists()


def _has_nvidia() -> bool:
    return any(Path(path).exists() for path in ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg"))


def check_import(module: str) -> None:
    """Import a module in a separate process, which takes seconds; raises OSError with the reason if that fails."""
    _ask_python(f"import {module}\nprint('{{}}')")


def _ask_python(program: str) -> dict[str, Any]:
    """Run a program whose last line is JSON; raises OSError with its last line of stderr if it fails."""
    # Not in the current folder: `python -c` would import a torch.py from it.
    result = subprocess.run(
        [sys.executable, "-c", program],
        cwd=sys.prefix,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        errors="replace",
        timeout=_ASK_SECONDS,
        check=False,
    )
    if result.returncode:
        lines = result.stderr.strip().splitlines() or [f"the process ended with exit code {result.returncode}"]
        raise OSError(lines[-1])
    values: dict[str, Any] = json.loads(result.stdout.strip().splitlines()[-1])
    return values


def _sysctl(name: str) -> str | None:
    try:
        result = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=False)
    except OSError:
        return None
    return result.stdout.strip() or None
