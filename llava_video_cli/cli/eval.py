"""`llvid eval`: the score of a model on a question set."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Set
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ..errors import UsageError
from ..evaluation.questions import QuestionSet
from ..evaluation.run import (
    Evaluation,
    evaluate,
    has_wrong_records,
    read_document,
    result,
    rights_of,
    ways,
    write_document,
    wrong_records,
)
from ..evaluation.scores import compare
from ..evaluation.sets import SETS, load_set
from ..runs.formats import json_line
from ..system.files import check_place, check_replaceable, whole_file
from . import console
from .options import AnyModelFlags, ClusterFlags, FrameFlags, OutputFlags, PresetFlag, RunFlags, TextFlags, option
from .run import carry_out, confirm_overwrite, executor, run_options
from .settings import Settings, check_used_flags, settle

HELP = f"""Score a model on a question set: a published one, whose files and videos are in --data FOLDER; a file of your
own; or `demo`, 200 questions about clips of the demo checkpoint's world.

The published sets are {", ".join(SETS)}.

The answers are in NAME.answers.jsonl next to the result: the same command continues an earlier run.

Examples:

    llvid eval demo -m demo

    llvid eval videomme --data Video-MME/ -m llava-hf/LLaVA-NeXT-Video-7B-hf -o 7b.json

    llvid eval my.jsonl -o my.json --report my.html

    llvid eval mlvu --data MLVU/ -o mlvu.json --ray auto --gpus 8

    llvid eval --compare 7b.json 34b.json

A line of my.jsonl, whose paths are relative to its folder:

    {{"video": "a.mp4", "question": "Who is in it?", "choices": ["A man", "A cat"], "answer": "A cat", "group": "who"}}
"""
_REFUSED = (
    *("choices", "choice", "length_normalized", "temperature", "top_p", "top_k", "min_p", "seed"),
    *("repetition_penalty", "presence_penalty", "frequency_penalty"),
)
_WRONG = ".wrong.jsonl"  # the ending of the records that a page shows
_WORDS = {"choices": "by probabilities", "text": "by written answers"}


def eval(
    name: Annotated[
        str | None, typer.Argument(metavar="SET", help="Name of a set, or a .jsonl file.", show_default=False)
    ] = None,
    *,
    data: Annotated[
        Path | None, option("Folder with a published set's files and videos; nothing is downloaded.", metavar="FOLDER")
    ] = None,
    to: Annotated[
        Path | None, option("File for the result [default: SET-MODEL.json].", "--output", "-o", metavar="OUT.json")
    ] = None,
    by: Annotated[
        Literal["both", "choices", "text"],
        option("Choose by the probabilities of the choices, by written answers, or both.", show_default=True),
    ] = "both",
    no_controls: Annotated[
        bool, option("Do not ask again without the video.", "--no-controls")
    ] = False,
    limit: Annotated[int | None, option("Ask only the first questions.", min=1, metavar="N")] = None,
    page: Annotated[
        Path | None, option("Write a page with the wrong answers.", "--report", metavar="PAGE.html")
    ] = None,
    pair: Annotated[
        tuple[Path, Path] | None, option("Compare two results.", "--compare", metavar="A.json B.json")
    ] = None,
    run: RunFlags,
    model: AnyModelFlags,
    frames: FrameFlags,
    text: TextFlags,
    preset: PresetFlag,
    cluster: ClusterFlags,
    output: OutputFlags,
) -> None:  # fmt: skip
    """Ask what is not answered yet, score it, and show the result."""
    if pair is not None:
        own = name, data, to, by, no_controls, limit, page
        flags = run, replace(model, model=None, server=None), frames, text, cluster  # those two may be variables
        if (*own, *flags) != (*(None, None, None, "both", False, None, None), *(type(each)() for each in flags)):
            raise UsageError("--compare takes two results, and nothing else but --json and --quiet")
        return _compare(*pair, output)
    if name is None:
        raise UsageError(
            "give a question set", f"the sets are {', '.join((*SETS, 'demo'))}; a file of your own ends in .jsonl"
        )
    for flag in _REFUSED:
        if getattr(text, flag) is not None:
            raise UsageError(
                f"--{flag.replace('_', '-')} can't be used with a question set: its questions are answered greedily"
            )
    if to is not None and to.suffix.lower() != ".json":
        raise UsageError(f"{to} must end in .json")
    if page is not None:
        _check_page(page, overwrite=run.overwrite)
    settings = settle(preset, model, frames, text)
    check_used_flags(frames, settings.preset, hearing=text)
    where = executor(cluster, settings, output)
    questions = load_set(name, data, limit)
    settings = where.settled(_with_protocol(settings, questions, frames, text))
    evaluation = Evaluation(questions, settings.undrawn_preset, ways(by, not no_controls))
    open_questions = sum(not evaluation.ways_of(question) for question in questions.questions)
    if open_questions == len(questions.questions):
        raise UsageError("no question has choices", "--by text asks for written answers")
    target = to or Path(f"{questions.name}-{_slug(settings.model)}.json")
    answers = target.with_suffix(".answers.jsonl")
    _check_result(target, overwrite=run.overwrite)
    if run.overwrite:
        confirm_overwrite(answers, output)
    output.note(*questions.notes)
    if open_questions:
        output.note(f"{_counted(open_questions, 'question')} without choices left out: --by text or both asks them")
    spinner = console.Progress(output.quiet)
    asking = evaluate(
        evaluation, answers, model=settings.source_of(model), overwrite=run.overwrite,
        options=run_options(settings, output, run, spinner), make_run=where.make_run,
    )  # fmt: skip
    code = carry_out(
        asking, settings.notes, output, spinner, noun="questions", verb="answered", meter_of=where.meter_of
    )
    if asking.stop.is_set():
        raise typer.Exit(code)
    document = result(evaluation, answers, asking.keys)
    write_document(document, target)
    if page is not None:
        _write_page(document, answers, asking.keys, page, output)
    if output.json:
        console.write_json(document)
    else:
        console.write("".join(f"{line}\n" for line in _table(document)))
        output.note(f"{target} has the result, {answers} the answers")
    if code:
        raise typer.Exit(code)


def _with_protocol(settings: Settings, questions: QuestionSet, frames: FrameFlags, text: TextFlags) -> Settings:
    """Return the settings with the set's number of frames and length of answers, where the user gave none."""
    sampling, generation = settings.preset.sampling, settings.preset.generation
    if questions.frames is not None and frames.frames is None and frames.fps is None:
        sampling = replace(sampling, frames=questions.frames, fps=None)
    if text.max_new_tokens is None:
        generation = replace(generation, max_new_tokens=questions.max_new_tokens)
    return replace(
        settings,
        preset=replace(settings.preset, sampling=sampling, generation=generation),
        loading=replace(settings.loading, frames=sampling.frames if sampling.fps is None else None),
    )


def _table(document: Mapping[str, Any]) -> Iterator[str]:
    """Yield the lines of a result."""
    questions, videos = _counted(document["questions"], "question"), _counted(document["videos"], "video")
    yield f"{document['set']}: {questions} about {videos}"
    for way, words in _WORDS.items():
        if (score := document["scores"].get(way)) is None:
            continue
        unreadable = f", {score['unreadable']} unreadable" if score["unreadable"] else ""
        yield f"  {words}: {_share(score)}{unreadable}"
        for kind in ("groups", "durations"):
            if len(score[kind]) > 1:
                yield from (f"    {group}: {_share(each)}" for group, each in score[kind].items())
    controls = document["controls"]
    if controls["without_video"] is not None:
        yield f"  without the video: {_share(controls['without_video'])}"
    if controls["random"] is not None:
        yield f"  a random choice: {controls['random']:.1%}"
    if document["failed"]:
        yield f"  failed, and left out: {document['failed']}"
    protocol = document["protocol"]
    sampling = protocol["sampling"]
    taken = f"{sampling['fps']:g} frames per second" if sampling["fps"] else _counted(sampling["frames"], "frame")
    yield f"  protocol: {taken} ({sampling['mode']}), prompts {protocol['prompt_sha256'][:12]}"


def _share(score: Mapping[str, Any]) -> str:
    low, high = score["interval_95"]
    return f"{score['accuracy']:.1%} ({low:.1%} to {high:.1%}), {score['right']} of {score['questions']}"


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _compare(first: Path, second: Path, output: OutputFlags) -> None:
    before, after = read_document(first), read_document(second)
    found = compare(rights_of(before), rights_of(after))
    if before["protocol"]["prompt_sha256"] != after["protocol"]["prompt_sha256"]:
        output.note("the two results had different prompts, or not the same questions")
    if output.json:
        console.write_json(asdict(found))
        return
    console.write(
        f"{first}: {found.first_accuracy:.1%}\n{second}: {found.second_accuracy:.1%}\n"
        f"difference: {100 * found.difference:+.1f} points ({100 * found.low:+.1f} to {100 * found.high:+.1f}), "
        f"p = {found.p:.2g}, {_counted(found.questions, 'question')}\n"
        f"right in the first only: {found.first_only}, in the second only: {found.second_only}\n"
    )


def _check_result(target: Path, *, overwrite: bool) -> None:
    """Raise UsageError for a file in the result's place that may not be replaced."""
    if not target.exists() or (target.is_file() and (overwrite or not target.stat().st_size)):
        return
    try:
        read_document(target)
    except UsageError as error:
        error.hint = "choose another file with -o" + (", or replace it with --overwrite" if target.is_file() else "")
        raise


def _check_page(page: Path, *, overwrite: bool) -> None:
    """Raise UsageError for a page that can't be written, or whose place has a file that may not be replaced."""
    from ..report.page import is_report

    if page.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{page} must end in .html")
    check_place(page)
    check_replaceable(page, is_report, " is not a page of `llvid report`", "--report", overwrite=overwrite)
    words = ", which --report writes too, is not a file of `llvid eval`"
    check_replaceable(page.with_suffix(_WRONG), has_wrong_records, words, "--report", overwrite=overwrite)


def _write_page(document: Mapping[str, Any], answers: Path, keys: Set[str], page: Path, output: OutputFlags) -> None:
    """Write the records of the wrong answers beside the page, and the page."""
    from ..report.page import write_report
    from ..report.results import open_results

    wrong = page.with_suffix(_WRONG)
    records = list(wrong_records(document, answers, keys))
    if not records:
        output.note("no answer is wrong, so there is no page")
        return
    with whole_file(wrong, "--report") as temporary:
        temporary.write_text("".join(f"{json_line(values)}\n" for values in records), encoding="utf-8")
    with whole_file(page, "--report") as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        write_report(file, open_results(wrong), page.parent)


def _slug(model: str) -> str:
    """Return a model's name as a part of a file's name."""
    return re.sub(r"[^\w.-]+", "-", Path(model).name).strip("-.") or "model"
