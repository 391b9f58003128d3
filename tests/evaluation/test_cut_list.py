"""The files that cut moments out name each video so that ffmpeg, a shell and an editor read it as it is."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

import pytest

from llava_video_cli.evaluation.cut_list import write_cuts
from llava_video_cli.runs.record import Record, path_to_text


def record(path: str, *starts: float, fps: float | None = 10.0) -> Record:
    moments = [
        {"query": "a cat", "start_seconds": start, "end_seconds": start + 1.5, "probability": 0.9} for start in starts
    ]
    return Record({"video_path": path_to_text(path), "moments": moments, "average_fps": fps})


def commands(path: Path) -> list[list[str]]:
    """Return the words of each command, as a shell reads them."""
    first, *rest = path.read_bytes().split(b"\n", 1)
    assert first == b"#!/bin/sh"
    words = shlex.split(os.fsdecode(rest[0]))
    starts = [number for number, word in enumerate(words) if word == "ffmpeg"]
    return [words[start:stop] for start, stop in zip(starts, [*starts[1:], len(words)], strict=True)]


@pytest.mark.parametrize(
    ("path", "given", "cut"),
    [
        ("a/b c.mkv", "a/b c.mkv", "b c-1.mp4"),
        ("$(ls) 'x'.mp4", "$(ls) 'x'.mp4", "$(ls) 'x'-1.mp4"),
        ("-x.mp4", "./-x.mp4", "./-x-1.mp4"),
        ("Film: One.mp4", "./Film: One.mp4", "./Film: One-1.mp4"),
        ("/a/Film: One.mp4", "/a/Film: One.mp4", "./Film: One-1.mp4"),
        ("caf\udce9.mp4", "caf\udce9.mp4", "caf-1.mp4"),
        ("a\nb.mp4", "a\nb.mp4", "a\nb-1.mp4"),
    ],
)
def test_a_command_names_the_file_whatever_its_name(path: str, given: str, cut: str, tmp_path: Path) -> None:
    write_cuts(tmp_path / "cuts.sh", [record(path, 2.0)])
    (words,) = commands(tmp_path / "cuts.sh")
    assert words[-2:] == [given, cut] and words[3:7] == ["-ss", "2.000000", "-t", "1.500000"]


def test_no_moment_replaces_another_and_each_video_s_are_in_order(tmp_path: Path) -> None:
    records = [record("a/x.mp4", 7.0, 2.0), record("b/x.mp4", 1.0, fps=None)]
    write_cuts(tmp_path / "cuts.sh", records)
    cuts = [(words[-2], words[4], words[-1]) for words in commands(tmp_path / "cuts.sh")]
    assert cuts == [
        ("a/x.mp4", "2.000000", "x-1.mp4"),
        ("a/x.mp4", "7.000000", "x-2.mp4"),
        ("b/x.mp4", "1.000000", "x-3.mp4"),
    ]
    write_cuts(tmp_path / "cuts.edl", records)
    edits = [line.split() for line in (tmp_path / "cuts.edl").read_text().splitlines() if line[:3].isdigit()]
    assert [edit[0] for edit in edits] == ["001", "002", "003"]
    assert [edit[4:] for edit in edits[:2]] == [
        ["00:00:02:00", "00:00:03:05", "00:00:00:00", "00:00:01:05"],
        ["00:00:07:00", "00:00:08:05", "00:00:01:05", "00:00:03:00"],
    ]


def test_a_name_has_one_line_of_an_edit_list(tmp_path: Path) -> None:
    write_cuts(tmp_path / "cuts.edl", [record("a\nb \x1b[31m\udce9.mp4", 0.0)])
    (line,) = (each for each in (tmp_path / "cuts.edl").read_text().splitlines() if each.startswith("*"))
    assert line.startswith("* FROM CLIP NAME: a b ") and line.isprintable() and line.endswith(".mp4")
