"""`llvid batch`: a file of requests, each with its own media, question and settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..runs.requests import answer_file
from . import console, decisions
from .options import AnswerFlags, AnyModelFlags, ClusterFlags, FrameFlags, PresetFlag, RunFlags, TextFlags
from .run import carry_out, confirm_overwrite, executor, run_options
from .settings import settle

HELP = """Answer a file of requests, one JSON object per line.

Examples:

    llvid batch requests.jsonl -o answers.jsonl

    llvid batch requests.jsonl -o answers.jsonl --ray auto --gpus 8

A line of requests.jsonl, whose paths are relative to its folder:

    {"id": "a1", "video": "a.mp4", "question": "Who is in it?", "frames": 16}
"""


def batch(
    requests: Annotated[
        str,
        typer.Argument(
            metavar="REQUESTS.jsonl", show_default=False,
            help="JSON lines: `id`, `video` or `media`, `question` or `messages`, and settings named as the options.",
        ),
    ],
    *,
    to: Annotated[
        str, typer.Option("--output", "-o", metavar="OUT.jsonl", help="File for the answers.", show_default=False)
    ],
    run: RunFlags,
    model: AnyModelFlags,
    frames: FrameFlags,
    text: TextFlags,
    preset: PresetFlag,
    cluster: ClusterFlags,
    output: AnswerFlags,
) -> None:  # fmt: skip
    """Answer what is not answered yet, and say what came of it."""
    settings = settle(preset, model, frames, text)
    where = executor(cluster, settings, output)
    settings = where.settled(settings)
    output.detail(*decisions.chosen(settings, preset, model))
    if run.overwrite:
        confirm_overwrite(Path(to), output)
    spinner = console.Progress(output.quiet)
    answers = answer_file(
        requests, to, preset=settings.undrawn_preset, model=settings.source_of(model), overwrite=run.overwrite,
        options=run_options(settings, output, run, spinner), make_run=where.make_run,
    )  # fmt: skip
    code = carry_out(
        answers, settings.notes, output, spinner, noun="requests", verb="answered", meter_of=where.meter_of
    )
    if code:
        raise typer.Exit(code)
