"""`llvid caption` as a user types it: folders, formats, going on, failures."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from clips import SAMPLES, make_sound, sample
from light_program import LIGHT
from records import NAMES
from terminal import PROGRAM, scene

from llava_video_cli.cli.app import run
from llava_video_cli.demo.world import write_clip as write_scene
from llava_video_cli.demo.world import write_picture

WORLD = {"red": (215, 40, 35), "green": (60, 170, 70), "blue": (45, 80, 220)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine clips whose truth is in their names, one of them in a folder of its own, and what is none."""
    base = tmp_path_factory.mktemp("folder")
    (base / "sub").mkdir()
    for shape in ("circle", "square", "triangle"):
        for color, shade in WORLD.items():
            place = base / "sub" if (shape, color) == ("square", "blue") else base
            made = scene(shape=shape, color_start=color, color_end=color, shade_start=shade, shade_end=shade)
            write_scene(place / f"{color}_{shape}.mp4", made)
    (base / "notes.txt").write_text("mine")
    return base


def caption(*arguments: str | Path) -> int:
    return run(["caption", "-m", "demo", *map(str, arguments)])


def records(path: Path) -> dict[str, dict[str, Any]]:
    """The records of a file by the video's name; no video twice."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found = {Path(row["video_path"]).name: row for row in rows}
    assert len(found) == len(rows)
    return found


def is_true(name: str, text: str) -> bool:
    color, shape = Path(name).stem.split("_")
    return color in text and shape in text and "right" in text


def without_times(row: dict[str, Any]) -> dict[str, Any]:
    usage = {key: value for key, value in row["usage"].items() if not key.endswith(("seconds", "bytes"))}
    return {**row, "usage": usage}


def test_a_folder_without_videos_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    assert caption(tmp_path / "empty", "-o", tmp_path / "out.jsonl") == 1
    assert capsys.readouterr() == ("", f"error: {tmp_path}/empty: no videos or pictures in it\n")
    (tmp_path / "deep" / "er").mkdir(parents=True)
    write_picture(tmp_path / "deep" / "er" / "a.png", scene())
    assert caption(tmp_path / "deep", "-o", tmp_path / "out.jsonl") == 1
    assert capsys.readouterr().err.endswith(
        f"\nhint: --recursive takes those in its subfolders, such as {tmp_path}/deep/er/a.png\n"
    )
    assert not (tmp_path / "out.jsonl").exists()
    assert caption(tmp_path / "deep", tmp_path / "empty", "-r", "-o", tmp_path / "out.jsonl") == 3
    assert capsys.readouterr().err.startswith("1 captioned, 1 failed (see"), "one of the two held nothing"
    assert run(["caption", str(tmp_path / "empty"), "-m", "/nonexistent"]) == 1
    assert "no videos or pictures in it" in capsys.readouterr().err


def test_a_folder_to_records_and_again(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "captions.jsonl"
    assert caption(folder, "-o", out) == 0
    left_out = (
        f"{folder}: files in its subfolders are left out, such as {folder}/sub/blue_square.mp4; --recursive takes them"
    )
    assert capsys.readouterr() == ("", f"{left_out}\n8 captioned\n")
    found = records(out)
    assert len(found) == 8 and all(is_true(name, row["caption"]) for name, row in found.items())
    row = found["red_circle.mp4"]
    assert list(row) == [
        "video_path", "caption", "segments", "prompt", "model", "finish_reason", "frames", "notes", "usage", "settings",
        "key",
    ]  # fmt: skip
    assert row["video_path"] == str(folder / "red_circle.mp4") and row["model"] == "demo"
    assert row["segments"] == [{"start_seconds": 0.0, "end_seconds": 2.0, "text": row["caption"]}]
    assert row["frames"]["count"] == 8 and row["settings"]["sampling"]["frames"] == 8 and row["prompt"]
    content = out.read_bytes()
    assert caption(folder, "-o", out) == 0
    assert capsys.readouterr().err == f"{left_out}\n0 captioned, 8 done before\n" and out.read_bytes() == content
    assert caption(folder, "-o", out, "--recursive") == 0
    assert capsys.readouterr().err == "1 captioned, 8 done before\n"
    assert out.read_bytes().startswith(content) and len(records(out)) == 9
    assert not (tmp_path / "captions.errors.jsonl").exists()
    assert caption(folder, "-o", out, "--overwrite", "--frames", "4", "-q") == 0
    assert capsys.readouterr().err == "" and {row["frames"]["count"] for row in records(out).values()} == {4}


def test_captions_do_not_hang_on_the_batch_or_the_order(folder: Path, tmp_path: Path) -> None:
    found = []
    for size in ("1", "5"):
        out = tmp_path / f"{size}.jsonl"
        assert caption(folder, "-o", out, "--batch-size", size, "-q") == 0
        found.append({name: without_times(row) for name, row in records(out).items()})
    assert found[0] == found[1]


def test_one_video_streams_its_caption(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert caption(folder / "red_circle.mp4") == 0
    out, err = capsys.readouterr()
    assert is_true("red_circle.mp4", out) and out.endswith(".\n") and out.count("\n") == 1 and err == ""
    assert caption(folder / "red_circle.mp4", "--prompt", "What shape is it?") == 0
    assert capsys.readouterr().out == "It is a circle.\n"
    assert caption(folder / "red_circle.mp4", "--json") == 0
    assert is_true("red_circle.mp4", json.loads(capsys.readouterr().out)["caption"])
    assert caption(folder / "red_circle.mp4", folder / "blue_circle.mp4", "-q") == 0
    names = [Path(json.loads(line)["video_path"]).name for line in capsys.readouterr().out.splitlines()]
    assert sorted(names) == ["blue_circle.mp4", "red_circle.mp4"]


def test_windows(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert caption(folder / "red_circle.mp4", "--every", "0.8") == 0
    out = capsys.readouterr().out
    assert [line[:9] for line in out.splitlines()] == ["0:00-0:01", "0:01-0:02", "0:02-0:02"]
    assert caption(folder, "--every", "0.8", "-o", tmp_path / "w.jsonl", "-n", "4", "-q") == 0
    row = records(tmp_path / "w.jsonl")["red_circle.mp4"]
    times = [(segment["start_seconds"], segment["end_seconds"]) for segment in row["segments"]]
    assert times == [(0.0, 0.8), (0.8, 1.6), (1.6, 2.0)]
    assert row["caption"] == " ".join(segment["text"] for segment in row["segments"])
    assert row["frames"]["count"] == 12 and row["frames"]["times_seconds"] == sorted(row["frames"]["times_seconds"])
    for kind in ("srt", "vtt", "txt"):
        out_file = tmp_path / f"one.{kind}"
        assert caption(folder / "red_circle.mp4", "--every", "0.8", "-n", "4", "-o", out_file) == 0
        assert caption(folder / "red_circle.mp4", "--every", "0.8", "-n", "4", "-o", out_file) == 1
    assert capsys.readouterr().err.count(" exists\n") == 3
    assert (tmp_path / "one.srt").read_text().count(" --> ") == 3
    assert (tmp_path / "one.vtt").read_text().startswith("WEBVTT\n\n00:00:00.000 --> 00:00:00.800\n")
    assert (tmp_path / "one.txt").read_text() == row["caption"] + "\n"


def test_sidecars(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clips = tmp_path / "clips"
    shutil.copytree(folder, clips)
    (clips / "red_circle.txt").write_text("written by hand")
    assert caption(clips, "-r", "--sidecar", "txt", "--sidecar", "srt") == 0
    out, err = capsys.readouterr()
    assert (
        out == ""
        and "existing files that this run did not write are kept: 1, such as" in err
        and err.endswith("9 captioned\n")
    )
    assert (clips / "red_circle.txt").read_text() == "written by hand" and (clips / "red_circle.srt").exists()
    assert is_true("blue_square.mp4", (clips / "sub" / "blue_square.txt").read_text())
    assert "00:00:00,000 --> 00:00:02,000" in (clips / "green_circle.srt").read_text()
    assert len(records(clips / "llvid-captions.jsonl")) == 9
    (clips / "green_circle.txt").unlink()
    (clips / "red_circle.srt").unlink()
    assert caption(clips, "-r", "--sidecar", "txt", "--sidecar", "srt", "--sidecar", "vtt") == 0
    assert is_true("green_circle.mp4", (clips / "green_circle.txt").read_text()), "made anew from its record"
    assert (clips / "sub" / "blue_square.vtt").exists()
    assert (clips / "red_circle.txt").read_text() == "written by hand" and (clips / "red_circle.srt").exists()
    err = capsys.readouterr().err
    assert "0 captioned, 9 done before" in err and "are kept: 1, such as" in err, "the note comes again"
    assert caption(clips, "-r", "--sidecar", "txt", "--output-dir", tmp_path / "tree", "-q") == 0
    assert sorted(path.name for path in (tmp_path / "tree").rglob("*.txt")) == sorted(
        path.with_suffix(".txt").name for path in clips.rglob("*.mp4")
    )
    assert (tmp_path / "tree" / "sub" / "blue_square.txt").exists()
    assert (tmp_path / "tree" / "llvid-captions.jsonl").exists()


def test_sidecars_of_a_replaced_video_are_made_anew_unless_somebody_changed_them(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        shutil.copy(clip, tmp_path / f"{name}.mp4")
    command = (tmp_path, "--sidecar", "txt")
    assert caption(*command) == 0
    (tmp_path / "b.txt").write_text("better")
    for name in ("a", "b"):
        write_scene(tmp_path / f"{name}.mp4", scene(shape="square"))
    capsys.readouterr()
    assert caption(*command) == 0
    assert "square" in (tmp_path / "a.txt").read_text() and (tmp_path / "b.txt").read_text() == "better"
    err = capsys.readouterr().err
    assert "are kept: 1, such as" in err and "1 captioned, 1 done before\n" in err


def test_failures_have_reasons_and_are_tried_again(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clips, out = tmp_path / "clips", tmp_path / "out.jsonl"
    shutil.copytree(folder, clips)
    whole = (clips / "red_circle.mp4").read_bytes()
    (clips / "red_circle.mp4").write_bytes(whole[:500])
    (clips / "empty.mkv").touch()
    (clips / "words.webm").write_text("hello")
    make_sound(clips / "song.m4a")
    assert caption(clips / "nope.mp4", "-o", out) == 1 and not out.exists(), "a slip is told at once"
    assert "no such file" in capsys.readouterr().err
    assert caption(clips, clips / "nope.mp4", "-o", out) == 3
    err = capsys.readouterr().err
    assert err.splitlines(keepends=True)[1:] == [f"7 captioned, 5 failed (see {tmp_path / 'out.errors.jsonl'})\n"]
    lines = [json.loads(line) for line in (tmp_path / "out.errors.jsonl").read_text().splitlines()]
    reasons = {Path(line["video_path"]).name: line["error"].split(": ", 1)[1] for line in lines}
    assert reasons["empty.mkv"] == "the file is empty" and reasons["song.m4a"] == "no video stream"
    assert reasons["nope.mp4"] == "no such file or folder" and "not a video" in reasons["words.webm"]
    assert "the file is cut short" in reasons["red_circle.mp4"]
    (clips / "red_circle.mp4").write_bytes(whole)
    for name in ("empty.mkv", "words.webm", "song.m4a"):
        (clips / name).unlink()
    (clips / "sub").rename(tmp_path / "elsewhere")
    assert caption(clips, "-o", out) == 0
    capsys.readouterr()
    assert len(records(out)) == 8
    left = [json.loads(line)["video_path"] for line in (tmp_path / "out.errors.jsonl").read_text().splitlines()]
    assert sorted(Path(path).name for path in left) == ["empty.mkv", "nope.mp4", "song.m4a", "words.webm"], "not tried"


def test_formats_hold_the_same(folder: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    for name in ("a.jsonl", "a.csv", "a.parquet"):
        assert caption(folder, "-o", tmp_path / name, "-q") == 0
        assert caption(folder, "-o", tmp_path / name, "-q") == 0
    wanted = {row["video_path"]: row["caption"] for row in records(tmp_path / "a.jsonl").values()}
    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        assert {row["video_path"]: row["caption"] for row in csv.DictReader(file)} == wanted
    table = parquet.read_table(tmp_path / "a.parquet").to_pydict()
    assert dict(zip(table["file"], table["caption"], strict=True)) == wanted and len(table["file"]) == 8


def test_odd_names_round_trip(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Through every format, and through the list on stdin."""
    clips = tmp_path / "clips"
    clips.mkdir()
    named = [name if name.endswith(".mp4") else f"{name}.mp4" for name in NAMES if "/" not in name]
    for name in named:
        (clips / name).hardlink_to(clip)
    assert caption(clips, "-o", tmp_path / "a.jsonl", "--sidecar", "txt", "-q") == 0
    assert caption(clips, "-o", tmp_path / "a.csv", "-q") == 0
    listed = b"\0".join(os.fsencode(clips / name) for name in named)
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(listed)))
    assert caption("-", "-o", tmp_path / "b.jsonl") == 0
    assert capsys.readouterr().err.endswith(f"{len(named)} captioned\n")
    from llava_video_cli.runs.record import text_to_path

    with (tmp_path / "a.csv").open(encoding="utf-8", newline="") as file:
        from_csv = [row["video_path"] for row in csv.DictReader(file)]
    for texts in (
        [json.loads(line)["video_path"] for line in (tmp_path / "a.jsonl").read_bytes().splitlines()],
        [json.loads(line)["video_path"] for line in (tmp_path / "b.jsonl").read_bytes().splitlines()],
        from_csv,
    ):
        assert {text_to_path(text) for text in texts} == {str(clips / name) for name in named}
    for name in named:
        assert "circle" in (clips / f"{name[:-4]}.txt").read_text()


@pytest.mark.slow
def test_the_sample_videos_are_captioned_or_have_a_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sample("README.md")
    out = tmp_path / "out.jsonl"
    assert caption(SAMPLES, "-o", out, "-n", "2") == 3
    names = {path.name for path in SAMPLES.iterdir() if path.suffix not in (".md", ".jpg")}
    lines = [json.loads(line) for line in (tmp_path / "out.errors.jsonl").read_text().splitlines()]
    assert [line["error"].rsplit("/", 1)[-1] for line in lines] == ["audio_only.mp3: no video stream"]
    assert records(out).keys() == names - {"audio_only.mp3"}
    assert f"\n{len(names) - 1} captioned, 1 failed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["x", "-o", "out.xls"], "must end in"), (["x.mp4", "--sidecar", "doc"], "--sidecar must be one of"),
        (["x.mp4", "--output-dir", "d"], "--output-dir needs --sidecar"), (["-", "-"], "stdin can be read only once"),
        (["x.mp4", "--every", "-1", "-o", "o.jsonl"], "--every"), (["x.mp4", "--batch-size", "0"], "batch-size"),
        (["x.mp4", "--timeout", "0"], "timeout"), ([], "PATH"),
        (["x.mp4", "--timeout", "5"], "--timeout needs -o, --sidecar or --json"),
    ],
)  # fmt: skip
def test_usage_errors(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    os.chdir(tmp_path)
    assert caption(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and words in err
    assert not list(tmp_path.iterdir())


def test_a_few_bad_files_need_no_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.mp4").write_text("no")
    assert run(["caption", str(tmp_path), "-m", "/no/such/model", "-o", str(tmp_path / "out.jsonl")]) == 3
    assert "1 failed" in capsys.readouterr().err


def test_frames_that_never_fit_end_the_run(
    folder: Path, layouts: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out.jsonl"
    command = ["caption", str(folder), "-m", str(layouts["yi"]), "-o", str(out), "--max-new-tokens", "2000"]
    assert run([*command, "-n", "20"]) == 1
    assert "too many frames: 20; with this question, 14 frames fit" in capsys.readouterr().err
    assert run([*command, "--fps", "10"]) == 3, "there, each video has a number of its own"
    *_, first, _hint, last = capsys.readouterr().err.splitlines()
    assert last.startswith("0 captioned, 8 failed") and out.read_bytes() == b""
    assert first.startswith("error: too many frames: 20"), "one cause is shown where all failed"


@pytest.mark.parametrize(("program", "count"), [(LIGHT, 60), pytest.param(PROGRAM, 160, marks=pytest.mark.slow)])
@pytest.mark.parametrize(("kind", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_ctrl_c_finishes_what_is_running_and_the_next_run_goes_on(
    kind: signal.Signals,
    code: int,
    program: tuple[str, ...],
    count: int,
    clip: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    clips, out = tmp_path / "clips", tmp_path / "out.jsonl"
    clips.mkdir()
    for number in range(count):  # more than the model gets at a time
        (clips / f"{number:03d}.mp4").hardlink_to(clip)
    command = [*program, "caption", str(clips), "-m", "demo", "-o", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 60
    while not (out.exists() and out.stat().st_size) and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(kind)
    _, err = process.communicate(timeout=60)
    done = len(records(out))
    assert process.returncode == code and 0 < done < count
    # a machine that is slow to answer the first ones tells how far it is
    assert [line for line in err.splitlines() if f" of {count}" not in line] == [
        "finishing what is running; press Ctrl-C again to stop at once",
        f"{done} captioned, {count - done} left: run the same command to continue",
    ]
    assert caption(clips, "-o", out) == 0
    assert capsys.readouterr().err.endswith(f"{count - done} captioned, {done} done before\n")
    assert len(records(out)) == count


@pytest.mark.parametrize("program", [LIGHT, pytest.param(PROGRAM, marks=pytest.mark.slow)])
def test_killed_at_any_moment_and_resumed_nothing_is_lost_or_there_twice(
    program: tuple[str, ...], clip: Path, tmp_path: Path
) -> None:
    """`tests/benchmarks/kill.py` does it ten times on 300 clips."""
    clips, out = tmp_path / "clips", tmp_path / "out.jsonl"
    clips.mkdir()
    for number in range(100):
        (clips / f"{number:03d}.mp4").hardlink_to(clip)
    command = [*program, "caption", str(clips), "-m", "demo", "-o", str(out), "-q"]
    size = 0
    for more in (1, 5000, 20000):
        process = subprocess.Popen(command)
        while process.poll() is None and (out.stat().st_size if out.exists() else 0) < size + more:
            time.sleep(0.005)
        process.kill()
        process.wait()
        size = out.stat().st_size
    assert 0 < len(out.read_bytes().splitlines()) < 100
    assert caption(clips, "-o", out, "-q") == 0
    assert sorted(records(out)) == [f"{number:03d}.mp4" for number in range(100)]


def test_pictures_have_captions_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_picture(tmp_path / "square.png", scene(shape="square", x=0.5))
    out = tmp_path / "out.jsonl"
    assert caption(tmp_path / "square.png", "-o", out, "-q") == 0
    row = records(out)["square.png"]
    assert "square" in row["caption"] and row["frames"] is None
    assert caption(tmp_path / "square.png", "--every", "2") == 1
    assert "which has no windows" in capsys.readouterr().err


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_a_folder_of_pictures_or_of_both_has_a_record_for_each(
    clip: Path, tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if form == "parquet":
        pytest.importorskip("pyarrow")
    folder, out = tmp_path / "both", tmp_path / f"out.{form}"
    folder.mkdir()
    write_picture(folder / "square.png", scene(shape="square", x=0.5))
    (folder / "words.txt").write_text("no media")
    assert caption(folder, "-o", out) == 0
    shutil.copy(clip, folder / "circle.mp4")
    shutil.copy(folder / "square.png", folder / "circle.png")
    assert caption(folder, "-o", out, "--every", "1") == caption(folder, "-o", out) == 0
    assert capsys.readouterr().err == "1 captioned\n3 captioned\n2 captioned, 1 done before\n"
    assert caption(folder, "--sidecar", "txt") == 3, "circle.png has no file of its own"
    assert "square" in (folder / "square.txt").read_text() and "circle" in (folder / "circle.txt").read_text()
    (line,) = (folder / "llvid-captions.errors.jsonl").read_text().splitlines()
    assert json.loads(line)["video_path"] == str(folder / "circle.png")
