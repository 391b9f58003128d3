"""Common slips on the command line: they work, or the error has the line to type instead."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from terminal import asked

from llava_video_cli.cli.app import run
from llava_video_cli.errors import ModelError
from llava_video_cli.preset import load_preset, model_of
from llava_video_cli.video.sampling import parse_time

ASK = "What happens?"


@pytest.fixture(scope="module")
def videos(clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with five videos and a folder of two more."""
    folder = tmp_path_factory.mktemp("slips")
    (folder / "deep" / "inner").mkdir(parents=True)
    for name in ("1.mp4", "2.mp4", "3.mp4", "4.mp4", "my clip.mp4", "deep/inner/5.mp4"):
        (folder / name).write_bytes(clip.read_bytes())
    return folder


@pytest.mark.parametrize(
    ("typed", "words", "hint"),
    [
        ([ASK, "1.mp4"], "1.mp4 is a file, not a question", f"the video comes first: llvid ask 1.mp4 '{ASK}'"),
        ([ASK, "my clip.mp4"], "not a question", f"llvid ask 'my clip.mp4' '{ASK}'"),
        (["1.mp4", "2.mp4", ASK], "2.mp4 is a file", f"`llvid caption 1.mp4 2.mp4 --prompt '{ASK}'` asks about each"),
        (["1.mp4", "2.mp4"], "2.mp4 is a file", "`--with 2.mp4` adds it to the prompt"),
        (["1.mp4", "2.mp4", "3.mp4", "4.mp4", ASK], "is a file", f"`llvid caption *.mp4 --prompt '{ASK}'`"),
        ([ASK, "1.mp4", "2.mp4", "3.mp4"], "is a file", f"`llvid caption 1.mp4 2.mp4 3.mp4 --prompt '{ASK}'`"),
        ([".", ASK], "a folder of videos", "`llvid caption . --prompt QUESTION`"),
        (["deep", ASK], "its subfolders have videos", "`llvid caption deep --recursive --prompt QUESTION`"),
        (["https://youtu.be/abc", ASK], "https://youtu.be/abc", "yt-dlp"),
        (["1.mp4", ASK, "--start", "1x"], "not a time: '1x'", "1m30s"),
    ],
)  # fmt: skip
def test_an_error_has_the_line_to_type(
    typed: list[str],
    words: str,
    hint: str,
    videos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(videos)
    code, out, err = asked(capsys, *typed)
    assert code in (1, 2) and not out
    error, suggestion = err.splitlines()
    assert words in error and hint in suggestion


@pytest.mark.parametrize("command", ["frames", "transcribe"])
def test_a_pages_address_has_the_line_of_its_command(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([command, "https://youtu.be/abc"]) == 1
    assert capsys.readouterr().err.endswith(f"hint: yt-dlp -o - https://youtu.be/abc | llvid {command} -\n")


def test_words_without_quotes_are_one_question(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    quoted = asked(capsys, str(clip), "What shape is it?")
    code, out, err = asked(capsys, str(clip), "What", "shape", "is", "it?")
    assert code == 0 and out == quoted[1]
    assert "asked as one question: 'What shape is it?'" in err
    for questions in (("Color?", "Shape?", "Direction?"), ("What", "is it?"), ("Who is it?", "Why?", "How?")):
        code, out, err = asked(capsys, str(clip), *questions)
        assert code == 0 and len(out.splitlines()) == len(questions) and "asked as one" not in err


def test_without_a_question_the_prompt_of_the_preset_is_asked(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = asked(capsys, str(clip))
    assert code == 0 and load_preset("demo").prompt in err
    assert out == asked(capsys, str(clip), load_preset("demo").prompt)[1]


def test_help_is_a_command_and_a_video_is_none(videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["help", "ask"]) == run(["ask", "--help"]) == 0
    first, second = capsys.readouterr().out.split("Usage: ")[1:]
    assert first == second and "llvid ask" in first
    assert run(["help"]) == 0 and "llvid" in capsys.readouterr().out
    assert run([str(videos / "1.mp4"), ASK]) == 2
    assert f"llvid ask {videos / '1.mp4'} '{ASK}'" in capsys.readouterr().err


def test_a_table_of_another_kind(
    videos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(videos)
    for name, hint in (("all.srt", "--sidecar srt"), ("all.srt", "-o all.jsonl"), ("x.json", "-o x.jsonl")):
        assert run(["caption", ".", "-m", "demo", "-o", name]) == 2
        assert hint in capsys.readouterr().err.splitlines()[1]
    assert not Path("all.srt").exists()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("1m30s", 90), ("2min", 120), ("1h", 3600), ("1h2m3.5s", 3723.5), ("1 min 5 s", 65), ("90sec", 90)],
)
def test_times_with_units(text: str, seconds: float) -> None:
    assert parse_time(text) == seconds


def test_short_names_of_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "llvid" / "presets" / "checkpoint").mkdir(parents=True)
    (tmp_path / "llvid" / "presets" / "mine.yaml").write_text("about: x\nmodel: checkpoint\n")
    (tmp_path / "mine").mkdir()
    monkeypatch.chdir(tmp_path)
    assert model_of("7b") == model_of("7B") == "llava-hf/LLaVA-NeXT-Video-7B-hf"
    assert model_of("34b") == load_preset("34b").model and model_of("low-memory") == load_preset("low-memory").model
    assert model_of("mine") == str(tmp_path / "llvid" / "presets" / "checkpoint")  # beside the preset's file
    for same in ("./mine", "llvid", "owner/name", "demo", "random:7B"):
        assert model_of(same) == same
    with pytest.raises(ModelError) as caught:
        model_of("low-memor")
    assert caught.value.hint == "did you mean 'low-memory'?"


def test_quit_ends_a_chat(clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"What shape is it?\nquit\nWhat color is it?\n")))
    assert run(["chat", str(clip), "-m", "demo"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1
