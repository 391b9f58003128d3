"""Each command of the README and of docs/ works, or is one that this version takes; what they show is what comes.

They run in this process, with the demo checkpoint, on small files of the names that the pages use. What needs a hub,
a GPU, sound, a network, a cluster or minutes is parsed only.
"""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import pytest
import typer
from documented import PAGES, Command, commands, programs, write_files
from serving import serving

from llava_video_cli import open_model
from llava_video_cli.cli.app import ABOUT, run
from llava_video_cli.cli.app import command as imported
from llava_video_cli.server.media import MediaSources

ALONE = ("--help", "--version", "--install-completion")
HOST = {"cat", "echo", "find", "jq", "ls", "printf"}  # run by the shell
EXTRAS = {"scene": "scenedetect", "scenes": "scenedetect", "--schema": "llguidance"}
NEEDS = {"--ray", "--server", "--speech", "--quantize", "--random-weights"}
SEEN = [page for page in PAGES if page.name not in ("CHANGELOG.md", "decisions.md", "architecture.md", "commands.md")]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("documented")
    write_files(folder)
    return folder


@pytest.fixture
def here(files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the files as the current folder, and the demo checkpoint as the model."""
    shutil.copytree(files, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("LLVID_MODEL", "demo")
    return tmp_path / "here"


@pytest.mark.parametrize("page", [page for page in SEEN if commands(page)], ids=lambda page: page.stem)
@pytest.mark.parametrize(
    "with_mentions", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["blocks", "all that is written"]
)
def test_the_commands_of_a_page(
    page: Path, with_mentions: bool, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that stand within a sentence are parsed by default, and run in the slow suite."""
    if "--subtitles" not in page.read_text(encoding="utf-8"):
        (here / "film.srt").unlink()  # a caption's file may have its name
    for command in commands(page):
        where = f"{page.name}, line {command.line}: {command.text}"
        try:
            assert sum(parse(stage, where) for stage in command.stages()) or command.shown is not None, where
        except typer.TyperException as error:
            assert command.mention and type(error).__name__ in ("MissingParameter", "BadOptionUsage"), where
            continue
        if not can_run(command) or (command.mention and not with_mentions):
            continue
        if command.text.startswith(
            "llvid demo"
        ):  # libraries that change how floats are rounded change the clip's bytes
            (here / "llvid-demo.mp4").unlink(missing_ok=True)
        code, lines = execute(command, capsys, monkeypatch)
        if command.mention and any("missing argument" in line for line in lines):
            continue
        shown = command.shown or ()
        failing = [line for line in shown if line.startswith("error: ")]
        partly = [line for line in shown if re.search(r"\d failed", line)]
        assert (code == 0) is not bool(failing or partly), f"{where}\n" + "\n".join(lines)
        if command.text.startswith("llvid chat"):
            assert [line for line in lines if line not in shown and "tokens" not in line and shown] == [], where
        elif shown and not command.varies:
            assert sorted(lines) == sorted(shown), where


@pytest.mark.parametrize("page", [page for page in SEEN if programs(page)], ids=lambda page: page.stem)
def test_the_programs_of_a_page(page: Path, here: Path) -> None:
    for text in programs(page):
        if "from openai" not in text:
            exec(compile(text, page.name, "exec"), {"__name__": "__main__"})
            continue
        pytest.importorskip("openai", reason="openai is not installed here")
        with serving(open_model("demo"), sources=MediaSources([here])) as served:
            exec(
                compile(text.replace("http://127.0.0.1:8377", served.url), page.name, "exec"), {"__name__": "__main__"}
            )


def test_the_examples_of_each_help_are_commands_that_it_takes() -> None:
    page = next(page for page in PAGES if page.name == "commands.md")
    examples = [command for command in commands(page) if "[OPTIONS]" not in command.text]
    assert {stage[1] for command in examples for stage in command.stages() if stage[0] == "llvid"} == set(ABOUT)
    for command in examples:
        assert sum(parse(stage, command.text) for stage in command.stages()), command.text


def can_run(command: Command) -> bool:
    """Whether all that a command needs is here."""
    stages = command.stages()
    words = [word for stage in stages for word in stage]
    if not command.piped or not {stage[0] for stage in stages} <= {"llvid", *HOST}:
        return False
    if any(re.search(r"://|^/|^[A-Z]{3,}$", word) for word in words) or NEEDS & set(words):
        return False
    if any(word in words and find_spec(package) is None for word, package in EXTRAS.items()):
        return False
    named = [word for before, word in pairwise(words) if before in ("-m", "--model")]
    llvid = [stage[1] for stage in stages if stage[0] == "llvid"]
    far = {"serve", "pull", "bench", "transcribe", "eval"} & set(llvid)
    return (
        not far
        and (set(named) <= {"demo"} or set(llvid) <= {"doctor", "frames"})
        and all(map(shutil.which, HOST & set(words)))
    )


def parse(stage: Sequence[str], where: str) -> bool:
    """Whether a stage runs llvid, after its arguments were read as llvid reads them."""
    words = [*stage[next((n for n, word in enumerate(stage) if Path(word).name == "llvid"), len(stage)) :]]
    if len(words) < 2:
        inner = next((word for word in stage if word.startswith("llvid ")), None)
        return bool(inner) and parse(Command(str(inner), 0).stages()[0], where)
    if words[1] not in ALONE:
        assert words[1] in ABOUT, where
        imported(words[1]).make_context(words[1], words[2:])
    return True


def execute(
    command: Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> tuple[int, list[str]]:
    """Run a pipe: llvid in this process, the others as programs; return the exit code and all lines that are shown."""
    typed = "\n".join(line[2:] for line in command.shown or () if line.startswith("> "))
    code, content, notes = 0, f"{typed}\n".encode(), ""
    for stage in command.stages():
        if stage[0] == "llvid":
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(content), encoding="utf-8"))
            code = run(stage[1:])
            out, err = capsys.readouterr()
            content, notes = out.encode(), notes + err
        else:
            content = subprocess.run(stage, input=content, capture_output=True, check=True).stdout
    told = [line for line in notes.splitlines() if not re.match(r"\d+ of \d+", line)]  # how far a slow run is
    return code, [*told, *content.decode().splitlines()]
