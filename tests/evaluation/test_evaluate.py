"""A model whose answers are known is scored as it should be, however often the run is ended on its way."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_scores import by_numpy
from waiting_model import USAGE, WaitingModel

from llava_video_cli import Generation, Preset, Request, RunOptions, Sampling, Scores, UsageError
from llava_video_cli.cli.app import run
from llava_video_cli.conversation import Chunk
from llava_video_cli.demo.world import write_clip
from llava_video_cli.evaluation.questions import Question, QuestionSet, any_choice, read_questions
from llava_video_cli.evaluation.run import (
    Evaluation,
    evaluate,
    read_document,
    result,
    rights_of,
    write_document,
    wrong_records,
)

PRESET = Preset("test", "", "waiting", sampling=Sampling(frames=2))


class Knowing(WaitingModel):
    """Answers the number in the question modulo 4 as a letter; without a video, always A."""

    @property
    def settings(self) -> dict[str, Any]:
        return {"model": "knowing", "versions": {}}

    def stream(self, request: Request) -> Iterator[Chunk]:
        number = int(request.turns[-1].text.split()[1])
        letter = "ABCD"[number % 4] if request.media else "A"
        choices = request.generation.choices
        if not choices:
            yield Chunk(f"The answer is ({letter})." if number % 5 else "no idea", "stop", USAGE)
            return
        logprobs = {choice: -0.1 if choice == letter else -3.0 for choice in choices}
        yield Chunk(letter, "stop", USAGE, Scores(logprobs, dict.fromkeys(choices, 1)))


@pytest.fixture(scope="module")
def questions(tmp_path_factory: pytest.TempPathFactory) -> QuestionSet:
    """40 questions about 10 clips; the model is right in those whose number is not a multiple of 3."""
    from terminal import scene

    folder = tmp_path_factory.mktemp("set")
    for number in range(10):
        write_clip(folder / f"{number}.mp4", scene(y=0.3 + number / 50, duration_seconds=0.5))
    lines = [
        {
            "video": f"{number // 4}.mp4", "question": f"Number {number} ?", "choices": ["w", "x", "y", "z"],
            "answer": (number + (number % 3 == 0)) % 4, "group": "even" if number % 2 == 0 else "odd",
        }
        for number in range(40)
    ]  # fmt: skip
    (folder / "my.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return read_questions(folder / "my.jsonl")


def answered(evaluation: Evaluation, answers: Path) -> dict[str, Any]:
    asking = evaluate(evaluation, answers, model=Knowing())
    assert all("error" not in outcome.values for outcome in asking)
    return result(evaluation, answers, asking.keys)


def test_a_known_model_has_its_score(questions: QuestionSet, tmp_path: Path) -> None:
    document = answered(Evaluation(questions, PRESET), tmp_path / "a.jsonl")
    numbers = np.arange(40)
    rights = (numbers % 3 != 0).astype(float)
    mean, error = by_numpy(rights, numbers // 4)
    score = document["scores"]["choices"]
    assert score["accuracy"] == pytest.approx(mean) and score["videos"] == 10
    assert score["interval_95"] == pytest.approx([mean - 1.959964 * error, mean + 1.959964 * error])
    assert score["groups"]["even"]["right"] == rights[::2].sum() and set(score["durations"]) == {"short"}
    text = document["scores"]["text"]
    assert text["right"] == (rights * (numbers % 5 != 0)).sum() and text["unreadable"] == 8
    blind = document["controls"]["without_video"]
    assert blind["right"] == sum((n + (n % 3 == 0)) % 4 == 0 for n in range(40))
    assert document["controls"]["random"] == 0.25 and document["failed"] == 0
    first = document["answers"][1]
    assert first["answers"]["choices"]["probability_of_right"] > 0.8 and first["right"] == "B"
    assert document["protocol"]["prompt_sha256"] == questions.prompt_hash


def test_what_a_preset_says_of_sampling_does_not_count(questions: QuestionSet, tmp_path: Path) -> None:
    few = replace(questions, questions=questions.questions[:3])
    sampled = Generation(temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.1, presence_penalty=1.5)
    document = answered(Evaluation(few, replace(PRESET, generation=sampled)), tmp_path / "a.jsonl")
    assert document["scores"] == answered(Evaluation(few, PRESET), tmp_path / "b.jsonl")["scores"]


def test_ended_five_times_it_is_the_same_file(questions: QuestionSet, tmp_path: Path) -> None:
    evaluation = Evaluation(questions, PRESET)
    whole = answered(evaluation, tmp_path / "whole.jsonl")
    answers = tmp_path / "ended.jsonl"
    for _ in range(5):
        with evaluate(evaluation, answers, model=Knowing(), options=RunOptions(batch_size=2)) as asking:
            for number, _ in enumerate(asking):
                if number == 7:
                    break
        with answers.open("ab") as file:
            file.write(b'{"id": "torn')
    again = answered(evaluation, answers)
    for document in (whole, again):
        del document["cost"]
    assert again == whole
    write_document(whole, tmp_path / "whole.json")
    write_document(again, tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "whole.json").read_bytes()


def test_another_run_in_the_same_file_does_not_count(questions: QuestionSet, tmp_path: Path) -> None:
    few = replace(questions, questions=questions.questions[:6])
    evaluation, other = Evaluation(few, PRESET, ("choices",)), replace(PRESET, system="Be brief.")
    before = answered(evaluation, tmp_path / "a.jsonl")
    answered(Evaluation(few, other, ("choices",)), tmp_path / "a.jsonl")
    lines = (tmp_path / "a.jsonl").read_bytes().splitlines()
    assert len(lines) == 12
    with (tmp_path / "a.jsonl").open("a") as file:
        for line in lines:
            file.write(json.dumps(json.loads(line) | {"answer": "Z", "key": "0" * 32}) + "\n")
    assert answered(evaluation, tmp_path / "a.jsonl") == before


def test_a_result_is_made_of_the_records_alone(tmp_path: Path) -> None:
    answers, records = tmp_path / "a.jsonl", list[dict[str, Any]]()
    lengths = {"1": 119.9, "2": 120.0, "3": 899.9, "4": 900.0, "5": 10.0}
    for number, seconds in lengths.items():
        common = {
            "key": "k", "frames": {"duration_seconds": seconds}, "settings": {"model": "m", "sampling": {}},
            "usage": {"total_seconds": 1.5, "prompt_tokens": 10, "peak_memory_bytes": int(number)}, "notes": ["n"],
        }  # fmt: skip
        choices = {
            "answer": "A",
            "scores": {"A": 0.75, "B": 0.25},
            "frames": None if number == "1" else common["frames"],
        }
        records.append(common | {"id": f"{number}/choices"} | choices)
        if number != "5":
            records.append(common | {"id": f"{number}/text", "answer": "(B)" if number != "4" else "well"})
    answers.write_text("".join(json.dumps(each) + "\n" for each in records) + '{"id": "torn')
    asked = (Question(number, "v.mp4", "?", "A" if number < "3" else "B", ("A", "B")) for number in lengths)
    evaluation = Evaluation(QuestionSet("s", tuple(asked), any_choice), PRESET, ("choices", "text"))
    document = result(evaluation, answers, {"k"})
    assert (document["questions"], document["failed"], document["videos"]) == (4, 1, 1)
    assert [row["duration"] for row in document["answers"]] == ["short", "medium", "medium", "long"]
    rights = [document["scores"][way]["right"] for way in ("choices", "text")]
    assert rights == [2, 1] and document["scores"]["text"]["unreadable"] == 1
    assert [row["answers"]["choices"]["probability_of_right"] for row in document["answers"]] == [0.75] * 2 + [0.25] * 2
    assert document["cost"] == {"answer_seconds": 13.5, "prompt_tokens": 90, "peak_memory_bytes": 5}
    assert document["model"] == {"model": "m"} and document["controls"] == {"without_video": None, "random": 0.5}
    wrong = list(wrong_records(document, answers, {"k"}))
    assert [each["id"] for each in wrong] == ["1", "2", "3", "4"]
    assert [each["notes"] for each in wrong[1:3]] == [["wrong: B; right: A", "n"], ["wrong: A; right: B", "n"]]


def test_a_result_is_written_whole_or_not_at_all_and_one_of_another_form_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    write_document({"llvid_eval": 1, "set": "old"}, path)
    with pytest.raises(UnicodeEncodeError):
        write_document({"llvid_eval": 1, "set": "\ud800"}, path)
    assert read_document(path)["set"] == "old" and [each.name for each in tmp_path.iterdir()] == ["r.json"]
    for other in ({"llvid_eval": 2}, {"set": "x"}, None):
        path.write_text(json.dumps(other))
        with pytest.raises(UsageError, match="not a result"):
            read_document(path)


def test_a_question_is_asked_greedily_about_its_part_with_the_preset_s_words() -> None:
    asked = Question("7", "v.mp4", "Who?", "A", ("A", "B"), ("x", "y"), start_seconds=1.5, end_seconds=4.0)
    generation = Generation(temperature=0.7, top_p=0.5, repetition_penalty=1.2, seed=3, max_new_tokens=9)
    preset = replace(PRESET, system="Be brief.", timestamps=True, generation=generation)
    evaluation = Evaluation(QuestionSet("s", (asked, replace(asked, choices=(), options=())), any_choice), preset)
    requests = list(evaluation.requests())
    assert [each.id for each in requests] == ["7/choices", "7/text", "7/blind", "7/text"]
    for each, choices, paths in zip(requests, (2, 0, 2, 0), (1, 1, 0, 1), strict=True):
        assert each.generation == Generation(max_new_tokens=9, choices=asked.choices if choices else ())
        system, user = each.drafts
        assert (system.role, system.text, user.text) == ("system", "Be brief.", "Who?")
        assert user.paths == ("v.mp4",) * paths and each.timestamps
        assert (each.sampling.start_seconds, each.sampling.end_seconds) == (1.5, 4.0)


def test_a_missing_video_is_counted(questions: QuestionSet, tmp_path: Path) -> None:
    gone = replace(questions.questions[0], video=str(tmp_path / "gone.mp4"))
    few = replace(questions, questions=(gone, *questions.questions[1:4]))
    evaluation = Evaluation(few, PRESET, ("choices",))
    asking = evaluate(evaluation, tmp_path / "a.jsonl", model=Knowing())
    assert len(list(asking)) == 4
    document = result(evaluation, tmp_path / "a.jsonl", asking.keys)
    assert (document["questions"], document["failed"]) == (3, 1)


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(["eval", "demo", "-m", "demo", "--limit", "3"]) == 0
    out, err = capsys.readouterr()
    lines = out.splitlines()
    assert lines[0] == "demo: 3 questions about 3 videos" and "demo-demo.json has the result" in err
    assert "  by probabilities: 100.0% (" in out and "  a random choice: 50.0%" in out
    assert run(["eval", "demo", "-m", "demo", "--limit", "3", "--json", "-q", "-o", "x.json", "--by", "choices"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads(Path("x.json").read_text()) and set(document["scores"]) == {"choices"}
    assert run(["eval", "--compare", "demo-demo.json", "x.json"]) == 0
    assert "difference: +0.0 points (+0.0 to +0.0), p = 1, 3 questions" in capsys.readouterr().out
    for arguments, code, words in (
        ((), 2, "give a question set"), (("demo", "--compare", "a.json", "b.json"), 2, "takes two results"),
        (("--compare", "a.json", "b.json", "-o", "c.json"), 2, "nothing else but --json"),
        (("--compare", "a.json", "b.json", "--by", "text"), 2, "nothing else but --json"),
        (("--compare", "a.json", "b.json", "--frames", "3"), 2, "nothing else but --json"),
        (("--compare", "x.json", "x.answers.jsonl"), 2, "not a result of `llvid eval`"),
        (("demo", "-m", "demo", "-o", "x.txt"), 2, "must end in .json"), (("mvbench",), 2, "needs --data"),
        (("demo", "--temperature", "1"), 2, "--temperature can't be used with a question set"),
        (("demo", "--presence-penalty", "1"), 2, "--presence-penalty can't be used with a question set"),
        (("demo", "--top-k", "1"), 2, "--top-k can't be used with a question set"),
    ):  # fmt: skip
        assert run(["eval", *arguments]) == code
        out, err = capsys.readouterr()
        assert out == "" and words in err.splitlines()[0], err


def test_questions_without_choices_need_written_answers(
    questions: QuestionSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    open_ones = tuple(replace(each, choices=(), options=(), answer="red") for each in questions.questions[:2])
    mixed = replace(questions, questions=(*open_ones, questions.questions[2]))
    document = answered(Evaluation(mixed, PRESET, ("choices", "blind")), tmp_path / "a.jsonl")
    assert (document["questions"], document["failed"], len(document["answers"])) == (1, 0, 1)
    assert rights_of(document) == {"3": (True, document["answers"][0]["video"])}
    with pytest.raises(UsageError, match="no question has choices"):
        evaluate(Evaluation(replace(questions, questions=open_ones), PRESET, ("choices",)), tmp_path / "b.jsonl")
    assert not (tmp_path / "b.jsonl").exists()
    path, clip = tmp_path / "my.jsonl", questions.questions[0].video
    rows = [
        {"video": clip, "question": "What?", "answer": "red"},
        {"video": clip, "question": "Is it?", "answer": "no"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["eval", str(path), "-m", "demo", "--by", "choices", "--no-controls", "-o", str(tmp_path / "r.json")]
    assert run([*command, "--limit", "1"]) == 2
    assert capsys.readouterr().err == "error: no question has choices\nhint: --by text asks for written answers\n"
    assert run(command) == 0
    out, err = capsys.readouterr()
    assert out.startswith("my: 1 question about 1 video\n")
    assert "1 question without choices left out: --by text or both asks them\n" in err


def test_only_files_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "a.json")
    for path in (tmp_path / "a.json", Path("/dev/zero")):
        assert run(["eval", "--compare", str(path), str(path)]) == 2
        assert "not a regular file" in capsys.readouterr().err


def test_files_of_somebody_else_are_refused_before_anything_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    others = ("package.json", "index.html", "page.wrong.jsonl")
    for name in others:
        (tmp_path / name).write_text("{}")
    (tmp_path / "folder.html").mkdir()
    command = ["eval", "demo", "-m", "demo", "--limit", "1", "--by", "choices", "--no-controls"]
    for more, words in (
        (("-o", "package.json"), "package.json is not a result of `llvid eval`"),
        (("-o", "r.json", "--report", "index.html"), "index.html is not a page of `llvid report`"),
        (("-o", "r.json", "--report", "folder.html"), "folder.html is not a page of `llvid report`"),
        (("-o", "r.json", "--report", "page.html"), "page.wrong.jsonl, which --report writes too, is not a file of"),
        (("-o", "r.json", "--report", "page.txt"), "page.txt must end in .html"),
        (("-o", "r.json", "--report", "gone/page.html"), "there is no folder"),
    ):
        paths = [str(tmp_path / each) if "." in each else each for each in more]
        assert run([*command, *paths]) == (1 if "gone" in more[-1] else 2)
        assert words in capsys.readouterr().err
    assert [(tmp_path / name).read_text() for name in others] == ["{}"] * 3
    assert {path.name for path in tmp_path.iterdir()} == {*others, "folder.html"}
    assert run([*command, "-q", "-o", str(tmp_path / "package.json"), "--overwrite"]) == 0
    assert json.loads((tmp_path / "package.json").read_text())["set"] == "demo"


def test_the_wrong_answers_have_a_page(
    questions: QuestionSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = questions.questions[0].video
    path = tmp_path / "my.jsonl"
    rows = [{"video": clip, "question": "Does the video show a circle?", "answer": answer} for answer in ("yes", "no")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    to, page = tmp_path / "r.json", tmp_path / "wrong.html"
    command = ["eval", str(path), "-m", "demo", "-o", str(to), "--report", str(page), "--no-controls", "-q"]
    assert run(command) == 0
    assert json.loads(to.read_text())["scores"]["choices"]["right"] == 1
    (wrong,) = (tmp_path / "wrong.wrong.jsonl").read_text().splitlines()
    assert json.loads(wrong)["notes"][0] == "wrong: yes; right: no" and "wrong: yes; right: no" in page.read_text()
    capsys.readouterr()
    assert run(command) == 0, "its own page is replaced"
    assert run([*command[:4], "-o", str(to), "--report", str(page), "--limit", "1", "--by", "choices", "-q"]) == 0
    assert capsys.readouterr().err == "", "no answer is wrong"
