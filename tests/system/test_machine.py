"""The memory and the cores that control groups leave to this process; programs that another process runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from llava_video_cli.system import machine
from llava_video_cli.system.machine import ask_python, memory, usable_cores

GB = 2**30
MEMINFO = f"MemTotal: {64 * GB // 1024} kB\nMemFree: 1 kB\nMemAvailable: {32 * GB // 1024} kB\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    place(tmp_path, {"proc/meminfo": MEMINFO})
    return tmp_path


def place(root: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)


def test_without_control_groups(root: Path) -> None:
    assert (memory(root).total_bytes, memory(root).free_bytes) == (64 * GB, 32 * GB)
    assert usable_cores(root) == len(os.sched_getaffinity(0))


def test_a_nested_group_of_version_2_and_those_above_it(root: Path) -> None:
    group = "sys/fs/cgroup/user.slice/job"
    place(root, {
        "proc/self/cgroup": "0::/user.slice/job\n", f"{group}/memory.max": f"{8 * GB}\n",
        f"{group}/memory.current": f"{3 * GB}\n", f"{group}/memory.stat": f"anon 5\ninactive_file {GB}\n",
        f"{group}/cpu.max": "max 100000\n", f"{group}/../cpu.max": "50000 100000\n",
    })  # fmt: skip
    assert (memory(root).total_bytes, memory(root).free_bytes) == (8 * GB, 6 * GB)
    assert usable_cores(root) == 1, "half a core, by the group above"
    place(root, {f"{group}/../memory.max": f"{7 * GB}", f"{group}/../memory.current": f"{5 * GB}"})
    assert (memory(root).total_bytes, memory(root).free_bytes) == (7 * GB, 2 * GB)
    place(root, {f"{group}/memory.max": "max", f"{group}/../memory.max": "max", f"{group}/../cpu.max": "max 100000"})
    assert memory(root).total_bytes == 64 * GB and usable_cores(root) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("inside", ["/docker/1a2b", "/known/to/the/host/only"])
def test_version_1(root: Path, inside: str) -> None:
    top = "sys/fs/cgroup"
    place(root, {
        "proc/self/cgroup": f"4:memory:{inside}\n2:cpu,cpuacct:{inside}\n1:name=systemd:/\n0::/\n",
        f"{top}/memory/docker/1a2b/memory.limit_in_bytes": f"{4 * GB}\n",
        f"{top}/memory/docker/1a2b/memory.usage_in_bytes": f"{GB}\n",
        f"{top}/memory/docker/1a2b/memory.stat": f"inactive_file 1\ntotal_inactive_file {GB // 2}\n",
        f"{top}/memory/memory.limit_in_bytes": f"{16 * GB if 'host' in inside else 2**63 - 4096}\n",
        f"{top}/memory/memory.usage_in_bytes": f"{10 * GB}\n",
        f"{top}/cpu,cpuacct/cpu.cfs_quota_us": "100000\n" if "host" in inside else "-1\n",
        f"{top}/cpu,cpuacct/cpu.cfs_period_us": "100000\n",
    })  # fmt: skip
    if "host" in inside:
        assert (memory(root).total_bytes, memory(root).free_bytes) == (16 * GB, 6 * GB)
        assert usable_cores(root) == 1
    else:
        assert (memory(root).total_bytes, memory(root).free_bytes) == (4 * GB, 7 * GB // 2)
        assert usable_cores(root) == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("import time\ntime.sleep(60)", "it took more than 0.2 seconds"),
        ("raise ValueError('no driver')", "ValueError: no driver"),
    ],
)
def test_a_program_that_hangs_or_fails_is_an_os_error(
    program: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "sleep" in program:
        monkeypatch.setattr(machine, "_ASK_SECONDS", 0.2)
    with pytest.raises(OSError, match=reason):
        ask_python(program)
