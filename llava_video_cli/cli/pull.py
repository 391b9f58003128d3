"""`llvid pull`: a checkpoint from the hub, whole and checked."""

from __future__ import annotations

from typing import Annotated

import typer

from ..models.fetch import Fetched, folder_bytes
from ..models.source import local_folder, locate
from . import console
from .download import download
from .options import OutputFlags, takes

_EXAMPLES = """
Examples:

    llvid pull llava-hf/LLaVA-NeXT-Video-7B-hf

    llvid pull llava-hf/LLaVA-NeXT-Video-34B-hf --revision main --json
"""
_ABOUT = (
    "Download a checkpoint, and print the folder where it lies. What was interrupted goes on with the same command. "
    "All files are of one commit, only those that are needed come, and each is checked against the hub's checksum."
)


def add_to(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("pull", help=f"{_ABOUT}\n{_EXAMPLES}")(pull)


@takes(output=OutputFlags)
def pull(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A hub id, such as owner/name.", show_default=False)],
    *,
    revision: Annotated[
        str | None,
        typer.Option("--revision", metavar="REV", help="Branch, tag or commit [default: main].", show_default=False),
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="Ask no network: what was downloaded before, or an error.")
    ] = False,
    output: OutputFlags,
) -> None:
    """Download, and print the folder."""
    if local_folder(model) is not None:
        folder = locate(model)
        found = Fetched(folder, None, folder_bytes(folder))
        if not output.quiet:
            console.note(f"{model} needs no download")
    else:
        with console.progress(output.quiet) as spinner:
            found = download(model, revision, spinner, quiet=output.quiet, offline=offline)
        if not output.quiet:
            console.note(_outcome(found))
    if output.json:
        values = {"model": model, "revision": found.commit, "folder": str(found.folder), "bytes": found.bytes}
        console.write_json(values | {"downloaded_bytes": found.downloaded_bytes, "checked": found.is_checked})
    else:
        console.write(f"{found.folder}\n")


def _outcome(found: Fetched) -> str:
    came = f"{console.size(found.downloaded_bytes)} downloaded" if found.downloaded_bytes else "nothing to download"
    if not found.is_checked:
        came = "as it was downloaded before: the hub wasn't asked"
    return f"revision {found.commit}: {console.size(found.bytes)}, {came}"
