"""`--schema` and its kin on the command line, in presets, batch lines and conversations, in runs and on Ray."""

from __future__ import annotations

import json
import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from schemas import fault
from terminal import asked

from llava_video_cli import UsageError, caption_folder, load_preset
from llava_video_cli.cli.app import run
from llava_video_cli.conversation import ANY_OBJECT, Generation
from llava_video_cli.preset import Preset
from llava_video_cli.runs.conversation_file import Conversation, Draft, read_conversation, write_conversation
from llava_video_cli.runs.requests import read_requests

SHAPE: dict[str, Any] = {
    "type": "object",
    "properties": {"shape": {"enum": ["circle", "square"]}, "a": {"type": "boolean"}},
    "required": ["shape", "a"],
    "additionalProperties": False,
}


@pytest.fixture
def schema(tmp_path: Path) -> Path:
    path = tmp_path / "shape.json"
    path.write_text(json.dumps(SHAPE), encoding="utf-8")
    return path


def test_an_answer_on_stdout_fits_the_schema(clip: Path, schema: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = asked(capsys, str(clip), "What shape is it?", "--schema", str(schema))
    assert code == 0 and fault(out, SHAPE) is None
    code, out, _ = asked(capsys, str(clip), "What?", "--schema", str(schema), "--json", "--top-k", "3", "-q")
    record = json.loads(out)
    assert fault(record["answer"], SHAPE) is None and record["finish_reason"] == "stop"
    assert record["settings"]["generation"]["top_k"] == 3
    assert json.loads(record["settings"]["generation"]["schema"]) == SHAPE
    code, out, err = asked(capsys, str(clip), "What?", "--schema", str(schema), "--max-new-tokens", "4")
    assert code == 0 and out == '{"s\n' and "cut off at 4 tokens" in err
    code, out, _ = asked(capsys, str(clip), "What?", "--json-object", "--max-new-tokens", "60", "--windows", "1")
    assert code == 0 and out.startswith("{")


@pytest.mark.parametrize(
    ("content", "more", "words"),
    [
        (
            '{"type": "array", "uniqueItems": true}',
            [],
            'can\'t be followed completely: Unimplemented keys: ["uniqueItems"]',
        ),
        ("[]", [], "must be an object"),
        ("{", [], "not JSON"),
        ('{"type": "null", "type": "null"}', [], "appears twice"),
        (None, [], "can't be read: No such file"),
        (json.dumps(SHAPE), ["--json-object"], "use --schema or --json-object, not both"),
        (json.dumps(SHAPE), ["--choices", "a,b"], "choices and schema can't be used together"),
    ],
)
def test_a_wrong_schema_is_a_usage_error_before_the_model_is_loaded(
    content: str | None, more: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "s.json"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    code = run(["ask", "no.mp4", "What?", "-m", "/nowhere", "--schema", str(path), *more])
    out, err = capsys.readouterr()
    assert code == 2 and not out and words in err and len(err.splitlines()) <= 2


def test_a_schema_on_the_command_line_gets_the_option_to_type(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["ask", "no.mp4", "What?", "-m", "/nowhere", "--schema", json.dumps(SHAPE)]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: --schema takes a file, not the schema itself", "hint: save it, and type --schema schema.json",
    ]  # fmt: skip


def test_without_the_extra_it_is_named(
    clip: Path, schema: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    code, _, err = asked(capsys, str(clip), "What?", "--schema", str(schema))
    assert code == 1 and "needs the extra 'schema'" in err and "'.[schema]'" in err
    assert asked(capsys, str(clip), "What?")[0] == 0


def _preset(path: Path, generation: object) -> Generation:
    path = path / "mine.yaml"
    path.write_text(json.dumps({"about": "x", "generation": generation}), encoding="utf-8")
    return load_preset(str(path)).generation


def _conversation(path: Path, generation: object) -> Generation:
    path = path / "talk.json"
    path.write_text(json.dumps({"messages": [{"role": "user", "content": "a"}], "generation": generation}))
    return read_conversation(path).over(Preset("", "")).generation


def _batch(path: Path, generation: dict[str, Any]) -> Generation:
    path = path / "requests.jsonl"
    path.write_text(json.dumps({"video": "a.mp4", "question": "b", **generation}), encoding="utf-8")
    return next(iter(read_requests(path, Preset("", "", generation=Generation(top_k=5))))).generation


@pytest.mark.parametrize("read", [_preset, _conversation, _batch])
def test_files_hold_a_schema_or_name_its_file(
    read: Callable[[Path, object], Generation], tmp_path: Path, schema: Path
) -> None:
    for written in (SHAPE, schema.name, str(schema)):
        assert json.loads(read(tmp_path, {"schema": written, "min_p": 0.1}).schema or "") == SHAPE
    assert read(tmp_path, {"json_object": True}).schema == ANY_OBJECT
    assert read(tmp_path, {"json_object": False, "top_k": 7}) == Generation(top_k=7)
    wrongs: tuple[dict[str, Any], ...] = (
        {"schema": SHAPE, "json_object": True},
        {"schema": "no.json"},
        {"schema": []},
        {"regex": "a"},
    )
    for wrong in wrongs:
        with pytest.raises(UsageError):
            read(tmp_path, wrong)


def test_a_saved_chat_keeps_its_schema(tmp_path: Path) -> None:
    path = tmp_path / "chat.yaml"
    write_conversation(path, Conversation((Draft("user", "a"),), generation={"schema": SHAPE, "top_k": 3}))
    generation = read_conversation(path).over(Preset("", "")).generation
    assert json.loads(generation.schema or "") == SHAPE and generation.top_k == 3


def test_a_run_has_answers_that_fit_and_goes_on_with_the_same_schema(
    clip: Path, schema: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    to, arguments = tmp_path / "out.parquet", ["caption", str(clip), "-m", "demo", "--schema", str(schema), "-o"]
    assert run([*arguments, str(to)]) == 0 and "1 captioned" in capsys.readouterr().err
    assert run([*arguments, str(to)]) == 0 and "1 captioned" not in capsys.readouterr().err
    schema.write_text(json.dumps({**SHAPE, "properties": dict(reversed(SHAPE["properties"].items()))}))
    assert run([*arguments, str(tmp_path / "out.jsonl")]) == 0
    assert run([*arguments, str(to)]) == 0 and "1 captioned" in capsys.readouterr().err, "the order of keys counts"
    record = json.loads((tmp_path / "out.jsonl").read_text(encoding="utf-8"))
    assert fault(record["caption"], SHAPE) is None and record["caption"].startswith('{"a"')


def test_a_run_is_refused_with_a_schema_that_can_not_be_followed(clip: Path, tmp_path: Path) -> None:
    preset = Preset("p", "", "demo", generation=Generation(schema='{"not": {}}'))
    with pytest.raises(UsageError, match="followed completely"):
        caption_folder(clip, tmp_path / "out.jsonl", preset=preset)
    lines = tmp_path / "requests.jsonl"
    lines.write_text(json.dumps({"video": str(clip), "question": "a", "schema": {"not": {}}}))
    assert run(["batch", str(lines), "-o", str(tmp_path / "o.jsonl"), "-m", "demo"]) == 2


def test_records_of_older_versions_keep_their_keys() -> None:
    """And what goes to another process is the same there."""
    assert list(Generation().values()) == ["max_new_tokens", "temperature", "top_p", "repetition_penalty", "seed"]
    generation = Generation(schema=ANY_OBJECT, top_k=4)
    assert pickle.loads(pickle.dumps(generation)) == generation
    assert generation.values()["schema"] == ANY_OBJECT
