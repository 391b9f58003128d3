"""The command reference, docs/commands.md, made from the program's own help: `make docs` writes it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[1] / "docs" / "commands.md"
_HEAD = """# Commands

<!-- Written by `make docs` from `llvid COMMAND --help`: change the help, not this page. -->
"""


def reference() -> str:
    """Return the page: all commands; then the options that commands share, each once, by their panels."""
    from llava_video_cli.cli.app import ABOUT
    from llava_video_cli.cli.app import command as imported

    parts, panels = [_HEAD], dict[str, dict[str, tuple[str, list[str]]]]()
    for name, command in zip(ABOUT, map(imported, ABOUT), strict=True):
        usage = " ".join(
            ["llvid", name, *(_argument(p) for p in command.params if p.param_type_name == "argument"), "[OPTIONS]"]
        )
        about, _, examples = str(command.help).partition("Example")
        parts.append(f"## `llvid {name}`\n\n{_one_line(about)}\n\n```\n{usage}\n{_examples(examples)}```\n")
        own = []
        for param in command.params:
            panel = getattr(param, "rich_help_panel", None)
            if param.param_type_name == "argument":
                own.append(f"| `{_argument(param).strip('[]')}` | {_one_line(param.help)} |")
            elif panel:
                row = panels.setdefault(panel, {}).setdefault(_option(param), (_one_line(param.help) + _env(param), []))
                row[1].append(name)
            elif param.name != "help":
                own.append(f"| {_option(param)} | {_one_line(param.help)} |")
        if own:
            parts.append("| | |\n|---|---|\n" + "\n".join(own) + "\n")
    parts.append("## Options that commands share\n")
    for panel, rows in panels.items():
        lines = [f"| {option} | {about} | {', '.join(users)} |" for option, (about, users) in rows.items()]
        parts.append(f"| {panel} | | used by |\n|---|---|---|\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def _argument(param: Any) -> str:
    name = str(param.metavar or param.name.upper()).strip("[].")
    name = f"{name}..." if param.nargs == -1 else name
    return name if param.required else f"[{name}]"


def _option(param: Any) -> str:
    names = ", ".join(f"`{name}`" for name in param.opts)
    choices = getattr(param.type, "choices", None)
    value = "" if param.is_flag else param.metavar or ("|".join(choices) if choices else "")
    return f"{names} {value}".strip().replace("|", "\\|")


def _env(param: Any) -> str:
    return f" Environment: `{param.envvar}`." if param.envvar else ""


def _one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip().replace("|", "\\|")


def _examples(text: str) -> str:
    lines = [line.strip() for line in text.splitlines()[1:] if line.strip()]
    return "".join(f"{line}\n" for line in lines)


if __name__ == "__main__":
    PAGE.write_text(reference(), encoding="utf-8")
