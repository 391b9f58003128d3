"""YAML in and out: plain data, each key once, no aliases; imported late, as yaml takes a moment."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, NoReturn

import yaml

from .errors import UsageError

_MOST_NESTED = 32
_WIDTH = 120
# YAML takes these for ends of lines, too, and would read some of them back as another one.
_ODD_BREAKS = "\r\x85\u2028\u2029"


class _Reader(yaml.SafeLoader):
    """Refuses what a text of a few lines could grow to gigabytes by, and what would be dropped silently."""

    _nested = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            self._refuse("aliases are not taken")
        self._nested += 1
        if self._nested > _MOST_NESTED:
            self._refuse("nested too deeply")
        node = super().compose_node(parent, index)
        self._nested -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Hashable, Any]:
        seen = set[str]()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                problem = f"the key {key.value!r} stands there twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            seen.add(str(key.value))
        return super().construct_mapping(node, deep)

    def _refuse(self, problem: str) -> NoReturn:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)


class _Writer(yaml.SafeDumper):
    """Writes texts of several lines as they look."""

    def ignore_aliases(self, data: Any) -> bool:
        del data
        return True


def _text(writer: _Writer, text: str) -> yaml.ScalarNode:
    style = '"' if any(mark in text for mark in _ODD_BREAKS) else "|" if "\n" in text else None
    return writer.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Writer.add_representer(str, _text)


def read_yaml(text: str) -> object:
    """Return the plain data that a text holds; raises UsageError with the line of what is wrong."""
    try:
        return yaml.load(text, _Reader)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise UsageError(f"{where}not YAML: {getattr(error, 'problem', None) or error}") from None


def write_yaml(value: object) -> str:
    """Return plain data as text that `read_yaml` takes back."""
    return yaml.dump(value, Dumper=_Writer, allow_unicode=True, sort_keys=False, width=_WIDTH)
