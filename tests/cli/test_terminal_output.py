"""What stands on stdout where it is a terminal, and that a file gets all of it while a bar is shown on the terminal."""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from pathlib import Path

import pytest
from light_program import LIGHT
from terminal import Typed

from llava_video_cli.cli.app import run
from llava_video_cli.cli.ask import is_new
from llava_video_cli.cli.console import Prose, columns, confirmed, error, shown, stdout_is_terminal
from llava_video_cli.preset import preset_files


class Terminal:
    """A stdout that says it is a terminal."""

    def __init__(self) -> None:
        self.pieces: list[str] = []

    def isatty(self) -> bool:
        return True

    def write(self, text: str) -> None:
        self.pieces.append(text)

    def flush(self) -> None:
        pass


def wrapped(monkeypatch: pytest.MonkeyPatch, text: str, width: int, step: int = 1, column: int = 0) -> list[str]:
    """The lines that come of a text written in pieces of `step` characters."""
    monkeypatch.setenv("COLUMNS", str(width))
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    prose = Prose(column)
    for start in range(0, len(text), step):
        prose.write(text[start : start + step])
    prose.end()
    monkeypatch.undo()
    return "".join(terminal.pieces).split("\n")


def test_lines_end_between_words(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "A yellow triangle moves right and turns blue, then it stops."
    for step in (1, 3, 7, 100):
        lines = wrapped(monkeypatch, text, 20, step)
        assert lines.pop() == "" and len(lines) == 4 and " ".join(lines) == text
        assert max(map(len, lines)) <= 20
    assert wrapped(monkeypatch, "one two", 10, column=6) == ["one", "two", ""]
    assert wrapped(monkeypatch, "one two\n\n  three", 7) == ["one two", "", "  three", ""]
    assert wrapped(monkeypatch, "see " + "x" * 25 + " end", 10) == ["see", "x" * 25 + " end", ""]
    assert wrapped(monkeypatch, "黄色三角形，向右移动。", 10) == ["黄色三角", "形，向右移", "动。", ""]


def test_a_line_does_not_end_within_an_emoji_of_several_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    family, thumb = "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f44d\U0001f3fd"
    assert wrapped(monkeypatch, f"a {family} {thumb}", 3) == ["a", family, thumb, ""]
    assert wrapped(monkeypatch, "a\x1b[2J b", 80) == ["a␛[2J b", ""]


def test_a_pipe_gets_the_pieces_as_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "20")
    prose = Prose()
    prose.write("A long line that is wider than twenty ")
    assert capsys.readouterr().out == "A long line that is wider than twenty "
    prose.write("characters.")
    prose.end()
    assert capsys.readouterr().out == "characters.\n"


def test_captions_on_a_terminal_and_records_in_a_file(clip: Path, tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / "clips" / name).write_bytes(clip.read_bytes())
    typed = Typed("caption", "clips", "-m", "demo", cwd=tmp_path, program=LIGHT)
    shown = typed.until("2 captioned")
    typed.close()
    assert "clips/a.mp4: A red circle" in shown and "clips/b.mp4: A red circle" in shown and "{" not in shown

    file = tmp_path / "out"
    with file.open("wb") as out:
        typed = Typed("caption", "clips", "-m", "demo", cwd=tmp_path, stdout=out.fileno(), program=LIGHT)
        assert typed.end(60) == 0
        typed.close()
    assert len([json.loads(row) for row in file.read_text().splitlines()]) == 2


def test_a_terminal_stays_one_behind_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Proxy:
        """What Rich 14 puts in the place of stdout."""

        rich_proxied_file = Terminal()

        def isatty(self) -> bool:
            return False

    monkeypatch.setattr(sys, "stdout", Proxy())
    assert stdout_is_terminal()
    with Path(os.devnull).open("w") as nothing:
        monkeypatch.setattr(sys, "stdout", nothing)
        assert not stdout_is_terminal()


def test_ctrl_c_while_loading_shows_the_cursor_again(clip: Path, tmp_path: Path) -> None:
    typed = Typed("ask", str(clip), "What?", "-m", "demo", cwd=tmp_path)
    typed.until("loading demo")
    typed.process.send_signal(signal.SIGINT)
    assert typed.end() == 130
    typed.close()
    assert "\x1b[?25h" in typed.shown and typed.shown.rstrip().endswith("interrupted")


def test_nothing_is_drawn_behind_interrupted(tmp_path: Path) -> None:
    """The thread of the spinner goes on while the program ends; what it wrote stood beside the word."""
    draw = """
import os, signal, threading, time
from llava_video_cli.__main__ import _leave
write = os.write
def draw():
    while True:
        time.sleep(0.005), write(2, b"drawn ")
def slow_write(*arguments):
    write(*arguments), time.sleep(0.05)
threading.Thread(target=draw, daemon=True).start()
time.sleep(0.05)
os.write = slow_write
_leave(signal.SIGINT)
"""
    typed = Typed(cwd=tmp_path, program=(sys.executable, "-c", draw))
    assert typed.end() == 130
    typed.close()
    assert typed.shown.endswith("drawn \r\x1b[K\x1b[?25hinterrupted\r\n")


def test_rows_keep_to_their_columns(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    text = "the 7B in 4 bits, with 8 frames, for an 8 GB card"
    lines = columns("low-memory", text, 12, wraps=True)
    assert lines[0].startswith("low-memory  the 7B") and all(line.startswith(" " * 12) for line in lines[1:])
    assert len(lines) > 1 and max(map(len, lines)) <= 40 and " ".join(line[12:] for line in lines) == text
    assert columns("low-memory", text, 12, wraps=False) == [f"low-memory  {text}"]
    assert (
        columns("黄色", "三角形，向右移动。" * 2, 30, wraps=True)[0]
        == "黄色" + " " * 26 + "三角形，向右移动。三角形，向右"
    )
    monkeypatch.setenv("COLUMNS", "22")
    assert columns("黄色", "三角形，向右移动。", 6, wraps=True) == ["黄色  三角形，向右移", "      动。"]
    assert columns("a", "", 3, wraps=True) == ["a  "]
    assert run(["presets"]) == 0  # into a pipe: a line each
    assert len(capsys.readouterr().out.splitlines()) == len(preset_files())


def test_a_server_is_told_of_once_a_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert is_new("http://127.0.0.1:8000") and not is_new("http://127.0.0.1:8000")
    assert is_new("http://127.0.0.1:9000")
    told = tmp_path / "llvid" / "told-of-server"
    os.utime(told, (told.stat().st_mtime - 90_000,) * 2)
    assert is_new("http://127.0.0.1:9000") and not is_new("http://127.0.0.1:9000")
    monkeypatch.setenv("XDG_STATE_HOME", "/proc")
    assert is_new("http://127.0.0.1:9000")  # nothing can be remembered there


@pytest.mark.parametrize(
    ("typed", "is_yes"),
    [("y\n", True), (" YES \n", True), ("\n", False), ("", False), ("n\n", False), ("yet\n", False)],
)
def test_only_a_yes_is_a_yes_and_a_question_is_one_safe_line(
    typed: str, is_yes: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(typed))
    assert confirmed("replace a\x1b[2J\nb?") is is_yes
    assert capsys.readouterr() == ("", "replace a\u241b[2J\u240ab? [y/N] ")


def test_an_error_and_its_hint_are_one_safe_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    error("a\x1b]0;t\x07\tb\nc", "\x9b2J\u2029\u202e[bold]")
    assert capsys.readouterr() == ("", "error: a\u241b]0;t\u2407\u2409b\u240ac\nhint: \\u009b2J\\u2029\\u202e[bold]\n")
    assert shown("a\tb\nc\u200dd\x7f") == "a\tb\nc\u200dd\u2421"


def test_a_few_files_of_a_folder(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (tmp_path / name).write_bytes(clip.read_bytes())
    command = ["caption", str(tmp_path), "-m", "demo", "-o", str(tmp_path / "out.jsonl")]
    few = ["--limit", "2"]
    for more, count, done in ((few, 2, "2 captioned"), (few, 2, "2 done before"), ([], 3, "1 captioned")):
        assert run([*command, *more]) == 0 and done in capsys.readouterr().err
        rows = [json.loads(row) for row in (tmp_path / "out.jsonl").read_text().splitlines()]
        assert sorted(Path(row["video_path"]).name for row in rows) == ["a.mp4", "b.mp4", "c.mp4"][:count]
    assert run([*command, "--limit", "0"]) == 2
    assert run([*command, "--limit", "1", "--ray", "local"]) == 2 and "--limit can't" in capsys.readouterr().err
