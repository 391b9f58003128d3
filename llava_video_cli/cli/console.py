"""The terminal: answers go to stdout, everything else to stderr; control characters are shown, not executed."""

from __future__ import annotations

import re
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from shutil import get_terminal_size
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from ..errors import LlvidError

stderr = Console(stderr=True, highlight=False, markup=False, soft_wrap=True, emoji=False)

# C0 controls have pictures (U+2400 and on); the rest are written as escapes.
_PICTURES = {chr(code): chr(0x2400 + code) for code in range(0x20)} | {"\x7f": "\u2421"}
_UNSAFE = ("Cc", "Cf", "Cs", "Zl", "Zp")
_MOST_SHOWN = 10_000  # characters of an error: it may have two paths, of 4,096 at most
_JOINERS = "\u200c\u200d"
_SLOW_SECONDS, _REFRESH_SECONDS = 0.5, 0.1


def shown(text: str, one_line: bool = False) -> str:
    """Return text in which control and formatting characters are visible, so that the terminal does not execute them.

    Line breaks and tabs stay, except with `one_line`. Covers C0, C1, the direction marks that reorder a
    line, and lone surrogates (the odd bytes of a file's name).
    """
    kept = _JOINERS if one_line else _JOINERS + "\n\t"
    unsafe = [each for each in set(text) if each not in kept and unicodedata.category(each) in _UNSAFE]
    return text.translate({ord(each): _PICTURES.get(each) or f"\\u{ord(each):04x}" for each in unsafe})


def write(text: str) -> None:
    """Write a piece of an answer to stdout at once."""
    _put(shown(text))


def write_json(value: Any) -> None:
    """Write a line of JSON to stdout; control characters are escaped, so that a terminal can show the line safely."""
    from ..runs.formats import json_line  # `llvid --help` needs none of it

    _put(json_line(value) + "\n")


def stdout_is_terminal() -> bool:
    """Whether stdout is a terminal, also while Rich shows a bar: what Rich 14 puts in its place denies it."""
    return bool(getattr(sys.stdout, "rich_proxied_file", sys.stdout).isatty())


def _put(text: str) -> None:
    # While Rich shows a bar on stderr, it prints on the terminal what is written to sys.stdout, also if that is a file.
    behind = getattr(sys.stdout, "rich_proxied_file", None)
    if behind is not None and behind.isatty():
        sys.stdout.write(text)  # each line when it is whole, above the bar
        return
    stdout = behind or sys.stdout
    stdout.write(text)
    stdout.flush()


class Prose:
    """Writes an answer to stdout as it comes; on a terminal, lines end between words.

    The last word is written when its end is there. `column` is where the cursor is, in characters; `end` ends the line.
    """

    def __init__(self, column: int = 0) -> None:
        self._wraps, self._lines = stdout_is_terminal(), _Lines(column)

    def write(self, text: str) -> None:
        """Write a piece."""
        if not self._wraps:
            write(text)
        elif placed := self._lines.placed(shown(text)):
            _put(placed)

    def end(self) -> None:
        """Write the last word, and a line end."""
        _put(self._lines.placed("\n"))


class _Lines:
    """Puts line ends between the words of a text that comes in pieces; `width` is the terminal's, unless given."""

    def __init__(self, column: int = 0, width: int | None = None) -> None:
        self._column, self._width = column, width
        self._space = self._word = ""

    def placed(self, text: str) -> str:
        """Return the words that end in a piece, each with what is before it: spaces, or a line end."""
        lines = []
        for character in text:
            if character.isspace():
                lines.append(self._placed())
                self._space += character
                if character == "\n":
                    lines.append("\n")
                    self._column, self._space = 0, ""
            else:
                # Chinese and Japanese have no spaces: a line may end before each character, if it is no mark.
                if unicodedata.east_asian_width(character) in "WF" and unicodedata.category(character)[0] == "L":
                    lines.append(self._placed())
                self._word += character
        return "".join(lines)

    def _placed(self) -> str:
        if not self._word:
            return ""
        word, between, width = self._word, self._space, self._width or _terminal_columns()
        cells = cell_len(word)
        if self._column and self._column + cell_len(between) + cells > width:
            between, self._column = "\n", 0
        else:
            cells += cell_len(between)
        self._column = (self._column + cells - 1) % width + 1  # of a word longer than the line, what is in the last one
        self._space = self._word = ""
        return between + word


def _terminal_columns() -> int:
    return get_terminal_size((stderr.width, 0)).columns  # stdout's; if that is no terminal, stderr's


def note(text: str) -> None:
    """Write a line to stderr; on a terminal, it ends between words."""
    lines = columns("", shown(text, one_line=True), 0, wraps=stderr.is_terminal)
    stderr.print(Text("\n".join(lines), style="dim"))


def columns(first: str, text: str, width: int, *, wraps: bool) -> list[str]:
    """Return the lines of a row: a first column of `width`, in which wide letters count twice, and a text shown safely.

    If it `wraps`, the text keeps to its column, and its lines end between words.
    """
    first = set_cell_size(first, width)
    if not wraps:
        return [first + text]
    words = re.sub(r"\s", " ", text) + "\n"
    lines = _Lines(width=max(_terminal_columns() - width, width, 1)).placed(words).splitlines()
    return [(" " * width if number else first) + line for number, line in enumerate(lines)]


def confirmed(question: str) -> bool:
    """Ask on the terminal; return whether the answer is yes."""
    stderr.print(f"{shown(question, one_line=True)} [y/N] ", end="")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def error(failure: LlvidError | str, hint: str | None = None) -> None:
    """Write the line of an error, and its hint."""
    hint = failure.hint if isinstance(failure, LlvidError) else hint
    stderr.print(Text.assemble(("error: ", "bold red"), shown(_cut(str(failure)), one_line=True)))
    if hint:
        stderr.print(Text.assemble(("hint: ", "bold"), shown(_cut(hint), one_line=True)))


def _cut(text: str) -> str:
    """Return a message without what is too much of it: a stranger's file may have a value of megabytes."""
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def size(count: int) -> str:
    """Return a number of bytes as text, in decimal units as on the hub."""
    for unit, unit_bytes in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= unit_bytes:
            return f"{count / unit_bytes:.1f} {unit}"
    return f"{count} bytes"


class Progress:
    """A spinner that says what is being done; on a terminal only."""

    def __init__(self, quiet: bool) -> None:
        self._status = None if quiet or not stderr.is_terminal else stderr.status("", spinner="dots")

    def say(self, text: str) -> None:
        """Show what is being done now."""
        if self._status is not None:
            self._status.update(Text(shown(text, one_line=True), style="dim"))
            self._status.start()

    def watch(self, text: str) -> Callable[[float], None]:
        """Show what is being done; return what shows the share that is done, if it takes over half a second."""
        self.say(text)
        due = time.monotonic() + _SLOW_SECONDS

        def show(share: float) -> None:
            nonlocal due
            if time.monotonic() >= due:
                due = time.monotonic() + _REFRESH_SECONDS
                self.say(f"{text}: {share:.0%}")

        return show

    def stop(self) -> None:
        """Hide the spinner; `say` shows it again."""
        if self._status is not None:
            self._status.stop()


@contextmanager
def progress(quiet: bool) -> Iterator[Progress]:
    """Give a spinner that is hidden at the end, whatever happens."""
    spinner = Progress(quiet)
    try:
        yield spinner
    finally:
        spinner.stop()
