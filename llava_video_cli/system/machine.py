"""What this machine has: processor, memory, and whether there may be a graphics card. Nothing imports torch."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import ModelError

_ROOT = Path("/")
_ASK_SECONDS = 60.0
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


def usable_cores(root: Path = _ROOT) -> int:
    """Return the number of cores that this process may use, by its affinity and the CPU quotas of its control groups.

    Part of a core counts as a whole one. `root` is that of the file system.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _control_groups("cpu", root):
        words = _words(group / "cpu.max") or _words(group / "cpu.cfs_quota_us") + _words(group / "cpu.cfs_period_us")
        if len(words) == 2 and all(map(str.isdecimal, words)):  # not "max", nor -1
            cores = min(cores, max(1, -(-int(words[0]) // int(words[1]))))
    return cores


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


def memory(root: Path = _ROOT) -> Memory:
    """Return the memory; raises OSError if the system does not report it. `root` is that of the file system."""
    path = root / "proc/meminfo"
    if not path.exists():
        total = int(_sysctl("hw.memsize") or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        return Memory(total, total)
    values = dict(line.split(":", 1) for line in path.read_text(encoding="ascii").splitlines())
    total, free = (int(values[name].split()[0]) * 1024 for name in ("MemTotal", "MemAvailable"))
    machine = total
    for group in _control_groups("memory", root):
        limits = _words(group / "memory.max") or _words(group / "memory.limit_in_bytes")
        if limits and limits[0].isdecimal() and (limit := int(limits[0])) < machine:  # without a limit: "max", or 2^63
            used = _words(group / "memory.current") or _words(group / "memory.usage_in_bytes") or ["0"]
            words = _words(group / "memory.stat")
            stat = dict(zip(words[::2], words[1::2], strict=False))
            # the system can drop what only caches files
            cached = int(stat.get("total_inactive_file") or stat.get("inactive_file") or 0)
            total, free = min(total, limit), min(free, max(0, limit - int(used[0]) + cached))
    return Memory(total, free)


def _control_groups(controller: str, root: Path) -> Iterator[Path]:
    """Yield the folders of this process's control groups, the innermost first: each one's limits count.

    Of version 2, and of version 1, where each controller has a tree of its own. A container may see its own group as
    the root, under a path that only its host knows.
    """
    with suppress(OSError):
        for line in (root / "proc/self/cgroup").read_text(encoding="utf-8", errors="replace").splitlines():
            _, controllers, inside = line.split(":", 2)
            if not controllers or controller in controllers.split(","):
                top = root / "sys/fs/cgroup" / controllers
                if not top.is_dir():
                    top = top.with_name(controller)
                group = top / inside.strip("/") if ".." not in inside else top
                yield from (each for each in (group, *group.parents) if each == top or top in each.parents)


def _words(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return []


def may_have_accelerator() -> bool:
    """Return whether torch may have another device than the CPU."""
    return has_nvidia() or sys.platform != "linux" or Path("/dev/kfd").exists()


def has_nvidia() -> bool:
    """Return whether there is an NVIDIA card, even if torch can't use it; not if CUDA_VISIBLE_DEVICES hides all."""
    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return False
    return any(Path(path).exists() for path in ("/dev/nvidia0", "/dev/nvidiactl", "/dev/dxg"))


def check_docstrings() -> None:
    """Raise `ModelError` if Python leaves docstrings out: transformers reads its own, and fails without them."""
    if sys.flags.optimize > 1:
        raise ModelError("no model can be loaded where Python leaves docstrings out", "PYTHONOPTIMIZE must be 0 or 1")


def check_import(module: str) -> None:
    """Import a module in a separate process, which takes seconds; raises OSError with the reason if that fails."""
    ask_python(f"import {module}\nprint('{{}}')")


def ask_python(program: str) -> dict[str, Any]:
    """Run a program whose last line is JSON; raises OSError with its last line of stderr if it fails, or takes long."""
    # Not in the current folder: `python -c` would import a torch.py from it.
    try:
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
    except subprocess.TimeoutExpired as error:
        raise OSError(f"it took more than {error.timeout:g} seconds") from error
    if result.returncode:
        lines = result.stderr.strip().splitlines() or [f"the process ended with exit code {result.returncode}"]
        raise OSError(lines[-1])
    values: dict[str, Any] = json.loads(result.stdout.strip().splitlines()[-1])
    return values


def _sysctl(name: str) -> str | None:
    try:
        result = subprocess.run(["sysctl", "-n", name], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.strip() or None
