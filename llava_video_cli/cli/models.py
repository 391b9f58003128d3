"""`llvid models`: the checkpoints in the hub's cache, and their removal."""

from __future__ import annotations

import sys
from dataclasses import asdict
from datetime import datetime
from typing import Annotated

import typer

from ..errors import LlvidError, UsageError, nearest
from ..preset import model_of
from . import console
from .completion import cached_models_for
from .options import OutputFlags, option

HELP = """List the models on this machine, or remove some: size, family, licence, and when each was used last. They are
in the cache of the Hugging Face hub, which other programs share (HF_HOME).

Examples:

    llvid models

    llvid models rm llava-hf/LLaVA-NeXT-Video-34B-hf
"""


def models(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[rm NAME...]", show_default=False, autocompletion=cached_models_for,
            help="`rm` and names of models: remove these, with all their revisions.",
        ),
    ] = None,
    *,
    yes: Annotated[bool, option("Remove without asking.", "--yes", "-y")] = False,
    output: OutputFlags,
) -> None:  # fmt: skip
    """Print the list, or remove what is named."""
    action, *names = words or ["list"]
    if action == "rm":
        if not names:
            raise UsageError("`llvid models rm` needs a NAME", "`llvid models` lists them")
        from ..checkpoint.cache import find

        sizes = {name: console.size(find(name).size_on_disk) for name in map(model_of, names)}
        for name, size in sizes.items():  # all are there: a typing error removes nothing
            _remove(name, size, output, yes=yes)
    elif action in ("list", "ls") and not names:
        _list(output)
    else:
        line = f"llvid models rm {action}" if "/" in action else None
        raise UsageError(f"`llvid models` knows only `rm`, got {action!r}", line or nearest(action, ["rm"]))


def _list(output: OutputFlags) -> None:
    from ..checkpoint.cache import cached_models
    from ..checkpoint.hub import cache_folder

    found, others = cached_models()
    if output.json:
        for model in found:
            console.write_json(asdict(model))
        return
    width = max((len(model.name) for model in found), default=0) + 2
    for model in found:
        used = datetime.fromtimestamp(model.used_seconds).astimezone().strftime("%Y-%m-%d")
        licence = f"licence {model.licence}" if model.licence else "licence on its page"
        parts = [console.size(model.bytes), model.family, licence, f"used {used}"]
        if model.lacks:
            parts.append(f"incomplete: `llvid pull {model.name}` completes it")
        rows = console.columns(model.name, console.shown(", ".join(parts)), width, wraps=console.stdout_is_terminal())
        console.write("".join(f"{row}\n" for row in rows))
    if not found:
        output.note(f"no models in {cache_folder()}; `llvid pull 7b` downloads one")
        return
    total = sum(model.bytes for model in found)
    rest = f"; {others} that llvid can't use" if others else ""
    output.note(f"{len(found)} model{'' if len(found) == 1 else 's'}, {console.size(total)}, in {cache_folder()}{rest}")


def _remove(name: str, size: str, output: OutputFlags, *, yes: bool) -> None:
    from ..checkpoint.cache import remove

    if not yes:
        if not (sys.stdin is not None and sys.stdin.isatty() and console.stderr.is_terminal):
            raise UsageError(f"{name} is not removed without asking", "add --yes to remove it without a question")
        if not console.confirmed(f"remove {name} ({size})?"):
            raise LlvidError(f"{name} is unchanged")
    freed = remove(name)
    if output.json:
        console.write_json({"model": name, "freed_bytes": freed})
    else:
        output.note(f"removed {name}: {console.size(freed)} are free again")
