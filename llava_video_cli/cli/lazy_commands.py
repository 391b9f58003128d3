"""The commands: each is imported only when it runs; `llvid --help` needs just their lines here."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import Any

import typer
from typer.core import TyperGroup

ABOUT = {
    "ask": "Ask one or more questions about a video or a picture.",
    "chat": "Talk about videos and pictures.",
    "caption": "Caption videos: one, or a folder of thousands.",
    "batch": "Answer a file of requests, a JSON line each.",
    "frames": "Show the frames that the model would see.",
    "bench": "Measure this machine: decoding, loading, tokens/s, videos/s, memory.",
    "report": "Make one HTML page to look through results.",
    "serve": "Keep a model loaded and answer over HTTP, as OpenAI's API does.",
    "pull": "Download a checkpoint.",
    "doctor": "Tell what this machine has, what a model needs, and what to do about each problem.",
    "presets": "List the presets, or show one.",
    "demo": "Write a short clip and ask the embedded demo checkpoint about it.",
}


class Commands(TyperGroup):
    """A group of commands; each is in the module of its name."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__(**attributes)
        names: dict[str, Any] = dict.fromkeys(ABOUT)
        self.commands = names  # mistyped names are compared with these

    def list_commands(self, ctx: Any) -> list[str]:  # noqa: ARG002
        """Return their names."""
        return list(ABOUT)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:  # noqa: ARG002
        """Import a command; None for an unknown name."""
        return command(cmd_name) if cmd_name in ABOUT else None

    def format_commands(self, ctx: Any, formatter: Any) -> None:  # noqa: ARG002
        """Write their lines."""
        with formatter.section("Commands"):
            formatter.write_dl(list(ABOUT.items()))


def command(name: str) -> Any:
    """Return a command of `ABOUT`, imported."""
    app = typer.Typer(rich_markup_mode=None, pretty_exceptions_enable=False, add_completion=False)
    import_module(f".{name}", __package__).add_to(app)
    result = typer.main.get_command(app)
    result.name = name
    return result


def commands(names: Iterable[str] = ABOUT) -> dict[str, Any]:
    """Return commands by their names."""
    return {name: command(name) for name in names}
