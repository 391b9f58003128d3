"""What `llvid eval` makes of its flags, and how it shows a result."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llava_video_cli import Sampling, load_preset
from llava_video_cli.cli.app import run
from llava_video_cli.cli.eval import _slug, _table, _with_protocol
from llava_video_cli.cli.options import FrameFlags, TextFlags
from llava_video_cli.cli.settings import Settings
from llava_video_cli.evaluation.questions import Question, QuestionSet, any_choice
from llava_video_cli.model import Loading

SET = QuestionSet("s", (Question("1", "v.mp4", "?", "A", ("A", "B")),), any_choice, frames=16, max_new_tokens=32)


def settings(sampling: Sampling) -> Settings:
    return Settings(replace(load_preset("demo"), sampling=sampling), Loading(frames=sampling.frames), None)


def test_a_set_s_protocol_holds_unless_the_user_says_otherwise() -> None:
    fixed, paced = settings(Sampling(4)), settings(Sampling(fps=2.0))
    for given in (fixed, paced):
        preset = _with_protocol(given, SET, FrameFlags(), TextFlags()).preset
        assert (preset.sampling.frames, preset.sampling.fps, preset.generation.max_new_tokens) == (16, None, 32)
    assert _with_protocol(paced, SET, FrameFlags(), TextFlags()).loading.frames == 16
    asked = _with_protocol(fixed, SET, FrameFlags(frames=4), TextFlags(max_new_tokens=5)).preset
    assert (asked.sampling, asked.generation) == (fixed.preset.sampling, fixed.preset.generation)
    asked_paced = _with_protocol(paced, SET, FrameFlags(fps=2.0), TextFlags())
    assert asked_paced.preset.sampling.fps == 2.0 and asked_paced.loading.frames is None
    own = _with_protocol(fixed, replace(SET, frames=None), FrameFlags(), TextFlags()).preset
    assert own.sampling.frames == 4, "a set without a number of frames has the preset's"


@pytest.mark.parametrize(
    ("model", "name"),
    [("llava-hf/LLaVA-7B-hf", "LLaVA-7B-hf"), ("./my model/", "my-model"), ("random:a/b:c", "b-c"), ("..", "model")],
)
def test_a_model_s_name_is_a_part_of_a_file_s(model: str, name: str) -> None:
    assert _slug(model) == name


def score(right: int, questions: int, **more: Any) -> dict[str, Any]:
    share = right / questions
    values = {"accuracy": share, "interval_95": [0.0, 1.0], "right": right, "questions": questions}
    return values | {"unreadable": 0, "groups": {}, "durations": {}} | more


def document(**more: Any) -> dict[str, Any]:
    groups = {"who": score(1, 1), "where": score(1, 3)}
    return {
        "llvid_eval": 1, "set": "s", "questions": 4, "videos": 1, "failed": 0,
        "scores": {"choices": score(2, 4, groups=groups), "text": score(1, 4, unreadable=2)},
        "controls": {"without_video": score(1, 4), "random": 0.25},
        "protocol": {"sampling": Sampling(8).values() | {"fps": None}, "prompt_sha256": "0" * 64},
        "answers": [
            {"id": "1", "video": "v", "answers": {"choices": {"is_right": True}, "text": {"is_right": False}}},
        ],
    } | more  # fmt: skip


def test_a_result_tells_what_failed_and_what_could_not_be_read() -> None:
    assert list(_table(document(failed=3))) == [
        "s: 4 questions about 1 video",
        "  by probabilities: 50.0% (0.0% to 100.0%), 2 of 4",
        "    who: 100.0% (0.0% to 100.0%), 1 of 1",
        "    where: 33.3% (0.0% to 100.0%), 1 of 3",
        "  by written answers: 25.0% (0.0% to 100.0%), 1 of 4, 2 unreadable",
        "  without the video: 25.0% (0.0% to 100.0%), 1 of 4",
        "  a random choice: 25.0%",
        "  failed, and left out: 3",
        "  protocol: 8 frames (uniform), prompts 000000000000",
    ]
    assert not any("failed" in line for line in _table(document()))


def test_a_comparison_says_that_the_prompts_differ(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "1.json", tmp_path / "2.json"
    first.write_text(json.dumps(document()))
    protocol = document()["protocol"] | {"prompt_sha256": "1" * 64}
    second.write_text(json.dumps(document(protocol=protocol)))
    for other, words in ((first, ""), (second, "the two results had different prompts, or not the same questions\n")):
        assert run(["eval", "--compare", str(first), str(other)]) == 0
        out, err = capsys.readouterr()
        assert out.splitlines()[0] == f"{first}: 100.0%" and err == words


@pytest.mark.parametrize(
    "flag",
    ["--choices=a,b", "--choice=a", "--length-normalized", "--top-p=0.5", "--repetition-penalty=1.1", "--seed=1"],
)
def test_what_would_change_the_answers_is_refused(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["eval", "demo", "-m", "demo", flag]) == 2
    assert f"{flag.partition('=')[0]} can't be used with a question set" in capsys.readouterr().err


def test_some_that_fail_are_told_and_an_answer_is_asked_for_again_with_overwrite(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, target = tmp_path / "my.jsonl", tmp_path / "r.json"
    rows = [{"video": str(each), "question": "Is it?", "answer": "no"} for each in (clip, tmp_path / "gone.mp4")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["eval", str(path), "-m", "demo", "--by", "choices", "--no-controls", "-o", str(target)]
    for more, words in ((), "1 answered, 1 failed"), (("--overwrite",), "1 answered, 1 failed"):
        assert run([*command, *more]) == 3
        out, err = capsys.readouterr()
        assert "  failed, and left out: 1\n" in out and words in err
        assert json.loads(target.read_text())["failed"] == 1
