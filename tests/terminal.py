"""The command line in a process of its own or in this one, and a clip to ask about."""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llava_video_cli.cli.app import run
from llava_video_cli.demo.world import Scene

QUESTION = "What shape is it?"
PROGRAM = (sys.executable, "-m", "llava_video_cli")  # or `light_program.LIGHT`, where the model decides nothing


def scene(**changes: Any) -> Scene:
    values: dict[str, Any] = {
        "width": 120, "height": 120, "frames_per_second": 10, "duration_seconds": 2.0, "shape": "circle",
        "color_start": "red", "color_end": "red", "direction": "right", "shade_start": (215, 40, 35),
        "shade_end": (215, 40, 35), "background": (20, 20, 26), "x": 0.3, "y": 0.5, "radius": 0.17, "travel": 0.4,
        "change_at": 0.5, "blur": 0.0, "noise": 0.0, "compression": 0.2, "seed": 1,
    }  # fmt: skip
    return Scene(**(values | changes))


def llvid(
    *arguments: str, env: dict[str, str] | None = None, program: Sequence[str] = PROGRAM, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run the program in a process of its own."""
    return subprocess.run(
        [*program, *arguments],
        env=os.environ | (env or {}),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        **options,
    )


def ran(capsys: pytest.CaptureFixture[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line in this process; return what `llvid` returns of a process."""
    capsys.readouterr()
    return subprocess.CompletedProcess(arguments, run([*arguments]), *capsys.readouterr())


class Typed:
    """The program on a terminal of its own, with somebody who types; everything it shows is in `shown`."""

    def __init__(
        self,
        *arguments: str,
        cwd: Path,
        stdout: int | None = None,
        env: dict[str, str] | None = None,
        program: Sequence[str] = PROGRAM,
    ) -> None:
        import pty

        self._master, terminal = pty.openpty()
        self.terminal = os.ttyname(terminal)
        quiet = {"TERM": "xterm", "COLUMNS": "200", "LINES": "50"}
        environment = os.environ | quiet | {"PYTHONPATH": str(Path(__file__).parents[1])} | (env or {})
        for name in {"TMUX", "STY", "KITTY_WINDOW_ID", "TERM_PROGRAM", "LC_TERMINAL"} - set(env or {}):
            environment.pop(name, None)
        command = [*program, *arguments]
        self.process = subprocess.Popen(
            command, stdin=terminal, stdout=stdout or terminal, stderr=terminal, cwd=cwd, env=environment,
            start_new_session=True, preexec_fn=_controlling_terminal,
        )  # fmt: skip
        self._slave = terminal  # kept, so that its modes can be looked at after the end
        self.shown = ""

    def _has_more(self) -> bool:
        """Whether there is something to be read, or will be within a tenth of a second."""
        with selectors.DefaultSelector() as selector:  # `select` refuses descriptors above 1,023
            selector.register(self._master, selectors.EVENT_READ)
            return bool(selector.select(0.1))

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def until(self, text: str, seconds: float = 60) -> str:
        """Wait for a text; return what was shown since the last call up to its end."""
        deadline = time.monotonic() + seconds
        while text not in self.shown:
            assert time.monotonic() < deadline, f"{text!r} was not shown in {self.shown!r}"
            if self._has_more():
                self.shown += os.read(self._master, 65536).decode(errors="replace")
        before, _, self.shown = self.shown.partition(text)
        return before + text

    def end(self, seconds: float = 20) -> int:
        """Wait for the end; return the exit code."""
        code = self.process.wait(seconds)
        while self._has_more():
            self.shown += os.read(self._master, 65536).decode(errors="replace")
        return code

    def echoes(self) -> bool:
        """Whether the terminal is as a shell has it: it shows what is typed, and takes lines."""
        import termios

        modes = termios.tcgetattr(self._slave)[3]
        return bool(modes & termios.ECHO and modes & termios.ICANON)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)
        os.close(self._slave)


def _controlling_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


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
