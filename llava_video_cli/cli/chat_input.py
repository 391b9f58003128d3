"""The lines of a chat: typed, with editing, history and completion, or from a pipe."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import ModuleType

from ..errors import UsageError
from ..system.files import state_folder
from .console import shown, stderr

_PROMPT = "> "
_MOST_LINES = 1000  # of the history that are kept
_MOST_BYTES = 2**20

Complete = Callable[[str], list[str]]


def history_file() -> Path:
    """Return where the history is kept."""
    return state_folder() / "history"


class ChatInput:
    """Lines from stdin; `interactive` if a user types them.

    `history` is the file where typed lines are kept, if any; only its owner can read it. `complete` returns the
    completions of a line, each as a whole line.
    """

    def __init__(self, history: Path | None, complete: Complete) -> None:
        if sys.stdin is None:
            raise UsageError("the questions come from stdin, but it is closed")
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")  # paths are not always text
        self.interactive = sys.stdin.isatty()
        self._history = history if self.interactive else None
        # Python's input() edits lines only if both are terminals, and writes its prompt to stdout.
        self._editor = _editor(complete) if self.interactive and sys.stdout.isatty() else None
        if self._history is not None and self._editor is not None:
            for line in read_history(self._history):
                self._editor.add_history(line)

    def next(self) -> str | None:
        """Return the next line, None at the end; raises `KeyboardInterrupt` if Ctrl-C is typed."""
        if not self.interactive:
            return sys.stdin.readline() or None
        with _interruptible():
            line = self._typed()
        if line is not None and line.strip() and self._history is not None:
            with suppress(OSError), _private(self._history) as file:
                file.write(os.fsencode(line.replace("\n", " ")) + b"\n")
        return line

    def _typed(self) -> str | None:
        if self._editor is not None:
            try:
                return input(_PROMPT)
            except EOFError:
                return None
        stderr.file.write(_PROMPT)
        stderr.file.flush()
        return sys.stdin.readline() or None


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let Ctrl-C discard a line, also while a model loads: nothing is imported here that it could break."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _editor(complete: Complete) -> ModuleType | None:
    try:
        import readline
    except ImportError:  # on Windows
        return None

    matches: list[str] = []

    def offer(_: str, number: int) -> str | None:
        if number == 0:
            # The terminal would obey control characters in a name.
            matches[:] = [line for line in complete(readline.get_line_buffer()) if shown(line, one_line=True) == line]
        return matches[number] if number < len(matches) else None

    readline.set_completer_delims("")  # the line as a whole: paths have spaces
    readline.set_completer(offer)
    readline.parse_and_bind("bind ^I rl_complete" if "libedit" in (readline.__doc__ or "") else "tab: complete")
    return readline


def read_history(path: Path) -> list[str]:
    """Return the last lines of a history, and shorten a long file."""
    try:
        content = path.read_bytes()
    except OSError:
        return []
    lines = content[-_MOST_BYTES:].splitlines(keepends=True)[-_MOST_LINES:]
    if len(content) > _MOST_BYTES or content.count(b"\n") > 2 * _MOST_LINES:
        beside = path.with_name(f"{path.name}.{os.getpid()}")
        with suppress(OSError):
            with _private(beside) as file:
                file.writelines(lines)
            beside.replace(path)
    return [shown(os.fsdecode(line).rstrip("\n"), one_line=True) for line in lines]


@contextmanager
def _private(path: Path) -> Iterator[io.BufferedWriter]:
    """Open a file to append lines; only its owner can read it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab") as file:  # noqa: PTH123 - a descriptor
        yield file
