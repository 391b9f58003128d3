"""`llvid report`: one HTML page to look through the results of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import LlvidError, UsageError
from ..system.files import whole_file
from . import console
from .options import OutputFlags

HELP = """Make one HTML page to look through results: contact sheets, captions, times, with search and filters. Reads
what `llvid caption` and `llvid batch` wrote, and the failures in NAME.errors.jsonl beside it. The page is
one file and opens in any browser, without a network.

Examples:

    llvid report captions.jsonl

    llvid report captions.jsonl -o report.html --overwrite
"""


def report(
    results: Annotated[
        str, typer.Argument(metavar="OUT.jsonl", help="A JSONL file of results.", show_default=False)
    ],
    *,
    to: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="PATH", show_default=False,
            help="Where the page goes; must end in .html [default: OUT-report.html here].",
        ),
    ] = None,
    no_sheets: Annotated[
        bool, typer.Option("--no-sheets", help="Leave out the contact sheets: no video is read again.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Overwrite an existing file.")] = False,
    output: OutputFlags,
) -> None:  # fmt: skip
    """Check every line, write the page, and print its path."""
    from ..report.page import write_report
    from ..report.results import open_results

    # Not a hidden file for ".jsonl", and in the current folder.
    target = Path(to if to is not None else f"{Path(results).stem.lstrip('.') or 'results'}-report.html")
    if target.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"{target} must end in .html")
    if target.is_dir():
        raise LlvidError(f"{target} is a folder", "name a file with -o")
    if target.exists() and not overwrite:
        raise LlvidError(f"{target} is there already", "--overwrite writes over it")
    source = open_results(Path(results))
    with (
        console.progress(output.quiet) as progress,
        whole_file(target) as beside,
        beside.open("w", encoding="utf-8", newline="\n") as page,
    ):
        progress.say("writing the page")

        def show(done: int) -> None:
            progress.say(f"reading frames: {done} of {source.count} results")

        unreadable = write_report(page, source, sheets=not no_sheets, progress=show)
    if not output.quiet:
        for line in source.notes:
            console.note(line)
        if unreadable:
            console.note(f"{unreadable} video{'' if unreadable == 1 else 's'} can't be read any more")
    if output.json:
        counts = {"results": source.count, "failures": len(source.failures), "unreadable": unreadable}
        console.write_json({"report": str(target), **counts, "bytes": target.stat().st_size, "notes": source.notes})
    else:
        console.write(f"{target}\n")
