"""`llvid doctor`: what this machine has, what a model needs, and what to do about each problem."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated

from rich.console import Console
from rich.text import Text

from ..diagnostics.doctor import Diagnosis, ModelFit, Workload, examine
from ..inference.cards import Accelerators
from ..preset import load_preset
from . import console
from .console import size
from .options import FrameFlags, ModelFlags, OutputFlags, PresetFlag, TextFlags, option
from .settings import check_used_flags, settle

_LABEL = 12  # characters, of the first column
HELP = """Show what this machine has, what a model needs, and what to do about each problem. No weights are read and
no network is used. The exit code is 1 if the model can't run here.

Examples:

    llvid doctor

    llvid doctor -m llava-hf/LLaVA-NeXT-Video-34B-hf --quantize 4bit --frames 24
"""


def doctor(
    *,
    imports: Annotated[bool, option("Also import the packages, which takes seconds.", "--imports")] = False,
    model: ModelFlags,
    frames: FrameFlags,
    preset: PresetFlag,
    output: OutputFlags,
) -> int:
    """Examine this machine, and print the diagnosis."""
    settings = settle(preset, model, frames, TextFlags())
    check_used_flags(frames, settings.preset)
    sampling, generation = settings.preset.sampling, settings.preset.generation
    count, new_tokens = None if sampling.fps is not None else sampling.frames, generation.max_new_tokens
    workload = Workload(settings.model, settings.revision, settings.loading, count, new_tokens, settings.rope_auto)
    with console.progress(output.quiet) as progress:
        progress.say("examining this machine")
        diagnosis = examine(workload, imports=imports)
    if output.json:
        console.write_json(_values(diagnosis))
    else:
        _print(diagnosis)
        if model.model is None and preset.preset is None and diagnosis.best_preset is not None:
            best = load_preset(diagnosis.best_preset)
            console.write(f"best preset here: -p {best.name}: {best.about} ({best.memory_gb:g} GB)\n")
    return 0 if diagnosis.can_run else 1


def _values(diagnosis: Diagnosis) -> dict[str, object]:
    values = asdict(diagnosis) | {"can_run": diagnosis.can_run}
    for checkpoint in values["checkpoints"]:
        checkpoint["folder"] = str(checkpoint["folder"])
    for problem in values["problems"]:
        problem["mend"] = problem.pop("hint")  # the field's name since the first version
    if diagnosis.model is not None and diagnosis.model.need is not None:
        values["model"]["need"]["total_bytes"] = diagnosis.model.need.total_bytes
    return values


class _Output(Console):
    """A console that leaves a closed pipe to the program: Rich would exit with 1."""

    def on_broken_pipe(self) -> None:
        raise  # Rich calls it where it handles the BrokenPipeError


def _print(diagnosis: Diagnosis) -> None:
    out = _Output(file=sys.stdout, highlight=False, markup=False, soft_wrap=True, emoji=False)

    def line(style: str, first: str, rest: str) -> None:
        out.print(Text.assemble((console.shown(first, one_line=True), style), console.shown(rest, one_line=True)))

    for name, texts in _sections(diagnosis):
        rows = [console.shown(text, one_line=True) for text in texts]
        lines = [row for text in rows for row in console.columns("", text, _LABEL, wraps=console.stdout_is_terminal())]
        for number, text in enumerate(lines):
            line("bold", f"{name if not number else '':<{_LABEL}}", text[_LABEL:])
    for problem in diagnosis.problems:
        line("bold red" if problem.stops else "yellow", "problem: " if problem.stops else "note: ", problem.text)
        if problem.hint:
            line("bold", "  hint: ", problem.hint)
    if diagnosis.model is not None:
        verdict = "can run here" if diagnosis.model.need else "may run here: its memory need is not known yet"
        line("bold", f"{diagnosis.model.model} " + (verdict if diagnosis.can_run else "can't run here"), "")


def _sections(diagnosis: Diagnosis) -> Iterator[tuple[str, list[str]]]:
    yield "llvid", [f"{diagnosis.llvid}, Python {diagnosis.python}, {diagnosis.system}"]
    yield "packages", [", ".join(f"{name} {number or 'not installed'}" for name, number in diagnosis.packages.items())]
    if diagnosis.processor is not None:
        cpu = diagnosis.processor
        bfloat16 = "bfloat16 in hardware" if cpu.has_bfloat16 else "no bfloat16 in hardware"
        cores = "1 core" if cpu.cores == 1 else f"{cpu.cores} cores"
        yield "processor", [f"{cpu.name}, {cores}, {bfloat16}"]
    if diagnosis.memory is not None:
        yield "memory", [f"{size(diagnosis.memory.total_bytes)}, {size(diagnosis.memory.free_bytes)} free"]
    if diagnosis.accelerators is not None:
        yield "GPUs", list(_cards(diagnosis.accelerators))
    if diagnosis.codecs:
        yield "codecs", [", ".join(name for name, can_decode in diagnosis.codecs.items() if can_decode)]
    if diagnosis.cache is not None:
        free = f", {size(diagnosis.cache_free_bytes)} free" if diagnosis.cache_free_bytes is not None else ""
        lines = [
            f"{each.model} {each.commit[:8]}: {size(each.bytes)}, {'incomplete' if each.lacks else 'complete'}"
            for each in diagnosis.checkpoints
        ]
        yield "cache", [f"{diagnosis.cache}{free}", *(lines or ["no checkpoint of a video model"])]
    if diagnosis.model is not None:
        yield "model", list(_model(diagnosis.model))


def _cards(accelerators: Accelerators) -> Iterator[str]:
    for card in accelerators.cards:
        yield (
            f"{card.device}: {card.name}, compute capability {card.compute_capability}, {size(card.total_bytes)}, "
            f"{size(card.free_bytes)} free, {'bfloat16' if card.has_bfloat16 else 'no bfloat16'}"
            + (f" - can't be used: {card.problem}" if card.problem else "")
        )
    if accelerators.has_mps:
        yield "mps: Apple's GPU, float16"
    if not accelerators.cards and not accelerators.has_mps:
        yield "none that torch can use"


def _model(fit: ModelFit) -> Iterator[str]:
    yield fit.model + (f" in {fit.folder}" if fit.folder else ", not downloaded")
    if fit.dtype is not None:  # it fits somewhere
        bits = "" if fit.quantize == "none" else f", {fit.quantize}"
        yield f"would run on {fit.device}, {fit.dtype}{bits}, attention {fit.attention}"
    if fit.tokens is not None:
        frames = f"{fit.frames} frames, question and answer" if fit.frames else "question and answer"
        yield f"{frames}: about {fit.tokens:,} of {fit.context_tokens:,} tokens"
    if fit.need is not None:
        need = fit.need
        free = f"; {size(fit.room_bytes)} is free" if fit.room_bytes is not None else ""
        yield (
            f"needs about {size(need.total_bytes)}: {size(need.weights_bytes)} of weights, {size(need.cache_bytes)} of "
            f"KV cache, {size(need.other_bytes)} of other memory{free}"
        )
