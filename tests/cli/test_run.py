"""How far a run is: what its lines say, into a log file too."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from llava_video_cli.cli.app import run
from llava_video_cli.cli.run import Meter
from llava_video_cli.errors import MediaError
from llava_video_cli.runs.batches import RunPace
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
