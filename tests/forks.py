"""Programs in processes of their own that need torch: forks of one that has imported it, which takes seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

# Nothing computes before the fork: only the thread that forks is in the new process.
_FORKS = """
import gc, json, os, sys
import torch, transformers.models.llava_next_video.modeling_llava_next_video
import llava_video_cli.inference.video_model
gc.collect()
gc.freeze()  # what is imported stays, and looking through it takes long
for line in sys.stdin:
    program, arguments, files = json.loads(line)
    pid = os.fork()
    if not pid:
        break
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
else:
    sys.exit()
for number, path in enumerate((os.devnull, *files)):
    os.dup2(os.open(path, os.O_RDWR | os.O_CREAT), number)
sys.argv[1:] = arguments
exec(program, {"__name__": "__main__"})
"""


@dataclass(frozen=True)
class Ended:
    """How a program ended, and what it wrote."""

    returncode: int
    stdout: str
    stderr: str


class Forks:
    """Runs programs, one at a time; each ends as any other program of Python does."""

    def __init__(self, process: subprocess.Popen[str], folder: Path) -> None:
        self._process, self._folder = process, folder

    def run(self, program: str, *arguments: object) -> Ended:
        assert self._process.stdin is not None and self._process.stdout is not None
        files = [self._folder / name for name in ("stdout", "stderr")]
        for file in files:
            file.unlink(missing_ok=True)
        self._process.stdin.write(json.dumps([program, list(map(str, arguments)), list(map(str, files))]) + "\n")
        self._process.stdin.flush()
        returncode = int(self._process.stdout.readline())
        return Ended(returncode, *(file.read_text(encoding="utf-8") for file in files))


@contextmanager
def forks(folder: Path) -> Iterator[Forks]:
    """Yield what runs programs; the folder is for what they write. They can import the modules of the tests."""
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", _FORKS]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": path}
    ) as process:
        yield Forks(process, folder)
