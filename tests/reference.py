"""The README's command reference, made from the program's own commands: `python tests/reference.py` writes it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- reference: written by tests/reference.py -->", "<!-- end of reference -->"


def reference() -> str:
    """Return the Markdown of all commands; options that commands share stand once, by their panels."""
    from llava_video_cli.cli.group import commands

    parts, panels = [], dict[str, dict[str, tuple[str, list[str]]]]()
    for name, command in commands().items():
        usage = " ".join(
            ["llvid", name, *(_argument(p) for p in command.params if p.param_type_name == "argument"), "[OPTIONS]"]
        )
        about, _, examples = str(command.help).partition("Example")
        parts.append(f"### `llvid {name}`\n\n{_one_line(about)}\n\n```\n{usage}\n{_examples(examples)}```\n")
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
    parts.append("### Options that commands share\n")
    for panel, rows in panels.items():
        lines = [f"| {option} | {about} | {', '.join(users)} |" for option, (about, users) in rows.items()]
        parts.append(f"| {panel} | | used by |\n|---|---|---|\n" + "\n".join(lines) + "\n")
    return "\n".join(parts)


def written(readme: str) -> str:
    """Return the README's text with the reference in its place."""
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n\n{reference()}\n{END}{rest.split(END)[1]}"


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
    README.write_text(written(README.read_text(encoding="utf-8")), encoding="utf-8")
