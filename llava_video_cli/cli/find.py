"""`llvid find`: where in videos something is seen."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UsageError
from ..runs.record import Failure, Record
from . import console
from .options import AnyModelFlags, FrameFlags, HearingFlags, OutputFlags, PresetFlag, RunFlags, TextFlags, option
from .run import carry_out, confirm_overwrite, run_options
from .settings import check_text, check_used_flags, settle, settle_every

_FRAMES = 8  # of a window, where nobody says how many

HELP = """Find where in videos something is seen: ranked moments with start, end and probability.

Examples:

    llvid find "a red car turns left" videos/

    llvid find "a red car" videos/ --also "a dog runs" -o moments.jsonl

    llvid find "somebody laughs" film.mkv --every scene --sheets sheets/

    llvid find "a goal" match.mp4 --cuts goals.sh && sh goals.sh
"""


def find(
    what: Annotated[str, typer.Argument(metavar="WHAT", show_default=False, help="What to look for, in words.")],
    paths: Annotated[
        list[str],
        typer.Argument(metavar="PATH...", show_default=False, help="Videos and folders; `-` reads paths from stdin."),
    ],
    *,
    also: Annotated[
        list[str] | None,
        option("Find this, too; repeatable. Each window is read only once.", metavar="WHAT"),
    ] = None,
    to: Annotated[
        str | None,
        option("A .jsonl file of records, one for each video; the same command continues it.", "--output", "-o",
               metavar="PATH"),
    ] = None,
    every: Annotated[
        str, option("Ask about each window of this length, or about each shot.", metavar="SECONDS|scene",
                    show_default=True),
    ] = "4",
    threshold: Annotated[
        float, option("Leave out moments that are less probable.", metavar="P", show_default=True)
    ] = 0.5,
    template: Annotated[
        str | None,
        option("The question, with {what} in the place of WHAT [default: one of two, for a noun or a clause].",
               metavar="TEXT"),
    ] = None,
    sheets: Annotated[str | None, option("Write a contact sheet of each moment to this folder.", metavar="DIR")] = None,
    cuts: Annotated[
        str | None,
        option(
            "Write a file that cuts the moments out: .sh (ffmpeg commands), .edl, or, for one video, .srt.",
            metavar="FILE",
        ),
    ] = None,
    recursive: Annotated[bool, option("Also search subfolders.", "--recursive", "-r")] = False,
    run: RunFlags,
    model: AnyModelFlags,
    frames: FrameFlags,
    hearing: HearingFlags,
    preset: PresetFlag,
    output: OutputFlags,
) -> None:  # fmt: skip
    """Find the moments, and write them to stdout, the most probable first."""
    from ..evaluation.cut_list import check_cuts, write_cuts
    from ..evaluation.find import find_moments
    from .caption import listed_paths

    if frames.source_fps is not None:
        raise UsageError("--source-fps is for pictures, and `llvid find` searches videos only")
    if frames.frames is None and frames.fps is None and preset.preset is None:
        frames = replace(frames, frames=_FRAMES)
    settings = settle(preset, model, frames, TextFlags(**asdict(hearing)))
    check_used_flags(frames, settings.preset, every, hearing)
    for text in (what, *(also or ()), template or ""):
        check_text(text, "what is to be found")
    window = settle_every(every, "--every", settings.preset)
    assert window is not None, "it has a default"
    if cuts is not None:
        check_cuts(Path(cuts), overwrite=run.overwrite)
    if to is not None and run.overwrite:
        confirm_overwrite(Path(to), output)
    spinner = console.Progress(output.quiet)
    found = find_moments(
        [what, *(also or ())], listed_paths(paths), to, preset=settings.undrawn_preset,
        model=settings.source_of(model), every_seconds=window, threshold=threshold, template=template, sheets=sheets,
        recursive=recursive, overwrite=run.overwrite, options=run_options(settings, output, run, spinner),
    )  # fmt: skip
    if cuts is not None:
        try:
            check_cuts(Path(cuts), found.summary.left + found.summary.done_before, overwrite=run.overwrite)
        except UsageError:
            found.close()
            raise
    output.note(*(f"asking: {query.question}" for query in found.task.queries))
    code = carry_out(found, settings.notes, output, spinner, verb="searched", to_stdout=to is None, show=_show_failure)
    for moment in found.ranked():
        if output.json:
            console.write_json(moment)
        else:
            console.write(_line(moment, has_several=bool(also)))
    if cuts is not None:
        write_cuts(Path(cuts), found.records())
        output.note(cuts)
    if not (found.ranked() or code or output.quiet):
        console.note("no moment was found; a lower --threshold finds less probable ones")
    if code:
        raise typer.Exit(code)


def _show_failure(outcome: Record | Failure) -> None:
    if isinstance(outcome, Failure):
        console.error(outcome.cause)


def _line(moment: dict[str, Any], *, has_several: bool) -> str:
    from ..video.contact_sheet import time_labels

    start, end = time_labels((moment["start_seconds"], moment["end_seconds"]))
    instant = moment["instant_seconds"]
    at = f" at {time_labels((instant,))[0]}" if instant is not None else ""
    what = f"  {moment['query']}" if has_several else ""
    line = f"{moment['probability']:.2f}  {moment['video_path']}  {start}-{end}{at}{what}"
    return console.shown(line, one_line=True) + "\n"
