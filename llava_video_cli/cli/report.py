"""`llvid report`: one HTML page to look through the results of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import LlvidError, UsageError
from ..system.files import whole_file
from . import console
from .options import OutputFlags, option

HELP = """Make one HTML page to look through results: contact sheets, captions, times, with search and filters. It
reads the output of `llvid caption`, `llvid batch` or `llvid find`, and the failures in NAME.errors.jsonl next to
it. The page is one file that opens in any browser, without a network.

Examples:

    llvid report captions.jsonl

    llvid report captions.jsonl -o report.html --overwrite
"""
_TO_HELP = "File for the page, which must end in .html [default: OUT-report.html in the current folder]."


def report(
    results: Annotated[str, typer.Argument(metavar="OUT.jsonl", help="A JSONL file of results.", show_default=False)],
    *,
    to: Annotated[str | None, option(_TO_HELP, "--output", "-o", metavar="PATH")] = None,
    no_sheets: Annotated[
        bool, option("Leave out the contact sheets, so that no video is read.", "--no-sheets")
    ] = False,
    overwrite: Annotated[bool, option("Replace an existing file.", "--overwrite")] = False,
    output: OutputFlags,
) -> None:
    """Check every line, write the page, and print its path."""
    from ..report.page import first_not_found, write_report
    from ..report.results import open_results

    # Not a hidden file for ".jsonl", and in the current folder.
    target = Path(to if to is not None else f"{Path(results).stem.lstrip('.') or 'results'}-report.html")
    if target.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{target} must end in .html")
    if target.is_dir():
        raise LlvidError(f"{target} is a folder", "name a file with -o")
    if target.exists() and not overwrite:
        raise LlvidError(f"{target} exists", "use --overwrite to replace it")
    source = open_results(Path(results))
    with (
        console.progress(output.quiet) as progress,
        whole_file(target) as temporary,
        temporary.open("w", encoding="utf-8", newline="\n") as page,
    ):
        progress.say("writing the page")

        def show(done: int) -> None:
            progress.say(f"reading frames: {done} of {source.count} results")

        unreadable = write_report(page, source, target.parent, sheets=not no_sheets, progress=show)
    output.note(*source.notes)
    if unreadable:
        output.note(f"{unreadable} video{'' if unreadable == 1 else 's'} can't be read any more")
        if (path := first_not_found(source)) is not None:
            output.note(
                f"{path} is relative to the folder that the run was started in: make the page there "
                "(`llvid caption --paths absolute` writes whole paths)"
            )
    if output.json:
        counts = {"results": source.count, "failures": len(source.failures), "unreadable": unreadable}
        console.write_json({"report": str(target), **counts, "bytes": target.stat().st_size, "notes": source.notes})
    else:
        console.write(f"{target}\n")
