"""A program that renders chat templates: each line in is a JSON request, each line out its text or an error.

A template is a program that comes with a checkpoint. Here it can waste no more than this process may have: the address
space and the time of a processor are bounded, and the process ends when it wants more; the parent kills what goes on
for too long. The file is run by its path, so that nothing of the package is imported.
"""

from __future__ import annotations

import json
import signal
import sys
from contextlib import suppress
from datetime import datetime
from functools import cache
from typing import Any

_MOST_BYTES = 512 * 2**20
_MOST_CHARACTERS = 2**23
_SECONDS = 3  # of a processor: a busy machine takes none of them away


@cache
def environment() -> Any:
    """Return an environment as transformers makes it."""
    from jinja2 import Environment, nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """`{% generation %}`, which marks an answer for training, and changes no text."""

        tags = {"generation"}  # noqa: RUF012 - as the base class has it

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return list(parser.parse_statements(("name:endgeneration",), drop_needle=True))

    def raise_exception(message: str) -> None:
        raise ValueError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **options: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **options)

    made: Environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
    )
    made.globals["raise_exception"] = raise_exception
    made.globals["strftime_now"] = lambda form: datetime.now().astimezone().strftime(form)
    made.filters["tojson"] = tojson
    return made


@cache
def compiled(source: str) -> Any:
    """Return a template, compiled once."""
    return environment().from_string(source)


def answer(line: str) -> dict[str, str]:
    """Return the text of a request, or what went wrong. Raises `MemoryError` for what takes too much."""
    request = json.loads(line)
    try:
        text = compiled(request["source"]).render(request["values"])
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - a template can raise anything
        return {"error": f"{type(error).__name__}: {error}"[:1000]}
    if len(text) > _MOST_CHARACTERS:
        raise MemoryError
    return {"text": text}


def main() -> None:
    """Answer until the parent closes the pipe."""
    with suppress(ImportError, ValueError, OSError):  # Windows has none, and Apple refuses it
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MOST_BYTES, _MOST_BYTES))
    has_timer = hasattr(signal, "setitimer")  # Windows has none
    environment()
    _write("ready")
    for line in sys.stdin:
        if has_timer:
            signal.setitimer(signal.ITIMER_PROF, _SECONDS)
        _write(json.dumps(answer(line)))
        if has_timer:
            signal.setitimer(signal.ITIMER_PROF, 0)


def _write(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
