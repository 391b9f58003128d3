"""The output file as a ledger: torn rows, foreign files, locks, full disks, and the failures beside it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from records import ALL, record

from llava_video_cli.errors import LlvidError, UsageError
from llava_video_cli.runs.ledger import Errors, Ledger
from llava_video_cli.runs.record import Failure

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


@pytest.mark.parametrize("form", FORMS)
def test_a_torn_last_row_is_cut_off_wherever_it_was_torn(tmp_path: Path, form: str) -> None:
    """At every byte of the last two rows: only whole records are left, and going on gives the whole file again."""
    path = tmp_path / form
    whole = written(path, 6)
    ends = [len(written(tmp_path / f"{count}{form}", count)) for count in range(7)]
    for size in [*range(60), *range(ends[4], ends[6])]:
        path.write_bytes(whole[:size])
        with Ledger(path) as ledger:
            left = sum(end <= size + 1 for end in ends[1:])  # a row that lacks only its line end is whole
            assert ledger.done == {each.key for each in ALL[:left]}, size
            for each in ALL[left:6]:
                ledger.append(each)
        assert path.read_bytes() == whole, size


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", b"shopping\n"), ("a.jsonl", b"shopping"), ("a.jsonl", b'{"video_path": "a", "caption": "b"}\n'),
        ("a.jsonl", b'{"x": 1}'), ("a.csv", b"a,b\n1,2\n"), ("a.csv", b"a,b"), ("a.jsonl", b"\x00\xff\n"),
        ("a.jsonl", b"[]\n"), ("a.csv", b"video_path,caption\n"),
    ],
)  # fmt: skip
def test_a_file_that_is_none_of_ours_is_left_as_it_is(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(LlvidError, match="is not a record of llvid"):
        Ledger(path)
    assert path.read_bytes() == content
    with Ledger(path, overwrite=True) as ledger:
        assert path.read_bytes() == content, "until the run begins"
        ledger.begin()
        ledger.append(ALL[0])
    with Ledger(path) as ledger:
        assert ledger.done == {ALL[0].key}


def test_overwriting_begins_with_the_first_record_at_the_latest(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    written(path, 5)
    with Ledger(path, overwrite=True) as ledger:
        ledger.begin()
        assert path.read_bytes() == b""


def test_a_second_run_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "out.jsonl"
    program = f"from llava_video_cli.runs.ledger import Ledger\nfrom pathlib import Path\nLedger(Path({str(path)!r}))"
    with Ledger(path):
        result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert f"another run is writing {path}" in result.stderr
    subprocess.run([sys.executable, "-c", program], check=True)


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
    import os

    path = tmp_path / name
    if name.startswith("fifo"):
        os.mkfifo(path)
    if name == ".":
        (tmp_path / "d.jsonl").mkdir()
        path = tmp_path / "d.jsonl"
    with pytest.raises(kind):
        Ledger(path)


def test_failures_are_kept_until_they_are_tried_again(tmp_path: Path) -> None:
    def failure(name: str, words: str) -> Failure:
        return Failure({"video_path": name}, LlvidError(words, "hint" if words == "b" else None))

    output = tmp_path / "out.jsonl"
    errors = Errors(output)
    errors.append(failure("one.mp4", "a"))
    errors.append(failure("two.mp4", "b"))
    errors.append(failure("three.mp4", "c"))
    errors.close()
    with errors.path.open("ab") as file:
        file.write(b'{"video_path": "torn')
    again = Errors(output)
    again.append(failure("one.mp4", "still"))
    again.succeeded(record("two.mp4"))
    again.close()
    lines = [json.loads(line) for line in (tmp_path / "out.errors.jsonl").read_text().splitlines()]
    assert {line["video_path"]: line["error"] for line in lines} == {"one.mp4": "still", "three.mp4": "c"}
    last = Errors(output)
    for name in ("one.mp4", "three.mp4"):
        last.succeeded(record(name))
    last.close()
    assert not (tmp_path / "out.errors.jsonl").exists()
