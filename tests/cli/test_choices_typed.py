"""Choices, prefills and their exit code, as a user types them."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from terminal import llvid, scene

from llava_video_cli.cli.app import run
from llava_video_cli.demo.world import write_clip

QUESTION = "Does the video show a {}?"
SHAPES = ("circle", "square", "triangle")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips with their shapes as names."""
    base = tmp_path_factory.mktemp("clips")
    for shape in SHAPES:
        write_clip(base / f"{shape}.mp4", scene(shape=shape))
    return base


def names(path: Path) -> set[str]:
    return {Path(json.loads(line)["video_path"]).stem for line in path.read_text().splitlines()}


@pytest.fixture
def capsys_json(capsys: pytest.CaptureFixture[str]) -> Any:
    def read(*arguments: str) -> list[dict[str, Any]]:
        assert run([*arguments, "--json", "-q"]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return read


def test_the_answer_is_the_likeliest_choice_and_json_has_the_probabilities(clip: Path, capsys_json: Any) -> None:
    questions = [QUESTION.format("circle"), QUESTION.format("square")]
    yes, no = capsys_json("ask", str(clip), *questions, "-m", "demo", "--choices", "yes, no")
    assert (yes["answer"], no["answer"]) == ("yes", "no") and yes["finish_reason"] == "stop"
    assert list(yes["scores"]) == ["yes", "no"] and sum(yes["scores"].values()) == pytest.approx(1)
    assert yes["scores"]["yes"] > 0.9 and no["scores"]["no"] > 0.9
    assert yes["settings"]["generation"]["choices"] == ["yes", "no"]
    (texts,) = capsys_json(
        "ask", str(clip), "Which way does it move?", "-m", "demo", "--prefill", "It ",
        *("--choice", "moves right, fast", "--choice", "moves right.", "--choice", "moves left."),
    )  # fmt: skip
    assert texts["answer"] == "moves right." and next(iter(texts["scores"])) == "moves right, fast"


def test_choices_come_from_presets_conversations_and_chats(
    clip: Path, tmp_path: Path, capsys_json: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    preset = tmp_path / "yesno.yaml"
    preset.write_text("about: a test\nmodel: demo\ngeneration: {choices: 'yes,no', max_new_tokens: 64}\n")
    (record,) = capsys_json("ask", str(clip), QUESTION.format("circle"), "-p", str(preset))
    assert record["answer"] == "yes"
    (record,) = capsys_json("ask", str(clip), "What shape is it?", "-p", str(preset), "--choices", "")
    assert record["answer"] == "It is a circle." and "scores" not in record
    talk = tmp_path / "talk.json"
    content = [{"type": "video", "path": str(clip)}, {"type": "text", "text": QUESTION.format("square")}]
    messages = [{"role": "user", "content": content}]
    talk.write_text(json.dumps({"model": "demo", "generation": {"choices": ["yes", "no"]}, "messages": messages}))
    (record,) = capsys_json("ask", "--messages", str(talk))
    assert record["answer"] == "no" and record["scores"]["no"] > 0.9
    lines = (
        f"/set choices yes,no\n{QUESTION.format('circle')}\n/set choices none\n/set prefill It is\nWhat shape is it?\n"
    )
    monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
    chosen, free = capsys_json("chat", str(clip), "-m", "demo")
    assert chosen["answer"] == "yes" and free["answer"] == "It is a circle." and "scores" not in free


def test_a_prefill_begins_the_answer(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ask", str(clip), "What shape is it?", "-m", "demo", "-q", "--prefill", "It is not a "]) == 0
    assert capsys.readouterr().out.startswith("It is not a ")


def test_windows_keep_choices_and_prefills_for_the_last_answer(clip: Path, capsys_json: Any) -> None:
    (record,) = capsys_json(
        "ask", str(clip), QUESTION.format("circle"), "-m", "demo", "--windows", "1", "--choices", "yes,no"
    )
    assert record["answer"] in ("yes", "no") and set(record["scores"]) == {"yes", "no"}
    assert len(record["segments"]) == 2 and not {each["text"] for each in record["segments"]} & {"yes", "no"}


@pytest.mark.parametrize(("what", "code"), [("circle", 0), ("square", 1)])
def test_exit_code_is_the_choice(clip: Path, what: str, code: int) -> None:
    question = QUESTION.format(what)
    assert run(["ask", str(clip), question, "-m", "demo", "--choices", "yes,no", "--exit-code", "-q"]) == code


@pytest.mark.parametrize(
    "arguments",
    [
        ["{clip}", "Why?", "--exit-code"],
        ["{clip}", "Why?", "--exit-code", "--choices", "a,b,c"],
        ["{clip}", "Why?", "Who?", "--exit-code", "--choices", "a,b"],
        ["gone.mp4", "Why?", "--exit-code", "--choices", "a,b"],
        ["{clip}", "Why?", "--exit-code", "--choices", "a,b", "--frames", "5000"],
        ["{clip}", "Why?", "--exit-code", "--choices", "a,b", "--frames", "x"],
    ],
)
def test_each_failure_is_2(clip: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ask", *(each.format(clip=clip) for each in arguments), "-m", "demo"]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and captured.err.startswith("error: ")


@pytest.mark.slow
def test_an_answer_that_cannot_be_written_is_2(clip: Path) -> None:
    arguments = ["ask", str(clip), QUESTION.format("circle"), "-m", "demo", "--choices", "yes,no", "--exit-code"]
    command = [sys.executable, "-m", "llava_video_cli", *arguments]
    with open("/dev/full", "w") as full:  # noqa: PTH123 - a device
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=120, check=False)
    assert done.returncode == 2 and "can't write the answer" in done.stderr
    assert llvid(*arguments, "--frames", "x").returncode == 2


def test_where_keeps_rows_and_another_one_sorts_them_without_a_model(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, rest = tmp_path / "out.jsonl", tmp_path / "out.rest.jsonl"
    prompt = QUESTION.format("square")
    command = ["caption", str(folder), "-o", str(out), "--prompt", prompt, "--choices", "yes,no"]
    known = [*command, "-m", "demo"]
    assert run([*known, "--where", "yes>0.8"]) == 0
    assert names(out) == {"square"} and names(rest) == {"circle", "triangle"}
    record = json.loads(out.read_text())
    assert record["caption"] == "yes" and record["scores"]["yes"] > 0.8
    capsys.readouterr()
    assert run([*known, "--where", "no >= 0.5"]) == 0
    assert names(out) == {"circle", "triangle"} and names(rest) == {"square"}
    assert "0 captioned, 3 done before" in capsys.readouterr().err
    assert run(known) == 0
    assert names(out) == set(SHAPES) and not rest.exists()
    assert run([*known, "--where", "yes>2"]) == 0
    assert out.read_text() == "" and names(rest) == set(SHAPES)
    write_clip(folder / "circle.mp4", scene(shape="square", seed=2))  # replaced: its record moves to the other file
    try:
        assert run([*known, "--where", "yes>0.8"]) == 0
        assert names(out) == {"square", "circle"} and names(rest) == {"triangle"}
    finally:
        write_clip(folder / "circle.mp4", scene(shape="circle"))


def test_nothing_is_loaded_where_all_is_answered(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    command = ["caption", str(folder), "-o", str(out), "-m", "demo", "--choices", "yes,no"]
    command += ["--prompt", QUESTION.format("square")]
    assert run([*command, "--where", "yes>0.8"]) == 0
    code = (
        "import sys; from llava_video_cli.cli.app import run; code = run(sys.argv[1:]); "
        "sys.exit(str({'torch', 'transformers'} & set(sys.modules)) if code == 0 else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *command, "--where", "yes<0.8"], capture_output=True, text=True, check=False
    )
    assert done.stderr.endswith("set()\n"), done.stderr
    assert names(out) == {"circle", "triangle"}


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_where_sorts_the_other_formats_too(form: str, folder: Path, tmp_path: Path) -> None:
    out, rest = tmp_path / f"out.{form}", tmp_path / f"out.rest.{form}"

    def read(path: Path) -> dict[str, float]:
        if form == "csv":
            with path.open(newline="") as file:
                rows = list(csv.DictReader(file))
            return {Path(row["video_path"]).stem: json.loads(row["scores"])["yes"] for row in rows}
        parquet = pytest.importorskip("pyarrow.parquet")
        return {Path(row["file"]).stem: row["scores"]["yes"] for row in parquet.read_table(path).to_pylist()}

    command = ["caption", str(folder), "-o", str(out), "-m", "demo", "--choices", "yes,no", "-q"]
    command += ["--prompt", QUESTION.format("square")]
    assert run([*command, "--where", "yes>0.8"]) == 0
    assert set(read(out)) == {"square"} and set(read(rest)) == {"circle", "triangle"}
    assert run([*command, "--where", "yes<0.8"]) == 0
    assert set(read(out)) == {"circle", "triangle"} and set(read(rest)) == {"square"}
    assert run(command) == 0
    assert set(read(out)) == set(SHAPES) and not rest.exists()


def test_where_with_overwrite_replaces_both_files(folder: Path, tmp_path: Path) -> None:
    out, rest = tmp_path / "out.jsonl", tmp_path / "out.rest.jsonl"
    command = ["caption", str(folder), "-o", str(out), "-m", "demo", "--choices", "yes,no", "-q", "--where", "yes>0.8"]
    assert run([*command, "--prompt", QUESTION.format("square")]) == 0
    assert run([*command, "--prompt", QUESTION.format("star"), "--overwrite"]) == 0
    assert names(out) == set() and names(rest) == set(SHAPES)
    assert all("star" in json.loads(line)["prompt"] for line in rest.read_text().splitlines())


def test_windows_of_a_video_have_scores_of_their_own(clip: Path, tmp_path: Path) -> None:
    for form in ("jsonl", "srt"):
        out = tmp_path / f"out.{form}"
        command = ["caption", str(clip), "-o", str(out), "-m", "demo", "--choices", "yes,no", "--every", "1", "-q"]
        assert run([*command, "--prompt", QUESTION.format("circle")]) == 0
    record = json.loads((tmp_path / "out.jsonl").read_text())
    assert record["caption"] == "yes yes"
    yes = [each["scores"]["yes"] for each in record["segments"]]
    assert record["scores"]["yes"] == pytest.approx(sum(yes) / 2) and len(yes) == 2
    assert "yes" in out.read_text()


def test_conditions_and_choices_that_make_no_sense_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["caption", str(folder), "-m", "demo"]
    out = ["-o", str(tmp_path / "out.jsonl")]
    for more, words in (
        ([*out, "--where", "yes>0.8"], "hint: use --choices"),
        ([*out, "--where", "yse>0.8", "--choices", "yes,no"], "did you mean 'yes'?"),
        ([*out, "--where", "yes=0.8", "--choices", "yes,no"], "must be a choice, one of >= <= > <"),
        (["--json", "--where", "yes>0.8", "--choices", "yes,no"], "where needs a table"),
        ([*out, "--where", "yes>0.8", "--choices", "yes,no", "--sidecar", "txt"], "where needs a table"),
        ([*out, "--choices", "yes"], "from 2 to 100"),
        ([*out, "--choices", "yes,no", "--temperature", "0.5"], "temperature must be 0 with choices"),
    ):
        assert run([*command, *more]) == 2
        assert words in capsys.readouterr().err
    assert not (tmp_path / "out.jsonl").exists()


def test_batch_lines_have_choices_and_prefills(clip: Path, tmp_path: Path) -> None:
    requests, out = tmp_path / "requests.jsonl", tmp_path / "out.jsonl"
    base = {"video": str(clip), "question": QUESTION.format("circle")}
    lines = [
        {**base, "choices": ["yes", "no"]},
        {**base, "choices": "no,yes", "length_normalized": True},
        {**base, "question": "What shape is it?", "prefill": "It is not a"},
        base,
    ]
    requests.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run(["batch", str(requests), "-o", str(out), "-m", "demo", "-q"]) == 0
    records = sorted(map(json.loads, out.read_text().splitlines()), key=lambda record: record["id"])
    assert [record["answer"] for record in records[:2]] == ["yes", "yes"]
    assert list(records[1]["scores"]) == ["no", "yes"] and records[1]["settings"]["generation"]["length_normalized"]
    assert records[2]["answer"].startswith("It is not a") and "scores" not in records[2]
    assert "choices" not in records[3]["settings"]["generation"]
    requests.write_text(json.dumps({**base, "choices": [True, False]}))
    assert run(["batch", str(requests), "-o", str(out), "-m", "demo", "-q"]) == 2
