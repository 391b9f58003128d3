"""A table that keeps some records by their scores: whatever happens, none is lost, and none stands in both files."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from llava_video_cli.errors import LlvidError, UsageError
from llava_video_cli.runs.record import Record
from llava_video_cli.runs.table import Where, open_table, parse_where, rest_path

LIKELY = Where("yes", ">", 0.5)


def record(number: int, yes: float | None) -> Record:
    scores = {} if yes is None else {"scores": {"yes": yes, "no": 1 - yes}}
    values: dict[str, Any] = {"video_path": f"{number}.mp4", "caption": "yes", **scores}
    settings = {"request_key": f"{number + 10**6:032x}"}
    return Record({**values, "settings": settings, "key": f"{number:032x}"})


def write(path: Path, *records: Record) -> None:
    path.write_text("".join(json.dumps(dict(each.values)) + "\n" for each in records))


def numbers(path: Path) -> list[int]:
    return sorted(int(json.loads(line)["key"], 16) for line in path.read_text().splitlines())


def sort(path: Path, where: Where | None, *new: Record, scored: bool = True) -> None:
    with open_table(path, scored=scored, where=where) as table:
        table.begin()
        for each in new:
            table.append(each)
        table.complete()


def test_records_go_to_their_files_and_move_with_the_condition(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    sort(out, LIKELY, *(record(n, n / 10) for n in range(10)))
    assert numbers(out) == [6, 7, 8, 9] and numbers(rest_path(out)) == [0, 1, 2, 3, 4, 5]
    sort(out, Where("no", ">=", 0.8))
    assert numbers(out) == [0, 1, 2] and numbers(rest_path(out)) == [3, 4, 5, 6, 7, 8, 9]
    sort(out, None)
    assert numbers(out) == list(range(10)) and not rest_path(out).exists()


def test_records_without_scores_do_not_meet_a_condition(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    write(out, record(1, None), record(2, 0.9))
    sort(out, LIKELY)
    assert numbers(out) == [2] and numbers(rest_path(out)) == [1]
    sort(out, None, record(3, None), scored=False)
    assert numbers(out) == [2, 3] and numbers(rest_path(out)) == [1], "a run without choices leaves it"


def test_what_stands_in_both_files_is_sorted_out(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    write(out, record(1, 0.9), record(2, 0.1), record(3, 0.2))
    write(rest_path(out), record(2, 0.1), record(1, 0.9))
    with open_table(out, where=LIKELY) as table:
        assert table.done == {f"{n:032x}" for n in (1, 2, 3)}
        table.begin()
    assert numbers(out) == [1] and numbers(rest_path(out)) == [2, 3]


def test_the_record_of_a_replaced_video_leaves_the_other_file(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    sort(out, LIKELY, record(1, 0.1), record(2, 0.9))
    new = Record({**record(1, 0.9).values, "key": "f" * 32})
    with open_table(out, where=LIKELY) as table:
        table.begin()
        table.append(new)
        assert table.replaced == 1
    assert numbers(out) == [2, int("f" * 32, 16)] and not rest_path(out).exists()


def test_a_record_that_has_moved_goes_when_its_video_is_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    sort(out, LIKELY, record(1, 0.9), record(2, 0.8))
    new = Record({**record(1, 0.99).values, "key": "f" * 32})
    with open_table(out, where=Where("yes", ">", 0.95)) as table:
        table.begin()
        moved = table.record_of(f"{10**6 + 2:032x}")
        assert moved is not None and moved.key == record(2, 0.8).key
        table.append(new)
        assert table.replaced == 1 and table.record_of("no such request") is None
    assert numbers(out) == [int("f" * 32, 16)] and numbers(rest_path(out)) == [2]


def test_both_files_are_overwritten_together_or_not_at_all(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    sort(out, LIKELY, record(1, 0.9), record(2, 0.1))
    for new, is_complete in (((), True), ((), False), ((record(3, 0.1),), False)):
        with open_table(out, overwrite=True, where=LIKELY) as table:
            table.begin({record(3, 0.1).key})
            for each in new:
                table.append(each)
            if is_complete:
                table.complete()
        assert numbers(out) == [1] and numbers(rest_path(out)) == [2], "there is nothing new, or the run was stopped"
    with open_table(out, overwrite=True, where=LIKELY) as table:
        table.begin({record(3, 0.1).key})
        table.complete()
    assert numbers(out) == [] and numbers(rest_path(out)) == [3]


def test_a_record_whose_video_can_not_be_read_any_more_goes_from_either_file(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    sort(out, LIKELY, record(1, 0.9), record(2, 0.1), record(3, 0.1))
    with open_table(out, where=LIKELY) as table:
        table.begin()
        for number in (1, 2):
            table.replace(f"{number + 10**6:032x}")
        assert table.replaced == 2
    assert numbers(out) == [] and numbers(rest_path(out)) == [3]


def test_what_moves_is_on_the_disk_before_it_leaves_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, events = tmp_path / "out.jsonl", list[object]()
    sort(out, LIKELY, record(1, 0.9), record(2, 0.1))
    rest = rest_path(out).stat().st_ino
    replace = Path.replace

    def replaced(path: Path, target: Path) -> Path:
        events.append(target.name)
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", replaced)
    monkeypatch.setattr(os, "fsync", lambda descriptor: events.append(os.fstat(descriptor).st_ino))
    sort(out, Where("yes", ">", 0.95))
    assert rest in events[: events.index("out.jsonl")]


def test_a_parquet_table_has_the_others_in_a_table_beside_it(tmp_path: Path) -> None:
    from pyarrow import parquet

    def rows(path: Path) -> list[str]:
        return sorted(parquet.read_table(path)["file"].to_pylist())

    more: dict[str, Any] = {
        "segments": [],
        "prompt": "?",
        "model": "demo",
        "finish_reason": "stop",
        "frames": None,
        "notes": [],
    }
    records = [Record({**more, "usage": {}, **record(n, n / 10).values}) for n in (1, 9)]
    out = tmp_path / "out.parquet"
    sort(out, LIKELY, *records)
    assert rows(out) == ["9.mp4"] and rows(rest_path(out)) == ["1.mp4"]
    sort(out, None)
    assert rows(out) == ["1.mp4", "9.mp4"] and not rest_path(out).exists()
    rest_path(out).write_text("mine")
    with pytest.raises(LlvidError, match=r"rest\.parquet is not a table of llvid"):
        sort(out, LIKELY)
    sort(out, None, Record({**records[0].values, "key": "f" * 32}))
    assert rest_path(out).read_text() == "mine" and len(rows(out)) == 2


def test_a_foreign_file_in_its_place_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    rest_path(out).write_text('{"mine": 1}\n')
    with pytest.raises(LlvidError, match="is not a record of llvid"):
        sort(out, LIKELY, record(1, 0.1))
    assert rest_path(out).read_text() == '{"mine": 1}\n' and not out.exists()


@pytest.mark.parametrize("kills", [3, pytest.param(12, marks=pytest.mark.slow)])
def test_kills_lose_no_record(tmp_path: Path, kills: int) -> None:
    out, count, draw = tmp_path / "out.jsonl", 1000, random.Random(1)
    write(out, *(record(n, (n % 100) / 100) for n in range(count)))
    program = (
        "import sys; from pathlib import Path; from llava_video_cli.runs.table import Where, open_table; "
        "print('go', flush=True); out, sign, value = sys.argv[1:]\n"
        "with open_table(Path(out), where=Where('yes', sign, float(value))) as table: table.begin()"
    )
    for number in range(kills):
        command = [sys.executable, "-c", program, str(out), ">" if number % 2 else "<", str(draw.random())]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
            assert running.stdout is not None and running.stdout.readline() == "go\n"
            time.sleep(draw.uniform(0, 0.2))
            running.kill()
        rest = rest_path(out)
        found = [line for path in (out, rest) if path.exists() for line in path.read_text().splitlines(keepends=True)]
        assert {json.loads(line)["key"] for line in found if line.endswith("\n")} == {f"{n:032x}" for n in range(count)}
    sort(out, LIKELY)
    assert len(numbers(out)) == 49 * 10 and len(numbers(rest_path(out))) == 51 * 10


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("yes>0.8", Where("yes", ">", 0.8)),
        (" a > b >= .5 ", Where("a > b", ">=", 0.5)),
        ("yes<=1e-3", Where("yes", "<=", 0.001)),
    ],
)
def test_conditions_are_read(text: str, where: Where) -> None:
    assert parse_where(text, ("yes", "no", "a > b")) == where


@pytest.mark.parametrize("text", ["yes", "yes=0.5", "yes>", "yes>x", ">0.5", "yes>0.5.5", "maybe>0.5", "yes>0.5 no<1"])
def test_what_is_no_condition_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--where"):
        parse_where(text, ("yes", "no"))
