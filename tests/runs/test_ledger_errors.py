"""The failures beside an output file: whose they are, how long they stay, and what becomes of torn ones."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
from records import record

from llava_video_cli.errors import LlvidError, MediaError
from llava_video_cli.runs.ledger import Errors
from llava_video_cli.runs.record import Failure, Record


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
    again.append(Failure({"id": 1, "video": "a.mp4"}, LlvidError("a number")))
    again.append(Failure({"id": "1", "video": "a.mp4"}, LlvidError("a text")))
    again.succeeded(Record({"id": 1, "key": ""}))
    again.close()
    lines = [json.loads(line) for line in (tmp_path / "out.errors.jsonl").read_text().splitlines()]
    assert lines.pop()["error"] == "a text"
    assert {line["video_path"]: line["error"] for line in lines} == {"one.mp4": "still", "three.mp4": "c"}
    last = Errors(output)
    last.succeeded(Record({"id": "1", "key": ""}))
    for name in ("one.mp4", "three.mp4"):
        last.succeeded(record(name))
    last.close()
    assert not (tmp_path / "out.errors.jsonl").exists()


FOREIGN = b'{"error": "in my own words"}\n'
WORDS = b"milk, eggs"
OURS = b'{"video_path": "b.mp4", "error": "cut", "hint": null}\n'


def failed(name: str = "a.mp4") -> Failure:
    return Failure({"video_path": name}, LlvidError("broken"))


def errors_of(path: Path) -> list[str]:
    return [json.loads(line)["video_path"] for line in path.read_text().splitlines()]


MORE = b'{"video_path": "a.mp4", "error": "cut", "mine": 1}\n'


@pytest.mark.parametrize(
    "content", [FOREIGN, WORDS, MORE, b'{"a":' * 100_000 + b"\n"], ids=["foreign", "words", "more", "nested"]
)
def test_a_file_of_errors_of_somebody_else_is_left_alone(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "out.errors.jsonl").write_bytes(content)
    for failures in (1, 0):
        with Errors(tmp_path / "out.jsonl") as errors:
            assert errors.path == tmp_path / "out.jsonl.errors.jsonl"
            if failures:
                errors.append(failed())
            else:
                errors.succeeded(record("a.mp4"))
        assert errors.path.exists() == bool(failures)
        assert (tmp_path / "out.errors.jsonl").read_bytes() == content
    (tmp_path / "out.jsonl.errors.jsonl").write_bytes(FOREIGN)
    with pytest.raises(LlvidError, match="was not written by llvid"):
        Errors(tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl.errors.jsonl").read_bytes() == FOREIGN


def test_failures_of_a_list_of_pictures_are_ours(tmp_path: Path) -> None:
    names = {"id": "x", "video": ["1.png", "2.png"], "video_path": ["1.png", "2.png"]}
    with Errors(tmp_path / "out.jsonl") as errors:
        errors.append(Failure(names, MediaError("1.png ... 2.png: can't be opened")))
    with Errors(tmp_path / "out.jsonl") as errors:
        assert errors.path == tmp_path / "out.errors.jsonl"
        errors.succeeded(Record({"id": "x", "key": ""}))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("torn", [b'{"video_path": "to', OURS.strip()])
def test_a_failure_is_not_written_behind_a_torn_one(tmp_path: Path, torn: bytes) -> None:
    """A second run that is killed, too, leaves a file that the third one knows."""
    path = tmp_path / "out.errors.jsonl"
    path.write_bytes(OURS + torn)
    errors = Errors(tmp_path / "out.jsonl")
    errors.append(failed("a.mp4"))
    errors.append(failed("c.mp4"))
    assert errors_of(path) == ["b.mp4", "a.mp4", "c.mp4"]
    errors.close()
    assert errors_of(path) == ["b.mp4", "a.mp4", "c.mp4"]


def test_failures_that_can_not_be_written_are_an_error_of_a_run_without_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replace(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(Path, "replace", replace)
    for words in ("can't write .*: Input/output error", "the model is gone"):
        with pytest.raises(LlvidError, match=words), Errors(tmp_path / "out.jsonl") as errors:
            errors.append(failed())
            if "model" in words:
                raise LlvidError(words)
    assert errors_of(tmp_path / "out.errors.jsonl") == ["a.mp4", "a.mp4"]


def test_each_output_has_a_file_of_errors_of_its_own(tmp_path: Path) -> None:
    for name in ("x.jsonl", "x.csv", "x.parquet"):
        with Errors(tmp_path / name) as errors:
            errors.append(failed(f"{name}.mp4"))
    assert {path.name: errors_of(path) for path in tmp_path.iterdir()} == {
        "x.errors.jsonl": ["x.jsonl.mp4"], "x.csv.errors.jsonl": ["x.csv.mp4"],
        "x.parquet.errors.jsonl": ["x.parquet.mp4"],
    }  # fmt: skip
    with Errors(tmp_path / "x.csv.jsonl") as errors, pytest.raises(LlvidError, match="another run is writing"):
        Errors(tmp_path / "x.csv")


def test_a_file_of_errors_of_version_0_1_moves_to_its_table(tmp_path: Path) -> None:
    old = tmp_path / "x.errors.jsonl"
    old.write_bytes(OURS)
    (tmp_path / "x.csv").write_text("rows")
    (tmp_path / "x.parquet").write_text("rows")
    with Errors(tmp_path / "x.csv"):
        pass
    assert old.read_bytes() == OURS, "nothing was to be written"
    with Errors(tmp_path / "x.csv") as errors:
        errors.append(failed())
    assert errors_of(tmp_path / "x.csv.errors.jsonl") == ["b.mp4", "a.mp4"] and not old.exists()
    old.write_bytes(OURS)
    (tmp_path / "x.jsonl").touch()
    with Errors(tmp_path / "x.parquet") as errors:
        errors.append(failed())
    assert errors_of(errors.path) == ["a.mp4"] and old.read_bytes() == OURS, "those of x.jsonl, which has them still"


def test_a_file_of_errors_of_version_0_1_stays_beside_a_newer_one(tmp_path: Path) -> None:
    old = tmp_path / "x.errors.jsonl"
    for path in (old, tmp_path / "x.csv.errors.jsonl"):
        path.write_bytes(OURS)
    (tmp_path / "x.csv").write_text("rows")
    with Errors(tmp_path / "x.csv") as errors:
        errors.append(failed())
    assert errors_of(errors.path) == ["b.mp4", "a.mp4"] and old.read_bytes() == OURS


def test_failures_that_are_overwritten_stay_until_the_run_begins(tmp_path: Path) -> None:
    path = tmp_path / "x.errors.jsonl"
    path.write_bytes(OURS)
    with Errors(tmp_path / "x.jsonl", overwrite=True):
        pass
    assert path.read_bytes() == OURS
    with Errors(tmp_path / "x.jsonl", overwrite=True) as errors:
        errors.begin()
    assert not path.exists()
