"""The command line in a process of its own or in this one, and a clip to ask about."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from llava_video_cli.cli.app import run
from llava_video_cli.demo.world import Scene

QUESTION = "What shape is it?"


def scene(**changes: Any) -> Scene:
    values: dict[str, Any] = {
        "width": 160, "height": 120, "frames_per_second": 10, "duration_seconds": 2.0, "shape": "circle",
        "color_start": "red", "color_end": "red", "direction": "right", "shade_start": (215, 40, 35),
        "shade_end": (215, 40, 35), "background": (20, 20, 26), "x": 0.3, "y": 0.5, "radius": 0.17, "travel": 0.4,
        "change_at": 0.5, "blur": 0.0, "noise": 0.0, "compression": 0.2, "seed": 1,
    }  # fmt: skip
    return Scene(**(values | changes))


def llvid(*arguments: str, env: dict[str, str] | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run the program in a process of its own."""
    command = [sys.executable, "-m", "llava_video_cli", *arguments]
    return subprocess.run(
        command, env=os.environ | (env or {}), capture_output=True, text=True, timeout=120, check=False, **options
    )


def failed(result: subprocess.CompletedProcess[str], code: int) -> str:
    """The error's line: the only one, but for a hint; nothing on stdout."""
    assert result.returncode == code, result.stderr
    assert result.stdout == "" and "Traceback" not in result.stderr
    lines = result.stderr.splitlines()
    assert lines[0].startswith("error: ") and len(lines) <= 2 and all(line.startswith("hint: ") for line in lines[1:])
    return lines[0]


def asked(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """Run the command line in this process."""
    code = run(["ask", "-m", "demo", *arguments])
    out, err = capsys.readouterr()
    return code, out, err
