"""A film of four shots on the command line: one window of each, right captions, and what is said of the shots."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest
from films import CAPTIONS, RATE, write_film

from llava_video_cli.cli.app import run


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("scenedetect", reason="needs the extra 'scenes'")
    return write_film(tmp_path_factory.mktemp("scenes") / "film.mp4")


def seconds(clock: str) -> float:
    hours, minutes, rest = clock.replace(",", ".").split(":")
    return 3600 * int(hours) + 60 * int(minutes) + float(rest)


def test_each_shot_gets_its_caption_and_its_subtitle(film: Path, tmp_path: Path) -> None:
    assert run(["caption", str(film), "-m", "demo", "--every", "scene", "-o", str(tmp_path / "film.srt"), "-q"]) == 0
    blocks = (tmp_path / "film.srt").read_text().strip().split("\n\n")
    assert [block.splitlines()[2] for block in blocks] == list(CAPTIONS)
    times = [tuple(map(seconds, block.splitlines()[1].split(" --> "))) for block in blocks]
    assert [start for start, _ in times][1:] == [end for _, end in times][:-1]
    for (start, _), (first, last) in zip(times[1:], ((60, 60), (112, 120), (172, 172)), strict=True):
        assert first / RATE - 2 / RATE <= start <= last / RATE + 2 / RATE


def test_a_record_has_the_shots_and_other_settings_make_another(film: Path, tmp_path: Path) -> None:
    table = tmp_path / "captions.jsonl"
    command = ["caption", str(film), "-m", "demo", "--frames", "4", "-o", str(table), "-q"]
    for more in (["--every", "scene"], ["--every", "scene"], ["--sampling", "scenes"], ["--skip-static"], []):
        assert run([*command, *more]) == 0
    windows, spread, static, plain = map(json.loads, table.read_text().splitlines())
    assert [segment["text"] for segment in windows["segments"]] == list(CAPTIONS)
    assert windows["frames"]["count"] == 16 and windows["frames"]["sampling"] == "scenes"
    bounds = [[segment["start_seconds"], segment["end_seconds"]] for segment in windows["segments"]]
    assert windows["frames"]["shots"] == bounds == spread["frames"]["shots"] and spread["frames"]["count"] == 4
    assert spread["settings"]["sampling"]["mode"] == "scenes" and len(spread["segments"]) == 1
    assert static["settings"]["sampling"]["skip_static"] is True and "shots" not in static["frames"]
    assert set(plain["settings"]["sampling"]) == {"frames", "fps", "start_seconds", "end_seconds", "mode"}


def test_frames_shows_the_shots(film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sheet = tmp_path / "sheet.png"
    assert run(["frames", str(film), "--sampling", "scenes", "--frames", "8", "-o", str(sheet)]) == 0
    out, err = capsys.readouterr()
    assert out == f"{sheet}\n" and sheet.exists()
    lines = err.splitlines()
    assert lines[:2] == ["4 shots", "shot 1  0:00.0-0:02.5  2 frames"]
    assert lines[5:6] == ["the model gets frames of 320 x 180 as 336 x 336"]
    assert run(["frames", str(film), "--sampling", "scenes", "-n", "3", "-o", f"{tmp_path}/", "--json", "-q"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert len(values["frames"]["shots"]) == 4 and values["frames"]["count"] == 3
    assert values["notes"] == ["4 shots", "3 frames for 4 shots: only the longest have one"]


def test_ask_looks_at_each_shot(film: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["ask", str(film), "What shape is it?", "-m", "demo", "--windows", "scene", "--frames", "4", "--json"]
    assert run(command) == 0
    out, err = capsys.readouterr()
    values = json.loads(out)
    assert len(values["segments"]) == 4 and values["settings"]["windows"] == "scene"
    assert re.search(r"answered from \d of 4 windows", err)


def test_a_line_of_a_batch_and_a_preset_say_it_too(film: Path, tmp_path: Path) -> None:
    line = {"video": str(film), "question": "What shape is it?", "sampling": "scenes", "scene_detector": "content",
            "scene_threshold": 10, "scene_min_frames": 20, "skip_static": True}  # fmt: skip
    (tmp_path / "requests.jsonl").write_text(f"{json.dumps(line)}\n")
    answers = tmp_path / "answers.jsonl"
    assert run(["batch", str(tmp_path / "requests.jsonl"), "-m", "demo", "-o", str(answers), "-q"]) == 0
    record = json.loads(answers.read_text())
    assert record["frames"]["sampling"] == "scenes" and len(record["frames"]["shots"]) == 4
    assert record["settings"]["sampling"]["scene_threshold"] == 10
    preset = tmp_path / "mine.yaml"
    preset.write_text("about: shots\nmodel: demo\nsampling: {sampling: scenes, frames: 4, scene_threshold: 2.5}\n")
    sheet = tmp_path / "sheet.png"
    assert run(["frames", str(film), "-p", str(preset), "-o", str(sheet), "-q"]) == 0 and sheet.exists()


def test_options_of_cuts_that_nobody_looks_for_are_refused(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    about = ["-m", "demo"]
    for command in (["ask", str(clip), "q"], ["caption", str(clip)], ["find", "q", str(clip)], ["frames", str(clip)]):
        for option, value in (
            ("--scene-threshold", "3"), ("--scene-min-content", "3"), ("--scene-min-frames", "3"),
            ("--scene-detector", "content"),
        ):  # fmt: skip
            assert run([*command, *about, option, value]) == 2
            assert f"{option} means nothing where no cuts are looked for" in capsys.readouterr().err
    scenes = ["--sampling", "scenes", "--scene-detector", "content", "--scene-min-content", "3"]
    assert run(["frames", str(clip), *about, *scenes]) == 2
    assert "is for --scene-detector adaptive only" in capsys.readouterr().err
    every = ["--every", "scene", "--scene-threshold", "3", "-o", "/dev/null/x.jsonl"]
    for command in (["caption", str(clip)], ["find", "q", str(clip)]):
        assert run([*command, *about, *every]) in (1, 2)
        assert "means nothing" not in capsys.readouterr().err


def test_a_speech_model_without_speech_is_refused(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    about = ["-m", "demo", "--speech-model", "tiny"]
    for command in (["ask", str(clip), "q"], ["caption", str(clip)], ["find", "q", str(clip)]):
        assert run([*command, *about]) == 2
        assert "--speech-model means nothing without speech\nhint: add --speech\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        ["frames", "FILM", "--sampling", "scenes", "-o", "x.png"],
        ["caption", "FILM", "-m", "demo", "--every", "scene", "-o", "x.jsonl"],
        ["ask", "FILM", "Why?", "-m", "demo", "--windows", "scene"],
        ["batch", "requests.jsonl", "-m", "demo", "-o", "y.jsonl"],
    ],
)
def test_without_the_extra_one_line_says_what_to_install(
    arguments: list[str],
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "scenedetect", None)
    line = {"video": str(clip), "question": "Why?", "sampling": "scenes"}
    Path("requests.jsonl").write_text(f"{json.dumps(line)}\n")
    assert run([str(clip) if each == "FILM" else each for each in arguments]) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.splitlines() == [
        "error: scenes need the extra 'scenes' (scenedetect is missing)",
        "hint: pip install '.[scenes]' in your clone of llvid",
    ]


@pytest.mark.parametrize("length", ["scenes", "0", "-1", "soon"])
def test_other_windows_are_refused(length: str, clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["caption", str(clip), "-m", "demo", "--every", length]) == 2
    assert f"--every must be scene, or 0.01 seconds or more, got '{length}'" in capsys.readouterr().err
