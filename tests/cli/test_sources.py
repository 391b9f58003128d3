"""Frames that exist already, stdin and URLs on the command line; nothing that was spooled stays."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from light_program import LIGHT
from PIL import Image
from terminal import QUESTION, llvid, scene
from test_cli_streams import wait_for_start

from llava_video_cli.cli.app import run
from llava_video_cli.demo.world import frames as world_frames

DIRECTION = "Which way does it move?"
ANSWER = "It is a circle."


def write_frames(folder: Path, **changes: Any) -> Path:
    """Write the frames of a scene as frame_1.png, frame_2.png and so on; at 10 per second, they last 2 seconds."""
    folder.mkdir(parents=True)
    for number, image in enumerate(world_frames(scene(**changes)), start=1):
        Image.fromarray(image).save(folder / f"frame_{number}.png")
    return folder


def ran(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = run(list(arguments))
    return code, *capsys.readouterr()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_frames(tmp_path / "frames")


def test_a_folder_and_a_pattern_are_asked_as_a_video(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    note = "taken as a video of 20 pictures, 10 per second (--source-fps)"
    for source in (f"{folder}/", f"{folder}/frame_*.png"):
        code, out, err = ran(capsys, "ask", source, DIRECTION, "-m", "demo", "--source-fps", "10", "--json")
        values = json.loads(out)
        assert code == 0 and note in err and note in values["notes"] and "right" in values["answer"]
        assert values["video"] == source and values["settings"]["sampling"]["source_fps"] == 10
        assert values["frames"]["duration_seconds"] == 2 and values["frames"]["times_seconds"][1] == 0.2
    code, out, err = ran(capsys, "ask", str(folder), QUESTION, "-m", "demo", "--with", str(folder / "frame_1.png"))
    assert code == 0 and f"{folder}: taken as a video of 20 pictures, 1 per second" in err


def test_a_preset_may_say_how_fast_pictures_were_taken(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    preset = tmp_path / "slow.yaml"
    preset.write_text("about: pictures\nmodel: demo\nsampling: {frames: 4, source_fps: 4}\n")
    code, out, _ = ran(capsys, "ask", str(folder), QUESTION, "-p", str(preset), "--json")
    assert code == 0 and json.loads(out)["frames"]["times_seconds"] == [0, 1.25, 2.5, 3.75]


def test_what_can_not_be_asked_so_says_what_to_type(
    folder: Path, clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = ran(capsys, "ask", str(clip.parent), QUESTION, "-m", "demo")
    assert code == 1 and "a folder of videos" in err and f"llvid caption {clip.parent} --prompt" in err
    pictures = [str(folder / f"frame_{number}.png") for number in (1, 2, 3)]
    code, _, err = ran(capsys, "ask", *pictures, QUESTION, "-m", "demo")
    assert code == 2 and "is a file, not a question" in err and "as one video, name their folder" in err
    code, _, err = ran(capsys, "ask", str(clip), QUESTION, "-m", "demo", "--source-fps", "2")
    assert code == 0 and "(source_fps) is not used" in err
    more = [part for picture in pictures for part in ("--with", picture)]
    code, _, err = ran(capsys, "ask", pictures[0], "x" * 9000, "-m", "demo", *more)
    assert code == 1 and "ask about the pictures as one video" in err


def test_caption_takes_a_folder_as_a_video_on_demand(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = ran(capsys, "caption", str(folder), "-m", "demo", "--as-video", "--source-fps", "10")
    assert code == 0 and "circle" in out and "right" in out
    code, _, err = ran(capsys, "caption", str(folder), "-m", "demo", "--source-fps", "10")
    assert code == 2 and "--source-fps needs --as-video" in err
    code, _, err = ran(capsys, "caption", f"{folder}/*.png", "-m", "demo")
    assert code == 1 and "`llvid caption --as-video` takes the pictures of a pattern" in err
    target = tmp_path / "frames.srt"
    arguments = ("--as-video", "--source-fps", "10", "--every", "1", "-o", str(target))
    assert ran(capsys, "caption", str(folder), "-m", "demo", *arguments)[0] == 0
    assert target.read_text().count("-->") == 2 and "00:00:01,000 --> 00:00:02,000" in target.read_text()


def test_a_tree_of_frames_is_resumed_and_a_changed_picture_makes_its_video_anew(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clips, records = tmp_path / "clips", tmp_path / "captions.jsonl"
    for name, direction in (("a", "right"), ("b", "left")):
        write_frames(clips / name, direction=direction, x=0.3 if direction == "right" else 0.7)
    command = ("caption", str(clips), "-r", "--as-video", "-m", "demo", "--source-fps", "10", "-o", str(records))
    assert "2 captioned" in ran(capsys, *command)[2]
    rows = [json.loads(line) for line in records.read_text().splitlines()]
    assert {row["video_path"]: row["caption"].split()[-1] for row in rows} == {
        str(clips / "a"): "right.", str(clips / "b"): "left.",
    }  # fmt: skip
    assert "2 done before" in ran(capsys, *command)[2]
    (clips / "a" / "frame_20.png").unlink()
    _, _, err = ran(capsys, *command)
    assert "1 captioned, 1 done before" in err and "replaced: 1" in err


def test_frames_shows_pictures_and_stdin(
    folder: Path, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = ran(capsys, "frames", f"{folder}/frame_*.png", "-p", "demo")
    assert code == 0 and out == "frame_-frames.png\n"
    with clip.open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        _, out, _ = ran(capsys, "frames", "-", "-p", "demo", "--json")
    assert json.loads(out)["video"] == "-" and (tmp_path / "video-frames.png").is_file()


def test_a_video_comes_from_a_pipe(clip: Path, tmp_path: Path) -> None:
    """An mp4 whose header is at its end."""
    env = {"TMPDIR": str(tmp_path)}
    for arguments, code, words in (
        ((QUESTION, "--windows", "1"), 0, "It is a "), (("-",), 2, "the video or a question"),
        ((QUESTION, "--subtitles", "auto"), 1, "standard input"),
    ):  # fmt: skip
        with clip.open("rb") as stdin:
            result = llvid("ask", "-", *arguments, "-m", "demo", "-q", stdin=stdin, env=env, program=LIGHT)
        assert result.returncode == code and words in result.stdout + result.stderr, result
        assert str(tmp_path) not in result.stderr and not list(tmp_path.glob("llvid-*"))


def test_stdin_has_one_use(clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert "a chat reads its questions from stdin" in ran(capsys, "chat", "-", "-m", "demo")[2]
    assert "standard input can be read only once" in ran(capsys, "ask", "-", "q", "--with", "-", "-m", "demo")[2]
    with clip.open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        code, _, err = ran(capsys, "caption", "-", "-m", "demo")
    assert code == 2 and "stdin has a video" in err and "llvid ask -" in err


def test_urls_count_only_where_they_are_typed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = "http://127.0.0.1:1/a.mp4"
    requests, preset, talk = tmp_path / "r.jsonl", tmp_path / "p.yaml", tmp_path / "t.yaml"
    requests.write_text(json.dumps({"video": url, "question": "q"}) + "\n")
    preset.write_text("about: x\nmodel: demo\n")
    talk.write_text(f"- {{role: user, content: [{{type: video, path: '{url}'}}, {{type: text, text: q}}]}}\n")
    for arguments in (
        ("batch", str(requests), "-o", str(tmp_path / "o.jsonl"), "-m", "demo"),
        ("ask", "--messages", str(talk), "-m", "demo"), ("chat", "--load", str(talk), "-m", "demo"),
        ("caption", url, "x.mp4", "-m", "demo", "-o", str(tmp_path / "o.jsonl")),
    ):  # fmt: skip
        code, _, err = ran(capsys, *arguments)
        errors = tmp_path / "o.jsonl.errors.jsonl"
        said = err + (errors.read_text() if errors.exists() else "")
        assert code and "the connection to" not in said, said
    code, _, err = ran(capsys, "ask", url, "q", "-m", "demo")
    assert code == 1 and "the connection to 127.0.0.1 failed" in err
    code, _, err = ran(capsys, "caption", url, "-m", "demo", "--sidecar", "txt")
    assert code == 2 and "--sidecar needs files" in err
    for paths in ((url, url), ("x.mp4", url), ("-", url)):
        code, _, err = ran(capsys, "caption", *paths, "-m", "demo")
        assert code == 2 and "llvid caption takes one URL alone, got 2 paths" in err


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGKILL"])
@pytest.mark.parametrize("closes", [False, True])  # the pipe: the video is being read, or the model is loading
def test_a_signal_leaves_no_temporary_file(clip: Path, tmp_path: Path, name: str, closes: bool) -> None:
    if name == "SIGKILL" and sys.platform != "linux":
        pytest.skip("only Linux has files without a name")
    import fcntl
    import termios

    kind = signal.Signals[name]
    command = [sys.executable, "-m", "llava_video_cli", "ask", "-", QUESTION, "-m", "demo"]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=False
    ) as process:
        assert process.stdin is not None
        process.stdin.write(clip.read_bytes())
        process.stdin.flush()
        wait_for_start(process)
        deadline = time.monotonic() + 30
        while any(fcntl.ioctl(process.stdin, termios.FIONREAD, bytes(4))):  # not all has been read
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.01)
        if closes:
            process.stdin.close()
            time.sleep(0.1)
        process.send_signal(kind)
        assert process.wait(20) == (-kind if name == "SIGKILL" else 128 + kind)
    assert not [file for file in tmp_path.glob("llvid-*") if file.is_file()]


def test_a_chat_takes_a_pattern(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    talk = folder.parent / "talk.json"
    monkeypatch.setattr("sys.stdin", io.StringIO(f"/video '{folder}/frame_*.png'\n{QUESTION}\n/save {talk}\n"))
    assert run(["chat", "-m", "demo"]) == 0
    assert "circle" in capsys.readouterr().out
    assert json.loads(talk.read_text())["messages"][0]["content"][0] == {
        "type": "video", "path": f"{folder}/frame_*.png",
    }  # fmt: skip
