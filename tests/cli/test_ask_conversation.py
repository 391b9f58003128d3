"""`llvid ask --messages`: conversations that were written down, with several media."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from terminal import asked, scene

from llava_video_cli.cli.app import run
from llava_video_cli.demo.world import write_picture
from llava_video_cli.runs.conversation_file import write_yaml
from llava_video_cli.runs.media import MIXED


def part(path: Path | str, kind: str = "video") -> dict[str, str]:
    return {"type": kind, "path": str(path)}


def say(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


@pytest.fixture
def folder(tmp_path: Path, clip: Path) -> Path:
    (tmp_path / "red.mp4").hardlink_to(clip)
    for name, color, shade in (("red", "red", (215, 40, 35)), ("blue", "blue", (45, 80, 225))):
        change = {"color_start": color, "color_end": color, "shade_start": shade, "shade_end": shade}
        write_picture(tmp_path / f"{name}.png", scene(shape="square", x=0.5, **change))
    return tmp_path


def write(folder: Path, *messages: dict[str, Any], **settings: Any) -> str:
    path = folder / "talk.yaml"
    path.write_text(write_yaml({**settings, "messages": list(messages)}))
    return str(path)


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts)}


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def test_a_picture_that_comes_later_is_compared_with_the_clip(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for picture, verdict in (("red.png", "yes"), ("blue.png", "no")):
        first = (user(part("red.mp4"), say("What shape is it?")), said("It is a circle."))
        path = write(folder, *first, user(part(picture, "image"), say("Is it the same color?")), model="demo")
        assert run(["ask", "--messages", path]) == 0
        out, err = capsys.readouterr()
        assert out == f"The picture is {picture.split('.')[0]} and the video is red: {verdict}.\n"
        assert err == f"{MIXED}\n"
        assert run(["ask", "--messages", path, "-q"]) == 0 and capsys.readouterr().err == ""


def test_flags_beat_the_file_and_the_record_tells(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(
        folder,
        {"role": "system", "content": "Be brief."},
        user(part("red.mp4"), say("What shape is it?")),
        said("It is a circle."),
        user(say("Which way does it move?")),
        model="somebody/else",
        sampling={"frames": 3},
        generation={"max_new_tokens": 20},
    )
    code, out, err = asked(capsys, "--messages", path, "--json", "-n", "4")
    record = json.loads(out)
    assert (code, err) == (0, "") and "right" in record["answer"] and record["question"] == "Which way does it move?"
    assert record["video"] == str(folder / "red.mp4") and record["frames"]["count"] == 4
    settings = record["settings"]
    assert settings["system"] == "Be brief." and settings["generation"]["max_new_tokens"] == 20
    assert settings["model"] == "demo"
    code, out, _ = asked(capsys, "--messages", path, "--json", "--system", "You are a helpful assistant.", "-p", "demo")
    record = json.loads(out)
    assert record["settings"]["system"] == "You are a helpful assistant." and record["frames"]["count"] == 8


def test_a_conversation_without_media(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = asked(capsys, "--messages", write(folder, user(say("What shape is it?"))), "--json")
    record = json.loads(out)
    assert code == 0 and record["answer"] and record["video"] is None and record["frames"] is None


def test_what_is_wrong_is_said_before_a_model_is_loaded(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "bad.mp4").write_text("no video")
    question = user(part("red.mp4"), say("What?"))
    for messages, code, words in (
        ((question, said("x")), 2, "the last message must be from the user"),
        ((user(part("red.mp4")),), 2, "and have a text"),
        ((question, question), 2, "message 2 must be from the assistant"),
        ((user(part("gone.mp4"), say("?")),), 1, f"{folder / 'gone.mp4'}: no such file"),
        ((user(part("bad.mp4"), say("?")),), 1, "not a video"),
    ):
        assert run(["ask", "-m", "nobody/nothing", "--messages", write(folder, *messages)]) == code
        out, err = capsys.readouterr()
        assert out == "" and words in err and err.startswith("error: ")


def test_several_media_of_a_command_line_are_noted_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with_picture = (str(folder / "red.mp4"), "What shape is it?", "Is it the same color?", "--with")
    _, _, err = asked(capsys, *with_picture, str(folder / "red.png"))
    assert err.count(MIXED) == 1
