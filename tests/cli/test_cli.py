"""`llvid ask` as a user types it: answers on stdout, notes on stderr, real files, every layout."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from clips import sample
from terminal import QUESTION, asked, scene

from llava_video_cli.cli.app import ABOUT, command, run
from llava_video_cli.demo.world import write_clip as write_scene
from llava_video_cli.demo.world import write_picture


def test_stdout_holds_the_answer_and_nothing_else(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = asked(capsys, str(clip), QUESTION)
    assert (code, out, err) == (0, "It is a circle.\n", "")


def test_each_question_gets_its_line(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = asked(capsys, str(clip), QUESTION, "What color is it at the start?", "Which way does it move?")
    lines = out.splitlines()
    assert code == 0 and len(lines) == 3
    assert "circle" in lines[0] and "red" in lines[1] and "right" in lines[2]


def test_a_line_of_json_for_each_question(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = asked(capsys, str(clip), QUESTION, "Which way does it move?", "--json", "-n", "4")
    first, second = (json.loads(line) for line in out.splitlines())
    assert code == 0
    assert (
        first["video"] == first["video_path"] == str(clip)
        and first["question"] == QUESTION
        and "circle" in first["answer"]
    )
    assert first["model"] == "demo" and first["finish_reason"] == "stop"
    assert first["frames"] == {
        "count": 4,
        "times_seconds": [0.0, 0.5, 1.0, 1.5],
        "sampling": "uniform",
        "duration_seconds": 2.0,
        "fit": "crop",
        "visible_share": 1.0,
        "size": [120, 120],
        "input_size": [48, 48],
    }
    usage = first["usage"]
    assert usage["prompt_tokens"] > 36 and usage["cached_tokens"] == 0 and usage["generated_tokens"] > 3
    assert 0 < usage["first_token_seconds"] <= usage["total_seconds"] and usage["peak_memory_bytes"] > 1e7
    settings = first["settings"]
    assert settings["sampling"]["frames"] == 4 and settings["generation"]["temperature"] == 0
    assert settings["preset"] == "demo" and settings["quantize"] == "none" and settings["versions"]["transformers"]
    assert second["question"] == "Which way does it move?" and "right" in second["answer"]


def test_a_drawn_answer_names_the_seed_that_repeats_it(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = asked(capsys, str(clip), "Describe the video.", "--json", "--temperature", "3")
    first = json.loads(out)
    seed = first["settings"]["generation"]["seed"]
    _, out, _ = asked(capsys, str(clip), "Describe the video.", "--json", "--temperature", "3", "--seed", str(seed))
    assert json.loads(out)["answer"] == first["answer"]


def test_a_picture_and_a_picture_beside_a_video(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture = tmp_path / "square.png"
    write_picture(picture, scene(shape="square", x=0.5))
    code, out, _ = asked(capsys, str(picture), QUESTION, "--json")
    record = json.loads(out)
    assert code == 0 and "square" in record["answer"] and record["frames"] is None
    code, out, _ = asked(capsys, str(picture), "Is it the same shape?", "--with", str(clip), "--json")
    record = json.loads(out)
    assert code == 0 and record["answer"].endswith("no.")
    assert record["with"][0]["path"] == str(clip) and record["with"][0]["frames"]["count"] == 8


def test_a_question_from_stdin(clip: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(f"{QUESTION}\n".encode())))
    assert asked(capsys, str(clip), "-") == (0, "It is a circle.\n", "")


def test_notes_go_to_stderr_and_quiet_takes_them_away(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    short = tmp_path / "short.mp4"
    write_scene(short, scene(duration_seconds=0.3))
    code, out, err = asked(capsys, str(short), QUESTION)
    assert code == 0 and out.count("\n") == 1 and "3 frames" in err
    code, _, err = asked(capsys, str(short), QUESTION, "--quiet")
    assert code == 0 and err == ""


def test_an_answer_cut_off_says_so(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, err = asked(capsys, str(clip), "Describe the video.", "--max-new-tokens", "2")
    assert len(out.split()) <= 2 and "--max-new-tokens" in err


REAL = (
    "nasa_13013.mp4", "av1.mkv", "hevc_10bit.mp4", "flipping_a_pancake.mkv", "corrupted.mp4", "rotated_90.mov",
    "no_duration.webm", "transparent.webm", "pigs_in_a_polka.gif", "bikes.mp4", "delayed_start.mp4", "edit_list.mp4",
    "h264.ts", "fragmented.mp4", "sample.avi", "sample.flv", "h263.3gp", "one_white_frame.mp4", "long_180p_av1.mp4",
)  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_real_files_get_an_answer(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = asked(capsys, str(sample(name)), "What happens in this video?", "-n", "4", "--json")
    record = json.loads(out)
    assert (
        code == 0
        and record["answer"]
        and record["frames"]["count"] == min(4, {"rotated_90.mov": 3, "one_white_frame.mp4": 1}.get(name, 4))
    )


@pytest.mark.parametrize("layout", ["vicuna", "mistral", "yi"])
def test_every_layout_answers(
    layout: str, clip: Path, layouts: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    code = run(["ask", str(clip), QUESTION, "-m", str(layouts[layout]), "-n", "2", "--max-new-tokens", "4"])
    out, err = capsys.readouterr()
    assert code == 0 and out.strip() and "--max-new-tokens" in err


def test_the_list_of_commands_says_what_each_says_of_itself() -> None:
    for name in ABOUT:
        about = " ".join(str(command(name).help).split())
        assert about.startswith(ABOUT[name].rstrip(".")), name
