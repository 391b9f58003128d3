"""`llvid doctor`: what this machine has, what a model needs of it, and what to do about each problem."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from ..diagnostics.doctor import Report, examine
from ..diagnostics.model_check import Choice, Question
from ..system.machine import Accelerators
from . import console
from .console import size
from .options import FrameFlags, ModelFlags, OutputFlags, PresetFlag, TextFlags, takes
from .settings import settle

_EXAMPLES = """
Examples:

    llvid doctor

    llvid doctor -m llava-hf/LLaVA-NeXT-Video-34B-hf --quantize 4bit --frames 24
"""
_ABOUT = (
    "Tell what this machine has, what a model needs, and what to do about each problem. "
    "No weights are read and no network is asked. The exit code is 1 if the model can't run here."
)


def add_to(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("doctor", help=f"{_ABOUT}\n{_EXAMPLES}")(doctor)


@takes(model=ModelFlags, frames=FrameFlags, preset=PresetFlag, output=OutputFlags)
def doctor(
    *,
    imports: Annotated[
        bool, typer.Option("--imports", help="Import the packages too, instead of comparing their versions: seconds.")
    ] = False,
    model: ModelFlags,
    frames: FrameFlags,
    preset: PresetFlag,
    output: OutputFlags,
) -> int:
    """Examine, and print the report."""
    settings = settle(preset, model, frames, TextFlags())
    sampling, generation = settings.preset.sampling, settings.preset.generation
    question = Question(
        settings.model,
        settings.revision,
        settings.loading,
        None if sampling.fps is not None else sampling.frames,
        generation.max_new_tokens,
        settings.rope_auto,
    )
    with console.progress(output.quiet) as progress:
        progress.say("examining this machine")
        report = examine(question, imports=imports)
    if output.json:
        console.write_json(_values(report))
    else:
        _print(report)
    return 0 if report.can_run else 1


def _values(report: Report) -> dict[str, object]:
    values = asdict(report) | {"can_run": report.can_run}
    for found, cached in zip(values["checkpoints"], report.checkpoints, strict=True):
        found["folder"] = str(cached.folder)
    if report.model is not None and report.model.need is not None:
        values["model"]["need"]["total_bytes"] = report.model.need.total_bytes
    return values


def _print(report: Report) -> None:
    out = Console(file=sys.stdout, highlight=False, markup=False, soft_wrap=True, emoji=False)

    def line(style: str, *parts: str) -> None:
        first, *rest = (console.shown(part, one_line=True) for part in parts)
        out.print(Text.assemble((first, style), *rest))

    for name, lines in _sections(report):
        for number, text in enumerate(lines):
            line("bold", f"{name if not number else '':<12}", text)
    for problem in report.problems:
        line("bold red" if problem.stops else "yellow", "problem: " if problem.stops else "note: ", problem.text)
        if problem.mend:
            line("bold", "  mend: ", problem.mend)
    if report.model is not None:
        verdict = "can run here" if report.can_run else "can not run here"
        if report.can_run and report.model.need is None:
            verdict = "may run here or not: what it needs isn't known yet"
        line("bold", f"{report.model.model} {verdict}")


def _sections(report: Report) -> Iterator[tuple[str, list[str]]]:
    yield "llvid", [f"{report.llvid}, Python {report.python}, {report.system}"]
    yield "packages", [", ".join(f"{name} {number or 'absent'}" for name, number in report.packages.items())]
    if report.processor is not None:
        cpu = report.processor
        bfloat16 = "bfloat16 in hardware" if cpu.has_bfloat16 else "no bfloat16 in hardware"
        yield "processor", [f"{cpu.name}, {cpu.cores} cores, {bfloat16}"]
    if report.memory is not None:
        yield "memory", [f"{size(report.memory.total_bytes)}, {size(report.memory.free_bytes)} free"]
    if report.accelerators is not None:
        yield "cards", list(_cards(report.accelerators))
    if report.codecs:
        yield "codecs", [", ".join(name for name, is_there in report.codecs.items() if is_there)]
    if report.cache is not None:
        free = f", {size(report.cache_free_bytes)} free" if report.cache_free_bytes is not None else ""
        lines = [
            f"{each.model} {each.commit[:8]}: {size(each.bytes)}, {'not whole' if each.lacks else 'whole'}"
            for each in report.checkpoints
        ]
        yield "cache", [f"{report.cache}{free}", *(lines or ["no LLaVA-NeXT-Video checkpoint"])]
    if report.model is not None:
        yield "model", list(_model(report.model))


def _cards(seen: Accelerators) -> Iterator[str]:
    for card in seen.cards:
        yield (
            f"{card.device}: {card.name}, compute capability {card.compute_capability}, {size(card.total_bytes)}, "
            f"{size(card.free_bytes)} free, {'bfloat16' if card.has_bfloat16 else 'no bfloat16'}"
        )
    if seen.has_mps:
        yield "mps: Apple's GPU, float16"
    if not seen.cards and not seen.has_mps:
        yield "none that torch can use"


def _model(choice: Choice) -> Iterator[str]:
    yield choice.model + (f" in {choice.folder}" if choice.folder else ", not downloaded")
    if choice.device is not None:
        bits = "" if choice.quantize == "none" else f", {choice.quantize}"
        yield f"would get {choice.device}, {choice.dtype}{bits}, attention {choice.attention}"
    if choice.tokens is not None:
        frames = f"{choice.frames} frames, question and answer" if choice.frames else "question and answer"
        yield f"{frames}: about {choice.tokens:,} of {choice.context_tokens:,} tokens"
    if choice.need is not None:
        need = choice.need
        room = f"; {size(choice.room_bytes)} are free" if choice.room_bytes is not None else ""
        yield (
            f"needs about {size(need.total_bytes)}: {size(need.weights_bytes)} of weights, {size(need.cache_bytes)} of "
            f"KV cache, {size(need.other_bytes)} of other things{room}"
        )
