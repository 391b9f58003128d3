"""How far a run is: what its lines say, into a log file too."""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from light_program import LIGHT
from terminal import scene

from llava_video_cli.cli.app import run
from llava_video_cli.cli.run import Meter
from llava_video_cli.demo.world import write_clip
from llava_video_cli.errors import MediaError
from llava_video_cli.runs.answers import RunPace
from llava_video_cli.runs.formats import table_format
from llava_video_cli.runs.record import Failure, Record


def test_captions_that_were_cut_off_are_counted(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "b.mp4").hardlink_to(clip)
    command = ["caption", str(clip), str(tmp_path / "b.mp4"), "-m", "demo", "-o", str(tmp_path / "o.jsonl")]
    assert run([*command, "--max-new-tokens", "3"]) == 0
    assert capsys.readouterr().err == "2 captioned (2 cut off: --max-new-tokens was reached)\n"
    assert run(command) == 0
    assert capsys.readouterr().err == "2 captioned\n", "nothing of those that end by themselves"


def test_a_log_file_gets_a_line_now_and_then(capsys: pytest.CaptureFixture[str]) -> None:
    meter = Meter(3, "videos", RunPace(), quiet=False)
    with meter.lines(0.3, 0.6):
        time.sleep(0.4)  # nothing is done yet: a model loads, or the first video is long
        meter.count(Record({"key": ""}))
        meter.count(Failure({}, MediaError("cut")))
        time.sleep(0.8)
    time.sleep(0.8)
    first, *others = capsys.readouterr().err.splitlines()
    assert first == "0 of 3" and 1 <= len(others) <= 2
    assert others[0].startswith("2 of 3, 1 failed, ") and others[0].endswith(" left")
    with Meter(3, "videos", RunPace(), quiet=True).lines(0.1, 0.1):
        time.sleep(0.4)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("name", ["mine.jsonl", "mine.csv", "mine.parquet"])
def test_a_file_of_somebody_else_is_refused_untouched(clip: Path, tmp_path: Path, name: str) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / name
    if path.suffix == ".parquet":
        parquet.write_table(arrow.table({"file": ["a.mp4"], "caption": ["Mine."]}), path)
    else:
        path.write_text('{"file": "a.mp4", "key": "of my own"}\n' if path.suffix == ".jsonl" else "file,key\na,b\n")
    (tmp_path / "mine.errors.jsonl").write_text('{"error": "mine"}\n')
    before = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    command = ["caption", str(clip), "-o", str(path)]
    assert run([*command, "-m", "demo"]) == 1
    assert run([*command, "-m", "/nonexistent", "--overwrite"]) == 1
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == before
    assert run([*command, "-m", "demo", "--overwrite"]) == 0
    assert path.read_bytes() != before[name] and not list(tmp_path.glob(".*"))
    assert (tmp_path / "mine.errors.jsonl").read_bytes() == before["mine.errors.jsonl"]


def test_a_run_whose_model_cannot_be_loaded_writes_nothing(clip: Path, tmp_path: Path) -> None:
    for name in ("new.jsonl", "new.csv", "new.parquet"):
        assert run(["caption", str(clip), "-o", str(tmp_path / name), "-m", "/nonexistent"]) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_the_caption_of_a_replaced_video_goes_and_that_is_said(
    clip: Path, tmp_path: Path, form: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if form == "parquet":
        pytest.importorskip("pyarrow")
    monkeypatch.chdir(tmp_path)
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        shutil.copy(clip, name)
    command = ["caption", ".", "-m", "demo", "-o", f"out.{form}"]
    assert run(command) == 0
    write_clip(Path("a.mp4"), scene(shape="square"))
    Path("b.mp4").write_bytes(b"cut")
    capsys.readouterr()
    assert run(command) == 3
    summary, replaced = capsys.readouterr().err.splitlines()
    assert summary.startswith("1 captioned, 1 done before, 1 failed (see")
    assert replaced == "older records removed, because their videos were replaced: 2"
    ledger = Path(f"out.{form}.jsonl" if form == "parquet" else f"out.{form}")
    rows = table_format(ledger)
    found = [rows.decode(row) for row in rows.split(io.BytesIO(ledger.read_bytes())) if row != rows.header]
    assert {row["video_path"]: "square" in row["caption"] for row in found} == {"./a.mp4": True, "./c.mp4": False}
    assert len(found) == 2


def test_a_killed_run_that_overwrites_leaves_the_old_rows(clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    for number in range(40):  # more than the model gets at a time
        (tmp_path / f"{number:03d}.mp4").hardlink_to(clip)
    command = ["caption", str(tmp_path), "-m", "demo", "-o", str(out), "-q"]
    assert run(command) == 0
    old = out.read_bytes()
    command += ["--overwrite", "--frames", "4"]
    process = subprocess.Popen([*LIGHT, *command])
    until = time.monotonic() + 60
    while not any(path.stat().st_size for path in tmp_path.glob(".llvid-*")) and time.monotonic() < until:
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert out.read_bytes() == old
    assert run(command) == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 40 and {row["frames"]["count"] for row in rows} == {4} and not list(tmp_path.glob(".llvid-*"))
