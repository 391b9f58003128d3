"""`llvid pull`: a checkpoint from the hub, complete and checked."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from ..checkpoint import local_folder, locate
from ..checkpoint.hub import Fetched, folder_bytes
from ..errors import UsageError
from ..preset import model_of
from ..system.background import LOADING, Background
from . import console
from .completion import downloads_for
from .download import download
from .options import OutputFlags, option

HELP = """Download a checkpoint, and print its folder. Run the same command again to resume an interrupted download.
Only the files that llvid needs are downloaded, all of one commit, and each is checked against the hub's
checksum. --quantize also stores a quantized copy in --to DIR; `-m DIR` loads it without quantizing again.

Examples:

    llvid pull 7b

    llvid pull llava-hf/LLaVA-NeXT-Video-34B-hf --quantize 4bit --to 34b-4bit
"""


def pull(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A hub id (owner/name), `7b` or `34b`, or a preset's name.",
            show_default=False,
            autocompletion=downloads_for,
        ),
    ],
    *,
    revision: Annotated[str | None, option("Branch, tag or commit [default: main].", metavar="REV")] = None,
    offline: Annotated[bool, option("Use no network, and fail if anything is missing.", "--offline")] = False,
    quantize: Annotated[Literal["8bit", "4bit"] | None, option("Also store a quantized copy in --to DIR.")] = None,
    to: Annotated[Path | None, option("Folder for the quantized copy.", metavar="DIR")] = None,
    output: OutputFlags,
) -> None:
    """Download, store a quantized copy if asked to, and print the folder."""
    if (quantize is None) != (to is None):
        raise UsageError("use --quantize and --to together", "llvid pull MODEL --quantize 4bit --to DIR")
    model = model_of(model)
    local = _local_copy(model, revision, output, offline=offline)
    folder = str(local.folder)
    values: dict[str, object] = {"model": model, "revision": local.commit, "folder": folder, "bytes": local.bytes}
    values |= {"downloaded_bytes": local.downloaded_bytes, "checked": local.is_checked}
    if quantize is not None and to is not None:
        values |= {"quantize": quantize, "source": folder} | _stored(model, local.folder, quantize, to, output)
    if output.json:
        console.write_json(values)
    else:
        console.write(f"{values['folder']}\n")


def _local_copy(model: str, revision: str | None, output: OutputFlags, *, offline: bool) -> Fetched:
    if local_folder(model, revision) is not None:
        folder = locate(model)
        output.note(f"{model} needs no download")
        return Fetched(folder, None, folder_bytes(folder))
    with console.progress(output.quiet) as spinner:
        local = download(model, revision, spinner, quiet=output.quiet, offline=offline)
    source = f"{console.size(local.downloaded_bytes)} downloaded" if local.downloaded_bytes else "nothing to download"
    if not local.is_checked:
        source = "already downloaded; the hub was not asked"
    output.note(f"revision {local.commit}: {console.size(local.bytes)}, {source}")
    return local


def _stored(
    model: str, folder: Path, quantize: Literal["8bit", "4bit"], to: Path, output: OutputFlags
) -> dict[str, object]:
    """Store a quantized copy; return what the JSON line says about it."""
    from ..inference.quantized import check_store, load_quantized, write

    check_store(folder, to, quantize)
    with console.progress(output.quiet) as spinner:
        spinner.say(f"quantizing {model}")
        loaded = Background(LOADING, load_quantized, folder, quantize, model).result()
        spinner.say(f"writing {to}")
        written = write(loaded, folder, to)
    output.note(f"stored the {quantize} copy: {console.size(written)}")
    return {"folder": str(to), "bytes": written, "dtype": loaded.placement.dtype}
