"""`llvid presets`: lists the presets, or shows one and where it comes from."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

import typer
from rich.cells import cell_len

from ..errors import UsageError
from ..preset import Preset, load_preset, preset_files, preset_folders, read_preset
from . import console
from .completion import presets_for
from .options import OutputFlags

HELP = """List the presets, or show one.

Examples:

    llvid presets

    llvid presets low-memory
"""


def presets(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]", help="A preset's name or path.", show_default=False, autocompletion=presets_for
        ),
    ] = None,
    *,
    output: OutputFlags,
) -> None:
    """Print the list, or the text of a preset."""
    if name is not None:
        preset = load_preset(name)
        assert preset.path is not None
        if output.json:
            console.write_json(_record(preset))
        else:
            output.note(str(preset.path))
            console.write(preset.path.read_text(encoding="utf-8-sig").rstrip("\n") + "\n")
        return
    all_presets = []
    for path in preset_files().values():
        try:
            all_presets.append(read_preset(path))
        except UsageError as failure:  # a broken preset must not hide the others
            console.error(failure)
    if output.json:
        for preset in all_presets:
            console.write_json(_record(preset))
        return
    width = max(cell_len(preset.name) for preset in all_presets)
    wraps = console.stdout_is_terminal()
    for preset in all_presets:
        for line in console.columns(preset.name, console.shown(preset.about), width + 2, wraps=wraps):
            console.write(f"{line}\n")
    output.note(f"put your own presets into {preset_folders()[0]}; `llvid presets NAME` shows one")


def _record(preset: Preset) -> dict[str, object]:
    return asdict(preset) | {"path": str(preset.path)}
