"""The published question sets: where their files hold what, and how they are asked.

Prompts are those of lmms-eval 0.7; the number of frames is that of the scores that were published for
LLaVA-NeXT-Video (8), or the set's own.
"""

from __future__ import annotations

import ast
import csv
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import ascii_uppercase
from typing import Any, TypeAlias

from ..errors import LlvidError, UsageError, nearest
from ..validation import parse_json
from .extraction import (
    Extraction,
    any_letter,
    exact_choice,
    first_choice,
    last_choice,
    ranked_letter,
    single_letter,
    yes_or_no,
)
from .questions import (
    LETTER_PROMPT,
    YES_NO,
    Question,
    QuestionSet,
    any_choice,
    demo_questions,
    lettered,
    located,
    read_questions,
    right_letter,
    videos_below,
)

Row: TypeAlias = Mapping[str, Any]
_TABLES = (".parquet", ".jsonl", ".json", ".csv")
_MOST_BYTES = 2**30  # of a file of questions
_DEMO_QUESTIONS = 200


@dataclass(frozen=True)
class PublishedSet:
    """A set: `columns` are those by which its files are known, `read` makes a question of a row, without its video.

    `video` gives the name of a row's video, `part` a word in the path of the files that belong to it.
    """

    columns: frozenset[str]
    video: Callable[[Row], str]
    read: Callable[[Row], dict[str, Any]]
    extract: Extraction
    frames: int = 8
    max_new_tokens: int = 16
    part: str = ""
    notes: tuple[str, ...] = ()


def _texts(value: Any) -> tuple[str, ...]:
    """Return a list that a table may hold as an array, or as the text of a list."""
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value)
        except (ValueError, SyntaxError, RecursionError, MemoryError):  # the last two: too deep for the parser
            raise UsageError(f"a list of options is needed, got {value[:80]!r}") from None
    return tuple(str(each) for each in value) if isinstance(value, Sequence) else ()


def _letters(options: Sequence[str], answer: str | int) -> dict[str, Any]:
    return {
        "choices": tuple(ascii_uppercase[: len(options)]),
        "options": tuple(options),
        "answer": right_letter(answer, options),
    }


def _without_letters(options: Sequence[str]) -> list[str]:
    """Return options that are written `A. text` without their letters."""
    return [option[2:].strip() if option[:2] in {f"{a}." for a in ascii_uppercase} else option for option in options]


def _videomme(row: Row) -> dict[str, Any]:
    options = _texts(row["options"])
    asked = (
        "Select the best answer to the following multiple-choice question based on the video and the subtitles. "
        "Respond with only the letter (A, B, C, or D) of the correct option."
    )
    lines = [asked, row["question"], *options, "", LETTER_PROMPT]
    return {
        "id": row["question_id"], "prompt": "\n".join(lines), "group": row["task_type"], "duration": row["duration"],
        **_letters(_without_letters(options), row["answer"]),
    }  # fmt: skip


def _mvbench(row: Row) -> dict[str, Any]:
    options = _texts(row["candidates"])
    listed = lettered(options, "({letter}) {option}")
    return {
        "prompt": f"Question:{row['question']}\nOption:\n{listed}\nOnly give the best option.\n",
        "group": row["file"], "start_seconds": row.get("start"), "end_seconds": row.get("end"),
        **_letters(options, row["answer"]),
    }  # fmt: skip


def _nextqa(row: Row) -> dict[str, Any]:
    options = [str(row[f"a{number}"]).strip() for number in range(5)]
    return {
        "prompt": f"{str(row['question']).strip()}\n{lettered(options, '{letter}. {option}')}",
        "group": str(row.get("type", "")), **_letters(options, int(row["answer"])),
    }  # fmt: skip


def _egoschema(row: Row) -> dict[str, Any]:
    options = _texts(row["option"])
    lines = [row["question"], *options, LETTER_PROMPT]
    return {
        "id": row.get("question_idx"), "prompt": "\n".join(lines),
        **_letters(_without_letters(options), int(row["answer"])),
    }  # fmt: skip


def _mlvu(row: Row) -> dict[str, Any]:
    options = _texts(row["candidates"]) if row.get("candidates") is not None else ()
    question = str(row["question"])
    if options and f"({ascii_uppercase[0]}) " not in question:
        question += "\n" + lettered(options, "({letter}) {option}")
    options = options or tuple(ascii_uppercase[:4])
    return {
        "prompt": f"{question}\nOnly give the best option.\nBest option: (",
        "group": str(row.get("task_type") or row.get("question_type") or row["file"]),
        **_letters(options, row["answer"]),
    }  # fmt: skip


def _longvideobench(row: Row) -> dict[str, Any]:
    options = _texts(row["candidates"]) if "candidates" in row else [
        row[f"option{number}"] for number in range(5) if row.get(f"option{number}") not in (None, "N/A")
    ]  # fmt: skip
    listed = lettered(options, "{letter}. {option}")
    return {
        "id": row.get("id"), "prompt": f"{row['question']}\n{listed}\n{LETTER_PROMPT}\n",
        "group": str(row.get("question_category", "")), "duration": str(row.get("duration_group", "")),
        **_letters(options, int(row["correct_choice"])),
    }  # fmt: skip


def _tempcompass(row: Row) -> dict[str, Any]:
    options = [line.split(". ", 1)[-1] for line in str(row["question"]).split("\n")[1:]]
    return {
        "prompt": f"{row['question']}\nPlease directly give the best option:", "group": str(row["dim"]),
        **_letters(options, str(row["answer"])[0]),
    }  # fmt: skip


def _tempcompass_yes_no(row: Row) -> dict[str, Any]:
    return {
        "prompt": f"{row['question']}\nPlease answer yes or no:", "group": str(row["dim"]),
        "choices": YES_NO, "answer": str(row["answer"]).lower(),
    }  # fmt: skip


def _tempcompass_matching(row: Row) -> dict[str, Any]:
    options = [line.split(": ", 1) for line in str(row["question"]).split("\n")[1:]]
    return {
        "prompt": f"{row['question']}\nPlease directly give the best option:", "group": str(row["dim"]),
        "choices": tuple(name for name, _ in options), "options": tuple(text for _, text in options),
        "answer": str(row["answer"]).split(":")[0],
    }  # fmt: skip


def _activitynet(row: Row) -> dict[str, Any]:
    return {
        "id": row.get("question_id"), "group": str(row.get("type", "")), "answer": str(row["answer"]),
        "prompt": f"{str(row['question']).capitalize()}? Answer the question using a single word or phrase.",
    }  # fmt: skip


def _column(name: str) -> Callable[[Row], str]:
    return lambda row: str(row[name])


_TEMPCOMPASS = frozenset({"video_id", "question", "answer", "dim"})
SETS: Mapping[str, PublishedSet] = {
    "videomme": PublishedSet(
        frozenset({"videoID", "duration", "task_type", "question", "options", "answer"}),
        _column("videoID"), _videomme, ranked_letter,
    ),
    "mvbench": PublishedSet(
        frozenset({"video", "question", "candidates", "answer"}), _column("video"), _mvbench, single_letter, 16,
    ),
    "nextqa": PublishedSet(
        frozenset({"video", "question", "a0", "a4", "answer"}), _column("video"), _nextqa, last_choice,
    ),
    "egoschema": PublishedSet(
        frozenset({"video_idx", "question", "option", "answer"}), _column("video_idx"), _egoschema, first_choice,
    ),
    "mlvu": PublishedSet(
        frozenset({"question", "answer"}), lambda row: str(row.get("video_name") or row["video"]), _mlvu, ranked_letter,
    ),
    "longvideobench": PublishedSet(
        frozenset({"video_path", "question", "correct_choice"}), _column("video_path"), _longvideobench, any_letter, 8,
        32,
    ),
    "tempcompass": PublishedSet(_TEMPCOMPASS, _column("video_id"), _tempcompass, exact_choice, part="multi-choice"),
    "tempcompass-yes-no": PublishedSet(
        _TEMPCOMPASS, _column("video_id"), _tempcompass_yes_no, yes_or_no, part="yes_no"
    ),
    "tempcompass-matching": PublishedSet(
        _TEMPCOMPASS, _column("video_id"), _tempcompass_matching, exact_choice, part="caption_matching"
    ),
    "activitynetqa": PublishedSet(
        frozenset({"video_name", "question", "answer"}), lambda row: f"v_{row['video_name']}", _activitynet, any_choice,
        32, 64,
        notes=("the published score is that of a judging model; this one counts answers with the same words",),
    ),
}  # fmt: skip


def load_set(name: str, data: Path | None, limit: int | None = None) -> QuestionSet:
    """Return a set by its name, or a file of one's own; `data` is the folder of a published set's files and videos.

    With a `limit`, only its first questions. Nothing is downloaded. Raises UsageError for a set that is not known or
    not understood, LlvidError where no file in the folder is the set's.
    """
    if name == "demo":
        return demo_questions(min(limit or _DEMO_QUESTIONS, _DEMO_QUESTIONS))
    if name not in SETS:
        if name.lower().endswith(".jsonl"):
            whole = read_questions(Path(name))
            return replace(whole, questions=whole.questions[:limit])
        known = (*SETS, "demo")
        raise UsageError(
            f"there is no question set {name!r}",
            nearest(name, known) or f"the sets are {', '.join(known)}; a file of your own ends in .jsonl",
        )
    if data is None:
        raise UsageError(f"{name} needs --data FOLDER", "the folder with the set's files and its videos")
    if not data.is_dir():
        raise UsageError(f"{data} is not a folder")
    whole = _published(name, SETS[name], data)
    return replace(whole, questions=whole.questions[:limit])


def _published(name: str, published: PublishedSet, data: Path) -> QuestionSet:
    rows = [
        row | {"file": path.stem}
        for path in sorted(data.rglob("*"))
        # opening a pipe would wait for ever
        if path.suffix.lower() in _TABLES and published.part in path.as_posix() and path.is_file()
        for row in _rows(path, published.columns)
        if published.columns <= row.keys()
    ]
    if not rows:
        raise LlvidError(
            f"no file below {data} is one of {name}",
            f"its files (.parquet, .json, .jsonl or .csv) have the columns {', '.join(sorted(published.columns))}",
        )
    videos = videos_below(data)
    questions, ids, missing = [], set[str](), list[str]()
    for number, row in enumerate(rows):
        try:
            values = published.read(row)
            video = published.video(row)
            path = located(videos, video)
            if path is None:
                missing.append(video)
                continue
            values["id"] = str(values.get("id") or f"{row['file']}-{number}")
            if values["id"] in ids:
                values["id"] = f"{row['file']}-{number}"
            ids.add(values["id"])
            questions.append(Question(video=path, **values))
        except (KeyError, TypeError, ValueError, IndexError) as error:
            raise UsageError(f"{name}: question {number + 1} is not understood: {error!r}") from None
        except UsageError as error:
            raise UsageError(f"{name}, question {number + 1}: {error}") from None
    if not questions:
        raise LlvidError(f"none of the {len(rows)} questions' videos is below {data}", f"the first one is {missing[0]}")
    notes = published.notes
    if missing:
        notes = (*notes, f"{len(missing)} of {len(rows)} questions are left out: their videos are missing")
    return QuestionSet(
        name, tuple(questions), published.extract, published.frames, published.max_new_tokens, "lmms-eval 0.7", notes
    )


def _rows(path: Path, columns: frozenset[str]) -> Iterator[dict[str, Any]]:
    """Yield the rows of a table; a file that holds something else has none.

    Raises UsageError for a broken line among others that have the columns.
    """
    if path.stat().st_size > _MOST_BYTES:
        return
    suffix = path.suffix.lower()
    try:
        if suffix == ".parquet":
            yield from _parquet_rows(path)
        elif suffix == ".csv":
            with path.open(encoding="utf-8-sig", newline="") as file:
                yield from csv.DictReader(file)
        elif suffix == ".jsonl":
            yield from _json_rows(path, columns)
        else:
            found = json.loads(path.read_text(encoding="utf-8-sig"))
            yield from (row for row in found if isinstance(row, dict)) if isinstance(found, list) else ()
    except (ValueError, RecursionError, OSError, csv.Error):
        return


def _json_rows(path: Path, columns: frozenset[str]) -> list[dict[str, Any]]:
    rows, broken = list[dict[str, Any]](), ""
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):  # a text may have other line ends
        try:
            row = parse_json(line.decode("utf-8-sig")) if line.strip() else None
        except ValueError as error:
            broken = broken or f"{path}, line {number}: not JSON: {error}"
        else:
            rows += [row] if isinstance(row, dict) else []
    if broken and any(columns <= row.keys() for row in rows):
        raise UsageError(broken)
    return [] if broken else rows


def _parquet_rows(path: Path) -> Iterator[dict[str, Any]]:
    from ..runs.formats import check_parquet

    check_parquet()
    import pyarrow as arrow
    import pyarrow.parquet

    try:
        with arrow.parquet.ParquetFile(path) as file:
            for batch in file.iter_batches():
                yield from batch.to_pylist()
    except arrow.ArrowException:
        return
