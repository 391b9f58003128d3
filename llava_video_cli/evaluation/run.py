"""A model on a question set: its questions as requests of a resumable run, and the result as a document."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from ..errors import LlvidError, UsageError
from ..model import Model
from ..preset import Preset
from ..runs.conversation_file import Draft
from ..runs.ledger import Errors, Ledger
from ..runs.preflight import ModelSource
from ..runs.record import path_to_text
from ..runs.requests import BatchRequest, plan_requests
from ..runs.resumable import AnsweredRun, MakeRun, ResumableRun, RunOptions, settle_run
from ..system.files import whole_file
from ..validation import bounded_lines, is_special, parse_json
from .questions import Question, QuestionSet
from .scores import accuracy, by_group

Way = Literal["choices", "text", "blind"]
WAYS: tuple[Way, ...] = get_args(Way)
_SHORT_SECONDS, _LONG_SECONDS = 120.0, 900.0  # as Video-MME: short videos are under 2 minutes, medium ones under 15
_FORM = 1  # of the document
_WRONG = "wrong: "  # the beginning of a note


@dataclass(frozen=True)
class Evaluation:
    """What is to be evaluated: a set, the ways in which each question is asked, and the settings.

    `choices` compares the probabilities of the choices, `text` reads the choice out of a written answer, and `blind`
    asks without the video, as a control. A question without choices is asked by `text` alone.
    """

    questions: QuestionSet
    preset: Preset
    ways: tuple[Way, ...] = WAYS

    def requests(self) -> Iterator[BatchRequest]:
        """Yield the requests, those about one video together."""
        for question in self.questions.questions:
            for way in self.ways_of(question):
                yield self._request(question, way)

    def ways_of(self, question: Question) -> tuple[Way, ...]:
        """Return the ways in which a question is asked."""
        return tuple(way for way in self.ways if question.choices or way == "text")

    def _request(self, question: Question, way: Way) -> BatchRequest:
        generation = replace(
            self.preset.generation,
            temperature=0.0, top_p=1.0, repetition_penalty=1.0, presence_penalty=0.0, frequency_penalty=0.0, seed=None,
            choices=() if way == "text" else question.choices,
        )  # fmt: skip
        sampling = question.part_of(self.preset.sampling)
        system = [Draft("system", self.preset.system)] if self.preset.system else []
        paths = () if way == "blind" else (question.video,)
        drafts = (*system, Draft("user", question.prompt, paths))
        return BatchRequest(_id(question, way), drafts, sampling, generation, self.preset.timestamps)


def evaluate(
    evaluation: Evaluation,
    answers: Path,
    *,
    model: Model | ModelSource | str | None = None,
    overwrite: bool = False,
    options: RunOptions | None = None,
    make_run: MakeRun = AnsweredRun,
) -> ResumableRun:
    """Return the run that asks all questions; iterate over it, then call `result`.

    The answers stand in `answers` (.jsonl): the same call goes on where an earlier one ended. `make_run` and
    what is raised are as of `answer_file`. Raises `UsageError` as well if there is no way to ask any question.
    """
    preset, source, drawn_seed = settle_run(evaluation.preset, model)
    options, batch = options or RunOptions(), list(evaluation.requests())
    if not batch:
        raise UsageError("no question has choices", "ask for written answers")
    with ExitStack() as opened:
        ledger = opened.enter_context(Ledger(answers, overwrite=overwrite))
        errors = opened.enter_context(Errors(answers, overwrite=overwrite))
        plan = plan_requests(batch, source, preset, drawn_seed, ledger.done)
        return make_run(plan, source, preset, (ledger, errors), options=options, opened=opened.pop_all())


def result(evaluation: Evaluation, answers: Path, keys: Set[str]) -> dict[str, Any]:
    """Return the document of a run that has ended: accuracies, controls, the protocol, and each question's answers.

    `keys` are those of the run: records of other models or settings in the file don't count.

    A question that failed is left out of all accuracies, and counted. Raises LlvidError if none was answered.
    """
    records = _records(answers, keys)
    rows, failed = [], 0
    for question in evaluation.questions.questions:
        wanted = {way: records.get(_id(question, way)) for way in evaluation.ways_of(question)}
        if not wanted:  # it was not asked
            continue
        if None in wanted.values():
            failed += 1
            continue
        rows.append(_row(evaluation.questions, question, {way: values for way, values in wanted.items() if values}))
    if not rows:
        raise LlvidError("no question was answered", f"{answers} and its file of errors tell why")
    videos = [row["video"] for row in rows]
    scores = {}
    for way in evaluation.ways:
        asked = [row for row in rows if way in row["answers"]]
        if not asked:
            continue
        rights, where = [row["answers"][way]["is_right"] for row in asked], [row["video"] for row in asked]
        scores[way] = {
            **accuracy(rights, where).values(),
            "unreadable": sum(row["answers"][way]["choice"] is None for row in asked),
            "groups": _values(by_group(rights, where, [row["group"] for row in asked])),
            "durations": _values(by_group(rights, where, [row["duration"] for row in asked])),
        }
    blind = scores.pop("blind", None)
    last = next(iter(records.values()))
    settings = last["settings"]
    chances = [1 / len(question.choices) for question in evaluation.questions.questions if question.choices]
    return {
        "llvid_eval": _FORM,
        "set": evaluation.questions.name,
        "questions": len(rows),
        "videos": len(set(videos)),
        "failed": failed,
        "scores": scores,
        "controls": {
            "without_video": blind,
            "random": sum(chances) / len(chances) if chances else None,
        },
        "protocol": {
            "source": evaluation.questions.source or None,
            "prompt_sha256": evaluation.questions.prompt_hash,
            "prompt_example": evaluation.questions.questions[0].prompt,
            "system": evaluation.preset.system,
            "sampling": evaluation.preset.sampling.values(),
            "max_new_tokens": evaluation.preset.generation.max_new_tokens,
            "extraction": evaluation.questions.extract.__name__,
            "timestamps": evaluation.preset.timestamps,
        },
        "model": {
            name: settings[name]
            for name in settings
            if name not in ("system", "timestamps", "sampling", "generation", "request_key", "preset")
        },
        "cost": {
            "answer_seconds": round(sum(each["usage"]["total_seconds"] for each in records.values()), 3),
            "prompt_tokens": sum(each["usage"]["prompt_tokens"] for each in records.values()),
            "peak_memory_bytes": max(each["usage"]["peak_memory_bytes"] for each in records.values()),
        },
        "answers": rows,
    }


def wrong_records(document: Mapping[str, Any], answers: Path, keys: Set[str]) -> Iterator[dict[str, Any]]:
    """Yield the records of the questions that were answered wrongly, each with a note of the right answer."""
    records = _records(answers, keys)
    for row in document["answers"]:
        ways = [way for way in ("choices", "text") if way in row["answers"] and not row["answers"][way]["is_right"]]
        if ways:
            values = records[f"{row['id']}/{ways[0]}"]
            note = f"{_WRONG}{row['answers'][ways[0]]['choice']}; right: {row['right']}"
            yield {**values, "id": row["id"], "notes": [note, *values["notes"]]}


def has_wrong_records(path: Path) -> bool:
    """Return whether a file begins with a record of `wrong_records`."""
    try:
        with path.open("rb") as file:
            values = parse_json(next(bounded_lines(file)))
        return str(values["notes"][0]).startswith(_WRONG)
    except (ValueError, LookupError, TypeError, LlvidError):
        return False


def write_document(document: Mapping[str, Any], path: Path) -> None:
    """Write a result, whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def read_document(path: Path) -> dict[str, Any]:
    """Read a result that `write_document` wrote; raises UsageError."""
    if is_special(path):
        raise UsageError(f"{path} can't be read: not a regular file")
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"{path} can't be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict) or document.get("llvid_eval") != _FORM:
        raise UsageError(f"{path} is not a result of `llvid eval`")
    return document


def rights_of(document: Mapping[str, Any]) -> dict[str, tuple[bool, str]]:
    """Return whether each question was answered rightly (by its probabilities where it was), and its video."""
    return {
        row["id"]: (bool(next(row["answers"][way] for way in WAYS if way in row["answers"])["is_right"]), row["video"])
        for row in document["answers"]
    }


def _row(whole: QuestionSet, question: Question, records: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    answers = {}
    for way, record in records.items():
        text = str(record["answer"])
        choice = whole.extract(text, question) if way == "text" else text
        answer = {"choice": choice, "is_right": choice == question.answer}
        if way != "text" and record.get("scores"):
            answer["probability_of_right"] = record["scores"][question.answer]
        if way == "text":
            answer["text"] = text
        answers[way] = answer
    frames = next((record["frames"] for record in records.values() if record["frames"]), None) or {}
    return {
        "id": question.id, "video": path_to_text(question.video), "group": question.group,
        "duration": question.duration or _length(frames.get("duration_seconds")), "right": question.answer,
        "answers": answers,
    }  # fmt: skip


def _length(seconds: float | None) -> str:
    if seconds is None:
        return ""
    return "short" if seconds < _SHORT_SECONDS else "medium" if seconds < _LONG_SECONDS else "long"


def _values(groups: Mapping[str, Any]) -> dict[str, Any]:
    return {name: each.values() for name, each in groups.items()}


def _id(question: Question, way: Way) -> str:
    return f"{question.id}/{way}"


def _records(answers: Path, keys: Set[str]) -> dict[str, dict[str, Any]]:
    """Return the records of a run by their id."""
    found = {}
    with answers.open("rb") as file:
        for line in file:
            if line.endswith(b"\n"):
                values = json.loads(line)
                if values["key"] in keys:
                    found[str(values["id"])] = values
    return found


def ways(by: str, controls: bool) -> tuple[Way, ...]:
    """Return the ways of `both`, `choices` or `text`, with the control without a video or not."""
    chosen: Sequence[Way] = ("choices", "text") if by == "both" else ("choices",) if by == "choices" else ("text",)
    blind: Iterable[Way] = ("blind",) if controls else ()
    return (*chosen, *blind)
