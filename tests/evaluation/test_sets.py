"""Each published set is read from files of its form, and asked in its words."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from llava_video_cli import LlvidError, UsageError
from llava_video_cli.demo import world
from llava_video_cli.evaluation import sets
from llava_video_cli.evaluation.questions import demo_questions, read_questions, right_letter
from llava_video_cli.evaluation.sets import SETS, load_set

FOUR = ["A. Red.", "B. Blue.", "C. Green.", "D. None."]
DIRECTLY = "Answer with the option's letter from the given choices directly."
# set: (where its file lies, a row, where its video lies, the prompt, the choices, the answer, group and duration)
CASES: dict[str, tuple[str, dict[str, Any], str, str, tuple[str, ...], str, tuple[str, str]]] = {
    "videomme": (
        "videomme/test-00000-of-00001.parquet",
        {"videoID": "fFjv93ACGo8", "duration": "short", "domain": "Knowledge", "sub_category": "Law",
         "task_type": "Counting Problem", "question": "Which?", "options": FOUR, "answer": "C",
         "question_id": "001-1"},
        "data/fFjv93ACGo8.mp4",
        "Select the best answer to the following multiple-choice question based on the video and the subtitles. "
        "Respond with only the letter (A, B, C, or D) of the correct option.\nWhich?\n"
        f"A. Red.\nB. Blue.\nC. Green.\nD. None.\n\n{DIRECTLY}",
        ("A", "B", "C", "D"), "C", ("Counting Problem", "short"),
    ),
    "mvbench": (
        "json/action_count.json", {"video": "video_1.mp4", "question": "How many?", "candidates": ["2", "3"],
        "answer": "3", "start": 1.5, "end": 4.0}, "perception/videos/video_1.mp4",
        "Question:How many?\nOption:\n(A) 2\n(B) 3\nOnly give the best option.\n", ("A", "B"), "B",
        ("action_count", ""),
    ),
    "nextqa": (
        "MC/test.parquet",
        {"video": 4010069381, "question": "how do they meet", "answer": 4, "type": "TN", "qid": 3}
        | {f"a{n}": f"text {n}" for n in range(5)},
        "NExTVideo/4010069381.mp4",
        "how do they meet\nA. text 0\nB. text 1\nC. text 2\nD. text 3\nE. text 4", ("A", "B", "C", "D", "E"), "E",
        ("TN", ""),
    ),
    "egoschema": (
        "Subset/test.parquet",
        {"question_idx": "7", "video_idx": "0074f737", "question": "Why?", "answer": "1",
         "option": ["A. x", "B. y", "C. z", "D. v", "E. w"]},
        "videos/0074f737.mp4", f"Why?\nA. x\nB. y\nC. z\nD. v\nE. w\n{DIRECTLY}", ("A", "B", "C", "D", "E"), "B",
        ("", ""),
    ),
    "mlvu": (
        "json/1_plotQA.json",
        {"video": "movie.mp4", "question": "Who?", "candidates": ["x", "y"], "answer": "y", "question_type": "plotQA"},
        "video/1_plotQA/movie.mp4", "Who?\n(A) x\n(B) y\nOnly give the best option.\nBest option: (", ("A", "B"), "B",
        ("plotQA", ""),
    ),
    "longvideobench": (
        "lvb_val.json",
        {"video_path": "86CxyhFV9MI.mp4", "id": "86_0", "question": "Where?", "candidates": ["x", "y", "z"],
         "correct_choice": 2, "question_category": "T3E", "duration_group": 600},
        "videos/86CxyhFV9MI.mp4", f"Where?\nA. x\nB. y\nC. z\n{DIRECTLY}\n", ("A", "B", "C"), "C", ("T3E", "600"),
    ),
    "tempcompass": (
        "multi-choice/test.parquet",
        {"video_id": "1021", "question": "What?\nA. x\nB. y", "answer": "B. y", "dim": "action"}, "videos/1021.mp4",
        "What?\nA. x\nB. y\nPlease directly give the best option:", ("A", "B"), "B", ("action", ""),
    ),
    "tempcompass-yes-no": (
        "yes_no/test.parquet", {"video_id": "1021", "question": "Is it?", "answer": "no", "dim": "speed"},
        "videos/1021.mp4", "Is it?\nPlease answer yes or no:", ("yes", "no"), "no", ("speed", ""),
    ),
    "tempcompass-matching": (
        "caption_matching/test.parquet",
        {"video_id": "1021", "question": "Which?\nSentence A: x\nSentence B: y", "answer": "Sentence B: y",
         "dim": "order"},
        "videos/1021.mp4", "Which?\nSentence A: x\nSentence B: y\nPlease directly give the best option:",
        ("Sentence A", "Sentence B"), "Sentence B", ("order", ""),
    ),
    "activitynetqa": (
        "data/test.jsonl", {"video_name": "1QIUV7WYKXg", "question": "is the athlete bald", "question_id": "v_1_2",
        "answer": "no", "type": 3}, "all_test/v_1QIUV7WYKXg.webm",
        "Is the athlete bald? Answer the question using a single word or phrase.", (), "no", ("3", ""),
    ),
}  # fmt: skip


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        arrow = pytest.importorskip("pyarrow", reason="needs the extra `parquet`")
        from pyarrow import parquet

        parquet.write_table(arrow.Table.from_pylist(rows), path)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows))
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def empty(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def test_each_set_has_a_case() -> None:
    assert CASES.keys() == SETS.keys()


@pytest.mark.parametrize("name", CASES)
def test_a_published_set_is_asked_in_its_words(name: str, tmp_path: Path) -> None:
    where, row, video, prompt, choices, answer, (group, duration) = CASES[name]
    write(tmp_path / where, [row])
    write(tmp_path / "other.json", [{"unlike": 1}])
    empty(tmp_path / video)
    whole = load_set(name, tmp_path)
    (question,) = whole.questions
    assert question.prompt == prompt and question.video == str(tmp_path / video)
    assert (question.choices, question.answer) == (choices, answer)
    assert (question.group, question.duration) == (group, duration)
    if name == "mvbench":
        assert (question.start_seconds, question.end_seconds) == (1.5, 4.0)


def test_questions_without_their_video_are_left_out_and_told(tmp_path: Path) -> None:
    _, row, video, *_ = CASES["videomme"]
    write(tmp_path / "q.jsonl", [row, row | {"videoID": "gone", "question_id": "2"}])
    empty(tmp_path / video)
    assert load_set("videomme", tmp_path).notes == ("1 of 2 questions are left out: their videos are missing",)
    (tmp_path / video).unlink()
    with pytest.raises(LlvidError, match="none of the 2 questions' videos"):
        load_set("videomme", tmp_path)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.csv")
    (tmp_path / "b.json").symlink_to("gone")
    (tmp_path / "c.parquet").mkdir()
    with pytest.raises(LlvidError, match="no file below"):
        load_set("videomme", tmp_path)
    write(tmp_path / "q.jsonl", [CASES["videomme"][1]])
    empty(tmp_path / CASES["videomme"][2])
    assert len(load_set("videomme", tmp_path).questions) == 1


def test_only_the_files_of_a_part_belong_to_its_set(tmp_path: Path) -> None:
    for name in ("tempcompass", "tempcompass-yes-no", "tempcompass-matching"):
        where, row, video, *_ = CASES[name]
        write(tmp_path / where, [row])
        empty(tmp_path / video)
    for name in ("tempcompass", "tempcompass-yes-no", "tempcompass-matching"):
        (question,) = load_set(name, tmp_path).questions
        assert question.answer == CASES[name][5]


def test_each_question_has_an_id_of_its_own_and_a_limit_takes_the_first(tmp_path: Path) -> None:
    _, row, video, *_ = CASES["videomme"]
    write(tmp_path / "q.json", [row | {"question": f"{number}?"} for number in range(3)])
    empty(tmp_path / video)
    questions = load_set("videomme", tmp_path).questions
    assert len({question.id for question in questions}) == 3
    assert load_set("videomme", tmp_path, 2).questions == questions[:2]
    path = tmp_path / "my.jsonl"
    write(path, [{"video": "a.mp4", "question": f"{number}?", "answer": "no"} for number in range(3)])
    assert [each.prompt for each in load_set(str(path), None, 2).questions] == ["0?", "1?"]


def test_a_table_that_would_fill_the_memory_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "q.json", [CASES["videomme"][1]])
    empty(tmp_path / CASES["videomme"][2])
    assert load_set("videomme", tmp_path).questions
    monkeypatch.setattr(sets, "_MOST_BYTES", 100)
    with pytest.raises(LlvidError, match="no file below"):
        load_set("videomme", tmp_path)


@pytest.mark.parametrize(
    ("answer", "letter"),
    [("(b).", "B"), (" c ", "C"), ("2", "C"), (0, "A"), ("the CAT", "B"), (-1, None), (3, None), ("a dog", None)],
)
def test_the_ways_to_write_the_right_answer(answer: str | int, letter: str | None) -> None:
    options = ["A dog", "cat", "Dog."]
    if letter is not None:
        assert right_letter(answer, options) == letter
        return
    with pytest.raises(UsageError, match="none of the 3 choices"):
        right_letter(answer, options)


def test_what_other_tables_hold_does_no_harm_and_a_text_may_have_line_ends_of_its_own(tmp_path: Path) -> None:
    _, row, video, *_ = CASES["activitynetqa"]
    empty(tmp_path / video)
    (tmp_path / "other.csv").write_text(f"a,b\n{'x' * 200_000},1\n")  # longer than Python's csv reads
    text = "is it\u2028red\x85 or not"
    rows = [row | {"question": text, "question_id": number} for number in (1, 2)]
    lines = "".join(json.dumps(each, ensure_ascii=False) + "\r\n" for each in rows)
    (tmp_path / "q.jsonl").write_text(lines, encoding="utf-8-sig", newline="")
    questions = load_set("activitynetqa", tmp_path).questions
    assert [question.id for question in questions] == ["1", "2"] and text.capitalize() in questions[0].prompt


def test_a_broken_line_of_a_set_is_named(tmp_path: Path) -> None:
    row = json.dumps(CASES["videomme"][1])
    empty(tmp_path / CASES["videomme"][2])
    (tmp_path / "other.jsonl").write_text("{}\n{\n")
    for broken in (b"{", b"\xff", b"[" * 10**5):
        (tmp_path / "q.jsonl").write_bytes(f"{row}\n\n".encode() + broken + b"\n")
        with pytest.raises(UsageError, match=r"q\.jsonl, line 3: not JSON: "):
            load_set("videomme", tmp_path)
    (tmp_path / "q.jsonl").write_text(row)
    assert len(load_set("videomme", tmp_path).questions) == 1, "what is broken in other files does no harm"


def test_what_is_no_set_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as told:
        load_set("videome", tmp_path)
    assert told.value.hint == "did you mean 'videomme'?"
    with pytest.raises(UsageError, match="needs --data"):
        load_set("videomme", None)
    with pytest.raises(LlvidError, match=r"no file below .* is one of videomme"):
        load_set("videomme", tmp_path)
    write(tmp_path / "q.json", [CASES["videomme"][1] | {"answer": "Z"}])
    empty(tmp_path / CASES["videomme"][2])
    with pytest.raises(UsageError, match="question 1: the answer 'Z' is none of the 4 choices"):
        load_set("videomme", tmp_path)
    for deep in ("-" * 100_000 + "1", "1+" * 50_000 + "1", "[" * 100_000):
        write(tmp_path / "q.json", [CASES["videomme"][1] | {"options": deep}])
        with pytest.raises(UsageError, match="question 1: a list of options is needed"):
            load_set("videomme", tmp_path)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "my.jsonl"
    rows: list[dict[str, Any]] = [
        {"video": "a.mp4", "question": "Who?", "choices": ["A man", "A cat"], "answer": "A cat", "group": "who"},
        {"video": "a.mp4", "question": "Who?", "choices": ["A man", "A cat"], "answer": "a", "start": 1},
        {"video": "a.mp4", "question": "Who?", "choices": ["A man", "A cat"], "answer": 1},
        {"video": "a.mp4", "question": "Who?", "choices": ["10 men", "20"], "answer": "20."},
        {"video": "b.mp4", "question": "Is it?", "answer": "No"},
        {"video": "b.mp4", "question": "Is it?", "choices": ["No", "Yes"], "answer": "yes"},
        {"id": "last", "video": "b.mp4", "question": "What color?", "answer": "red"},
    ]
    write(path, rows)
    questions = read_questions(path).questions
    assert questions[0].prompt == f"Who?\nA. A man\nB. A cat\n{DIRECTLY}"
    assert [question.answer for question in questions] == ["B", "A", "B", "B", "no", "Yes", "red"]
    assert [question.choices for question in questions[4:]] == [("yes", "no"), ("No", "Yes"), ()]
    assert questions[0].video == str(tmp_path / "a.mp4") and questions[1].start_seconds == 1
    assert [question.id for question in questions] == ["1", "2", "3", "4", "5", "6", "last"]
    for row, words in (
        ({"video": "a.mp4", "question": "?"}, "line 1: the key 'answer' is missing"),
        ({"video": "a.mp4", "question": "?", "anser": "x"}, "line 1: .*anser"),
        ({"video": "a.mp4", "question": "?", "choices": ["x", "y"], "answer": "z"}, "none of the 2 choices"),
        ({"video": "a.mp4", "question": "?", "answer": "x", "start": -1}, "line 1: the start must be a time of 0"),
        ({"video": "a.mp4", "question": "?", "choices": ["x", "y"], "answer": "²"}, "none of the 2 choices"),
        ({"video": "a.mp4", "question": "?", "choices": ["x", "y"], "answer": "9" * 5000}, "none of the 2 choices"),
        ({"video": "a.mp4", "question": "?", "choices": ["x"], "answer": "x"}, "from 2 to 26 choices, got 1"),
    ):
        write(path, [row])
        with pytest.raises(UsageError, match=words):
            read_questions(path)


def test_the_demo_set_is_the_same_each_time(tmp_path: Path) -> None:
    first = demo_questions(2, folder=tmp_path)
    made = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert demo_questions(2, folder=tmp_path) == first and len(made) == 2
    assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == made, "made once"
    (other,) = demo_questions(1, seed=1, folder=tmp_path).questions
    assert Path(other.video).read_bytes() != Path(first.questions[0].video).read_bytes()
    assert {question.answer for question in demo_questions(4, folder=tmp_path).questions} == {"Yes", "No"}


def test_the_demo_set_has_so_many_and_no_clip_that_was_interrupted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(sets, "_DEMO_QUESTIONS", 1)

    def interrupted(path: Path, _: object) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(world, "write_clip", interrupted)
        load_set("demo", None)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(load_set("demo", None, 3).questions) == 1
