"""The output file as a ledger: torn rows, foreign files, locks, full disks, and the failures beside it."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from records import ALL, record

from llava_video_cli.errors import LlvidError, UsageError
from llava_video_cli.runs import ledger
from llava_video_cli.runs.formats import Csv
from llava_video_cli.runs.ledger import Ledger
from llava_video_cli.runs.record import Record
from llava_video_cli.runs.table import open_table

FORMS = ["out.jsonl", "out.csv"]


def written(path: Path, count: int) -> bytes:
    with Ledger(path) as ledger:
        for each in ALL[:count]:
            ledger.append(each)
    return path.read_bytes()


@pytest.mark.parametrize("form", FORMS)
def test_what_stands_there_is_done(tmp_path: Path, form: str) -> None:
    path = tmp_path / form
    whole = written(path, len(ALL))
    with Ledger(path) as ledger:
        assert ledger.done == {each.key for each in ALL}
        assert [each.key for each in ledger.records()] == [each.key for each in ALL]
    assert path.read_bytes() == whole


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("form", FORMS)
def test_a_torn_last_row_is_cut_off_wherever_it_was_torn(tmp_path: Path, form: str, step: int) -> None:
    """Within the last two rows, and next to their ends: only whole records are left, and going on gives the whole file.

    By default at every seventh byte.
    """
    path = tmp_path / form
    whole = written(path, 6)
    ends = [len(written(tmp_path / f"{count}{form}", count)) for count in range(7)]
    near = {end + more for end in (0, ends[4], ends[5], ends[6]) for more in (-2, -1, 0, 1, 2)}
    for size in sorted({*range(0, 60, step), *range(ends[4], ends[6], step), *near} & {*range(ends[6])}):
        path.write_bytes(whole[:size])
        with Ledger(path) as ledger:
            left = sum(end <= size + 1 for end in ends[1:])  # a row that lacks only its line end is whole
            assert ledger.done == {each.key for each in ALL[:left]}, size
            for each in ALL[left:6]:
                ledger.append(each)
        assert path.read_bytes() == whole, size


def test_a_row_that_is_torn_at_a_line_end_within_a_cell_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "out.csv"
    whole = written(path, 1)
    row = Csv().encode(record(caption="Two\nlines.").values)
    path.write_bytes(whole + row[: row.index(b"\n") + 1])
    with Ledger(path) as opened:
        assert opened.done == {ALL[0].key}
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b"shopping\n"), ("a.jsonl", b"shopping"), ("a.jsonl", b'{"video_path": "a", "caption": "b"}\n'),
        ("a.jsonl", b'{"x": 1}'), ("a.csv", b"a,b\n1,2\n"), ("a.csv", b"a,b"), ("a.jsonl", b"\x00\xff\n"),
        ("a.jsonl", b"[]\n"), ("a.jsonl", b"[" * 100_000 + b"\n"), ("a.csv", b"video_path,caption\n"),
    ],
)  # fmt: skip
def test_a_file_that_is_none_of_ours_is_left_as_it_is(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(LlvidError, match="is not a record of llvid"):
        Ledger(path)
    assert path.read_bytes() == content
    with Ledger(path, overwrite=True) as ledger:
        ledger.begin()
        ledger.append(ALL[0])
        ledger.complete()
        assert path.read_bytes() == content, "until the run is complete"
    with Ledger(path) as ledger:
        assert ledger.done == {ALL[0].key}


@pytest.mark.parametrize("form", FORMS)
def test_what_is_overwritten_stays_until_the_new_is_there(tmp_path: Path, form: str) -> None:
    """The run is stopped, or killed at any moment; the next one with --overwrite goes on."""
    path = tmp_path / form
    old = written(path, 5)
    keys = {each.key for each in ALL}

    def overwrite(begin: int, end: int, *, complete: bool) -> None:
        with Ledger(path, overwrite=True) as ledger:
            assert ledger.done == {each.key for each in ALL[5:begin]}
            ledger.begin(keys)
            for each in ALL[begin:end]:
                ledger.append(each)
            assert path.read_bytes() == old
            if complete:
                ledger.complete()

    overwrite(5, 5, complete=True)
    assert path.read_bytes() == old and list(tmp_path.iterdir()) == [path], "there is nothing to take its place"
    overwrite(5, 8, complete=False)
    with Ledger(path) as ledger:
        assert ledger.done == {each.key for each in ALL[:5]}, "without --overwrite the old one counts"
    overwrite(8, 10, complete=True)
    with Ledger(path) as ledger:
        assert ledger.done == {each.key for each in ALL[5:10]}
    assert list(tmp_path.iterdir()) == [path]


def test_overwriting_goes_on_with_what_the_run_would_make(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    written(path, 1)
    with Ledger(path, overwrite=True) as ledger:
        for each in ALL[1:4]:
            ledger.append(each)
    with Ledger(path, overwrite=True) as ledger:
        ledger.begin({ALL[2].key, ALL[5].key})
        assert ledger.done == {ALL[2].key}
        ledger.append(ALL[5])
        ledger.complete()
    with Ledger(path) as ledger:
        assert [each.key for each in ledger.records()] == [ALL[2].key, ALL[5].key]


def test_an_exception_leaves_everything_as_it_was(tmp_path: Path) -> None:
    new, torn = tmp_path / "new.jsonl", tmp_path / "torn.jsonl"
    torn.write_bytes(written(torn, 2)[:-10])
    content = torn.read_bytes()
    for path in (new, torn):
        with pytest.raises(LlvidError), Ledger(path):
            raise LlvidError("the model can't be loaded")
    assert not new.exists() and torn.read_bytes() == content


def of_request(number: int, request: int) -> Record:
    made = record(f"{request}.mp4", number=number)
    return Record({**made.values, "settings": {"system": None, "request_key": f"{request:032x}"}})


@pytest.mark.parametrize("form", FORMS)
def test_the_record_of_a_replaced_video_goes(tmp_path: Path, form: str) -> None:
    path = tmp_path / form
    with Ledger(path) as ledger:
        for number in range(4):
            ledger.append(of_request(number, number))
        ledger.append(record("old", number=9))  # of version 0.1: without a request's key
    path.chmod(0o640)
    with Ledger(path) as ledger:
        ledger.append(of_request(10, 1))
        ledger.replace(of_request(0, 3).request_key)  # the new one can't be read
        ledger.replace(of_request(0, 7).request_key)
        assert ledger.replaced == 2 and ledger.done == {f"{n:032x}" for n in (0, 2, 9, 10)}
    with Ledger(path) as ledger:
        assert [int(each.key, 16) for each in ledger.records()] == [0, 2, 9, 10]
        assert ledger.replaced == 0
    assert path.stat().st_mode & 0o777 == 0o640 and list(tmp_path.iterdir()) == [path]


def test_a_row_is_on_the_disk_within_two_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    flush = os.fsync

    def fsync(descriptor: int) -> None:
        flush(descriptor)
        flushed.append(os.fstat(descriptor).st_size)

    monkeypatch.setattr(os, "fsync", fsync)
    path = tmp_path / "out.jsonl"
    with Ledger(path) as ledger:
        for each in ALL[:5]:
            ledger.append(each)
        size = path.stat().st_size
        until = time.monotonic() + 10
        while size not in flushed and time.monotonic() < until:
            time.sleep(0.05)
        assert size in flushed and len(flushed) <= 4, "once a second, not for each record; and the folder"
        ledger.append(ALL[5])
    assert path.stat().st_size in flushed, "at the end, too"


@pytest.mark.parametrize("late", [False, True])
def test_what_does_not_reach_the_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, late: bool) -> None:
    """Whether the flush fails at the end of the run or before: a run with exit code 0 has its records on the disk."""

    def fsync(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    path = tmp_path / "out.jsonl"
    written(path, 1)
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(LlvidError, match=r"can't write .+: Input/output error"), Ledger(path) as ledger:
        ledger.append(ALL[1])
        if not late:
            with pytest.raises(LlvidError):
                ledger.flush()
            with pytest.raises(LlvidError, match="Input/output error"):
                ledger.append(ALL[2])
            assert ledger.done == {each.key for each in ALL[:2]}


def test_the_name_of_a_file_is_on_the_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a new file, and of one that takes the place of another: its content first, then the folder."""
    path, flushed = tmp_path / "out.jsonl", list[tuple[bool, int]]()

    def fsync(descriptor: int) -> None:
        flushed.append((stat.S_ISDIR(os.fstat(descriptor).st_mode), path.read_bytes().count(b"\n")))

    monkeypatch.setattr(os, "fsync", fsync)
    assert written(path, 2) and flushed == [(False, 2), (True, 2)]
    flushed.clear()
    with Ledger(path, overwrite=True) as ledger:
        ledger.append(ALL[2])
        ledger.complete()
    assert flushed == [(False, 2), (True, 2), (False, 2), (True, 1)]


def test_what_ends_a_run_is_told_also_where_the_disk_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(LlvidError, match="the model is gone"), Ledger(tmp_path / "out.jsonl") as ledger:
        ledger.append(ALL[0])
        raise LlvidError("the model is gone")


@pytest.mark.parametrize("form", FORMS)
def test_a_torn_row_is_none_of_the_records(tmp_path: Path, form: str) -> None:
    path = tmp_path / form
    path.write_bytes(written(path, 3)[:-10])
    with Ledger(path) as ledger:
        assert [each.key for each in ledger.records()] == [each.key for each in ALL[:2]]


def test_output_through_a_link_keeps_the_link(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link = tmp_path / "out.jsonl"
    link.symlink_to("there/real.jsonl")
    for number in (0, 1):
        with Ledger(link, overwrite=bool(number)) as ledger:
            ledger.append(ALL[number])
            ledger.complete()
    assert link.is_symlink() and json.loads((tmp_path / "there" / "real.jsonl").read_text())["key"] == ALL[1].key


def test_a_file_that_another_run_replaces_while_this_one_begins_is_not_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was opened has no name any more: records in it would be lost."""
    path, new = tmp_path / "out.jsonl", tmp_path / "new.jsonl"
    content = written(path, 1)
    new.write_bytes(content)
    monkeypatch.setattr(ledger, "lock", lambda *_: new.replace(path))
    with pytest.raises(LlvidError, match="another run is writing"):
        Ledger(path)
    assert path.read_bytes() == content


def test_a_second_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    program = f"from llava_video_cli.runs.ledger import Ledger\nfrom pathlib import Path\nLedger(Path({str(path)!r}))"
    with Ledger(path):
        result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert f"another run is writing {path}" in result.stderr
    with Ledger(path):
        pass


@pytest.mark.parametrize("form", FORMS)
def test_a_full_disk_leaves_whole_records(tmp_path: Path, form: str) -> None:
    """A limit on the size of files is met as a full disk is: in the middle of a row."""
    path = tmp_path / form
    size = len(written(tmp_path / f"4{form}", 4))
    program = f"""
import resource, signal, sys
from pathlib import Path
from records import ALL
from llava_video_cli.errors import LlvidError
from llava_video_cli.runs.ledger import Ledger
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({size + 100}, {size + 100}))
with Ledger(Path({str(path)!r})) as ledger:
    try:
        for each in ALL:
            ledger.append(each)
    except LlvidError as error:
        print(error, error.hint, sep="|")
"""
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[1]
    )
    assert result.stdout.startswith(f"can't write {path}: File too large|earlier records are complete")
    assert path.read_bytes() == (tmp_path / f"4{form}").read_bytes()


@pytest.mark.parametrize(
    ("name", "kind"), [(".", LlvidError), ("no/such/out.jsonl", LlvidError), ("fifo.jsonl", UsageError)]
)
def test_what_can_not_be_an_output(tmp_path: Path, name: str, kind: type[LlvidError]) -> None:
    path = tmp_path / name
    if name.startswith("fifo"):
        os.mkfifo(path)
    if name == ".":
        (tmp_path / "d.jsonl").mkdir()
        path = tmp_path / "d.jsonl"
    with pytest.raises(kind):
        Ledger(path)


def test_a_parquet_file_of_somebody_else_is_left_as_it_is(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "mine.parquet"
    parquet.write_table(arrow.table({"file": ["a.mp4"], "mine": [1]}), path)
    content = path.read_bytes()
    with pytest.raises(LlvidError, match="is not a table of llvid"), open_table(path):
        pass
    with pytest.raises(LlvidError, match="no model"), open_table(path, overwrite=True):
        raise LlvidError("no model")
    assert path.read_bytes() == content and list(tmp_path.iterdir()) == [path]
    with open_table(path, overwrite=True) as ledger:
        ledger.append(ALL[0])
        assert path.read_bytes() == content
        ledger.complete()
    assert parquet.read_table(path)["key"].to_pylist() == [ALL[0].key]
    with open_table(path, overwrite=True) as ledger:
        ledger.begin()
        ledger.append(ALL[1])  # the run is stopped
    assert parquet.read_table(path)["key"].to_pylist() == [ALL[0].key]
    with open_table(path) as ledger:
        ledger.append(ALL[2])
    assert parquet.read_table(path)["key"].to_pylist() == [ALL[0].key, ALL[2].key]
    before = path.stat().st_mtime_ns
    with open_table(path) as ledger:
        assert len(ledger.done) == 2
    assert path.stat().st_mtime_ns == before, "nothing new"
    with Ledger(tmp_path / "mine.parquet.jsonl") as ledger:
        ledger.append(ALL[3])  # and the process was killed
    with open_table(path):
        pass
    assert parquet.read_table(path).num_rows == 3
    (tmp_path / "mine.parquet.jsonl").unlink()
    with pytest.raises(LlvidError, match="has lost its records"), open_table(path):
        pass


@pytest.mark.parametrize("form", [".jsonl", ".csv"])
@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_file_that_is_removed_or_replaced_during_the_run_is_an_error(
    tmp_path: Path, form: str, *, is_replaced: bool
) -> None:
    path, other = tmp_path / f"out{form}", tmp_path / "other"

    def lose() -> None:
        path.unlink()
        if is_replaced:
            other.write_bytes(b"theirs")
            other.replace(path)

    with pytest.raises(LlvidError, match=r"out\S+ was removed or replaced"), Ledger(path) as output:
        output.append(record("a.mp4"))
        lose()
        with pytest.raises(LlvidError, match="was removed or replaced"):
            output.append(record("b.mp4"))
    assert path.exists() == is_replaced, "at the end of the run too"
    path.unlink(missing_ok=True)
    with pytest.raises(LlvidError, match="was removed or replaced"), Ledger(path) as output:
        output.append(record("a.mp4"))
        output.forget(output.done)
        lose()
