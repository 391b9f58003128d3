"""`llvid chat` as somebody types it: on a terminal of its own, with editing, history, Ctrl-C and Ctrl-D."""

from __future__ import annotations

import os
import shlex
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from light_program import COUNT, LIGHT
from terminal import Typed, scene

from llava_video_cli.cli.chat import read_history
from llava_video_cli.demo.world import write_picture
from llava_video_cli.runs.conversation_file import read_conversation
from llava_video_cli.system.files import state_folder

pytest.importorskip("pty", reason="no terminals of one's own on this system")

Start = Callable[..., Typed]


@pytest.fixture
def start(tmp_path: Path, clip: Path) -> Iterator[Start]:
    (tmp_path / "red.mp4").hardlink_to(clip)
    write_picture(tmp_path / "red.png", scene(shape="square", x=0.5))
    begun: list[Typed] = []

    def begin(*arguments: str, **more: Any) -> Typed:
        state = {"XDG_STATE_HOME": str(tmp_path / "state")} | more.pop("env", {})
        begun.append(Typed("chat", *arguments, cwd=tmp_path, env=state, **more))
        return begun[-1]

    yield begin
    for each in begun:
        each.close()


def test_a_conversation_typed_saved_and_gone_on_with(start: Start, tmp_path: Path) -> None:
    chat = start("red.mp4", "-m", "demo", program=LIGHT)
    for question, answer in (
        ("What happens in this video?", "A red circle moves right."),
        ("What shape is it?", "It is a circle."),
        ("What color is it at the start?", "It starts red."),
        ("Which way does it move?", "It moves right."),
        (COUNT, "1 of the one, 0 of the other."),
    ):
        chat.until("> ")
        chat.type(f"{question}\r")
        chat.until(answer)
        chat.until("s to the first token")
    chat.until("> ")
    chat.type("/vi\tred.p\t\r")  # completed to a command, and to a path
    chat.until("red.png: a picture, added to the next question")
    chat.type(f"{COUNT}\r")
    chat.until("1 of the one, 1 of the other.")
    chat.type("/save talk.yaml\r")
    chat.until("saved talk.yaml")
    chat.until("> ")
    chat.type("\x04")
    assert chat.end() == 0 and chat.echoes()
    assert len(read_conversation(tmp_path / "talk.yaml").drafts) == 12
    history = tmp_path / "state" / "llvid" / "history"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600 and history.read_text().splitlines()[-1] == "/save talk.yaml"
    chat = start("--load", "talk.yaml", "--no-history", program=LIGHT)
    chat.until("> ")
    chat.type("What shape is it?\r")
    chat.until("s to the first token")
    chat.type("/exit\r")
    assert chat.end() == 0 and "/exit" not in history.read_text()


def test_ctrl_c_gives_up_a_line_and_stops_an_answer(start: Start) -> None:
    chat = start("red.mp4", "-m", "demo", program=LIGHT)
    chat.until("> ")
    chat.type("half a quest")  # while the model loads
    chat.until("half a quest")
    time.sleep(0.3)  # readline looks for a signal only while it waits for a key
    chat.type("\x03")
    chat.until("> ")
    chat.type("/system Be brief.\r")
    chat.until("system: Be brief.")
    chat.type("What?\r")
    chat.until("What?")
    chat.until(" w")  # as the long answer begins; no folder's name has a blank
    chat.type("\x03")
    chat.until("stopped; ")
    chat.until("> ")
    time.sleep(0.5)  # on a busy machine, the answer had ended by itself: then Ctrl-C is for this line
    chat.type("/undo\r")
    assert "half" not in chat.until("removed 'What?'")
    chat.until("> ")
    assert chat.process.poll() is None
    chat.type("\x04")
    assert chat.end() == 0 and chat.echoes()


def test_after_ctrl_z_the_line_is_shown_and_edited_again(tmp_path: Path) -> None:
    own = {"HISTFILE": os.devnull, "XDG_STATE_HOME": str(tmp_path)}
    with closing(Typed("--norc", "--noprofile", "-i", cwd=tmp_path, env=own, program=("bash",))) as shell:
        shell.type(f"{shlex.join(LIGHT)} chat -m demo\r")
        shell.until("\n> ")
        shell.type("/hel")
        shell.until("/hel")
        time.sleep(0.3)  # readline looks for a signal only while it waits for a key
        shell.type("\x1a")
        shell.until("Stopped")
        shell.type("fg\r")
        shell.until("> /hel", seconds=10)
        shell.type("\t\r")  # completed by readline, which needs the terminal in its mode
        assert "add a video" in shell.until("Anything else is a question")


def test_ctrl_c_while_the_model_loads_leaves_the_terminal_in_order(start: Start) -> None:
    chat = start("red.mp4", "-m", "demo")
    chat.until("> ")
    chat.type("What shape is it?\r")
    chat.until("loading demo")
    chat.type("\x03")
    code = chat.end()
    assert code == 130 and chat.echoes() and "Traceback" not in chat.shown, "or it was quick, and answered"


@pytest.mark.slow
def test_a_pipe_behind_it_gets_answers_only(start: Start) -> None:
    read, write = os.pipe()
    chat = start("red.mp4", "-m", "demo", stdout=write)
    os.close(write)
    chat.until("> ")
    chat.type("What shape is it?\n")
    chat.until("s to the first token")
    chat.until("> ")
    chat.type("\x04")
    assert chat.end() == 0
    with os.fdopen(read) as answers:
        assert answers.read() == "It is a circle.\n"


def test_pictures_in_place_where_the_terminal_says_so(start: Start) -> None:
    chat = start("red.mp4", "-m", "demo", env={"TERM": "xterm-kitty"})
    chat.until("> ")
    chat.type("/frames\r")
    chat.until("red-frames.png: 8 frames of red.mp4")
    chat.until("\x1b_Ga=T,f=100,q=2,c=80,m=1;")
    chat.until("> ")
    chat.type("/exit\r")
    assert chat.end() == 0


def test_a_history_stays_short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    path = state_folder() / "history"
    assert path == tmp_path / "llvid" / "history"
    path.parent.mkdir()
    path.write_text("".join(f"line {number}\n" for number in range(5000)) + "odd \x1b[2J\n")
    found = read_history(path)
    assert len(found) == 1000 and found[-1] == "odd ␛[2J" and path.read_bytes().count(b"\n") == 1000
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    assert state_folder() / "history" == Path.home() / ".local" / "state" / "llvid" / "history"
