"""Records in parts: each whole, what stands there is done, and nothing twice."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llava_video_cli import MediaError
from llava_video_cli.errors import LlvidError
from llava_video_cli.runs import parts as parts_module
from llava_video_cli.runs.parts import PartErrors, PartFiles, is_folder
from llava_video_cli.runs.record import Failure, Record


def record(number: int) -> Record:
    values: dict[str, Any] = {
        "video_path": f"{number}.mp4", "caption": "A circle.", "segments": [], "prompt": "?", "model": "demo",
        "finish_reason": "stop", "frames": None, "notes": [], "usage": {}, "settings": {}, "key": f"{number:032x}",
    }  # fmt: skip
    return Record(values)


@pytest.mark.parametrize("name", ["parts", "parts.parquet"])
@pytest.mark.parametrize("scheme", ["", "local://"])
def test_what_stands_in_parts_is_done(name: str, scheme: str, tmp_path: Path) -> None:
    place = f"{scheme}{tmp_path}/{name}/"
    for begin in (0, 3):
        with PartFiles(place) as parts:
            assert parts.done == {record(number).key for number in range(begin)}
            parts.begin()
            for number in range(begin, begin + 3):
                parts.append(record(number))
            assert len(list((tmp_path / name).glob("part-*"))) == begin // 3, "a part is written once it is whole"
    with PartFiles(place) as parts:
        assert parts.done == {record(number).key for number in range(6)}
    with PartFiles(place, overwrite=True) as parts:
        parts.begin()
        parts.complete()
    assert len(list((tmp_path / name).glob("part-*"))) == 2, "there is nothing to take their place"
    with PartFiles(place, overwrite=True) as parts:
        assert parts.done == set()
        parts.begin()
        parts.append(record(0))
        parts.flush()
        assert len(list((tmp_path / name).glob("part-*"))) == 3, "the old ones go when the run is complete, not before"
        parts.complete()
    with PartFiles(place) as parts:
        assert parts.done == {record(0).key}


@pytest.mark.skipif(sys.platform == "win32", reason="folders can't be locked there")
def test_a_second_run_is_refused(tmp_path: Path) -> None:
    program = f"from llava_video_cli.runs.parts import PartFiles\nPartFiles({str(tmp_path)!r})"
    with PartFiles(str(tmp_path)):
        result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert f"another run is writing {tmp_path}/" in result.stderr
    with PartFiles(str(tmp_path)):
        pass


@pytest.mark.parametrize("name", ["parts", "parts.parquet"])
def test_a_part_is_on_the_disk_before_it_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    flushed: list[list[str]] = []
    folder = tmp_path / name
    monkeypatch.setattr(os, "fsync", lambda _: flushed.append(sorted(path.name[:5] for path in folder.iterdir())))
    with PartFiles(f"{folder}/") as parts:
        parts.begin()
        parts.append(record(0))
    assert flushed == [[".part"], ["part-"]], "the part, then the folder"


def test_a_part_is_written_when_it_is_full(tmp_path: Path) -> None:
    with PartFiles(str(tmp_path / "parts")) as parts:
        parts.begin()
        for number in range(5001):
            parts.append(record(number))
        (part,) = (tmp_path / "parts").iterdir()
        assert len(part.read_text().splitlines()) == 5000


def test_a_part_is_written_every_minute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr(parts_module, "time", SimpleNamespace(monotonic=lambda: now))
    with PartFiles(str(tmp_path / "parts")) as parts:
        parts.begin()
        written = []
        for number, seconds in enumerate((59, 2, 59, 2)):
            now += seconds
            parts.append(record(number))
            assert record(number).key in parts.done
            written.append(len(list((tmp_path / "parts").iterdir())))
    assert written == [0, 1, 1, 2]


def written(place: Path, number: int, *, complete: bool, overwrite: bool = False) -> list[str]:
    """Write a record; return those that stand there then."""
    with PartFiles(f"{place}/", overwrite=overwrite) as parts:
        parts.begin()
        parts.append(record(number))
        if complete:
            parts.complete()
    rows = [line for path in place.iterdir() if path.is_file() for line in path.read_text().splitlines()]
    return sorted(json.loads(row)["video_path"] for row in rows)


def test_parts_go_only_when_a_run_that_overwrites_them_is_complete(tmp_path: Path) -> None:
    place = tmp_path / "new" / "parts"
    assert written(place, 0, complete=True) == ["0.mp4"]
    assert written(place, 1, complete=True) == ["0.mp4", "1.mp4"]
    assert written(place, 2, complete=False, overwrite=True) == ["0.mp4", "1.mp4", "2.mp4"]
    (place / "folder.jsonl").mkdir()
    assert written(place, 3, complete=True, overwrite=True) == ["3.mp4"]


def test_a_part_has_the_scores_of_all_its_records(tmp_path: Path) -> None:
    from pyarrow import parquet

    with PartFiles(f"{tmp_path}/scored.parquet") as parts:
        parts.begin()
        parts.append(record(0))
        parts.append(Record({**record(1).values, "scores": {"yes": 0.25}}))
    (part,) = (tmp_path / "scored.parquet").iterdir()
    assert parquet.read_table(part)["scores"].to_pylist() == [None, {"yes": 0.25}]


def test_failures_stand_beside_the_parts_as_long_as_there_are_any(tmp_path: Path) -> None:
    for failures in ([Failure({"video_path": "a.mp4"}, MediaError("cut"))], []):
        with PartFiles(f"{tmp_path}/") as parts:
            errors = PartErrors(parts)
            for failure in failures:
                errors.append(failure)
            errors.close()
        path = tmp_path / "_errors.jsonl"
        if failures:
            assert json.loads(path.read_text())["error"] == "cut" and errors.path == str(path)
        else:
            assert not path.exists()


def test_a_folder_is_told_from_a_file(tmp_path: Path) -> None:
    assert is_folder(str(tmp_path)) and is_folder("new/") and is_folder("s3://bucket/name")
    assert not is_folder("new.jsonl")


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["part-1.jsonl", "part-00000-abc.snappy.parquet", "data.parquet", "_errors.jsonl"])
def test_a_folder_of_somebody_else_is_left_as_it_is(tmp_path: Path, name: str, overwrite: bool) -> None:
    (tmp_path / name).write_text("no record\n")
    with (
        pytest.raises(LlvidError, match=r"can't be used for records: .+ was not written by llvid"),
        PartFiles(f"{tmp_path}/", overwrite=overwrite) as to,
    ):
        PartErrors(to)
    assert [path.name for path in tmp_path.iterdir()] == [name] and (tmp_path / name).read_text() == "no record\n"
    (tmp_path / name).unlink()
    with PartFiles(f"{tmp_path}/"):
        pass  # it is not locked any more


def test_parts_that_are_none_are_one_line(tmp_path: Path) -> None:
    (tmp_path / "part-0123abcd-00000.jsonl").write_text("no record\n")
    with pytest.raises(LlvidError, match="can't be used for records"):
        PartFiles(str(tmp_path))


def test_a_folder_that_is_made_for_nothing_is_taken_away(tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    for name in ("old", "new"):
        with PartFiles(f"{tmp_path}/{name}/"):
            pass
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
