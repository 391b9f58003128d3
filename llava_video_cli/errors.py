"""The errors of the package, as classes to be caught.

LlvidError                exit code 1
├── UsageError            exit code 2: an option, a question or a preset that makes no sense
├── MediaError            a video or picture that can't be read
├── MissingExtraError     a package that is installed with one of our extras
├── ServerError           a server that can't be reached, refuses the key or has another model: every request would fail
└── ModelError            a checkpoint that can't be loaded or can't run here
    ├── ContextError      a prompt that doesn't fit the checkpoint's context
    ├── GrammarError      a schema or regex that is too complex to go on with
    └── OutOfMemoryError  an answer that needs more memory than is free: fewer at a time may fit
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LlvidError(Exception):
    """A failure that is not a bug.

    `str(error)` is one line, without a full stop; `hint` is the next step or None; `exit_code` is the exit code of
    the program when nothing catches the error.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(LlvidError):
    """An option, a question, a preset or a request makes no sense."""

    exit_code = 2


class MediaError(LlvidError):
    """A video or picture can't be read; `path` names it, where that is known."""

    path = ""


class MissingExtraError(LlvidError):
    """An optional package is not installed; `extra` is the extra of ours that brings it."""

    def __init__(self, message: str, extra: str = "") -> None:  # unpickling gives no extra, and then sets the hint
        super().__init__(message, extra_hint(extra))


class ServerError(LlvidError):
    """A server can't be used at all: every request to it would fail."""


class ModelError(LlvidError):
    """A checkpoint can't be loaded, or can't run on this machine."""


class ContextError(ModelError):
    """The prompt doesn't fit the context that the checkpoint was trained for."""


class GrammarError(ModelError):
    """A schema or regex turned out to be too complex in the middle of an answer; a simpler one may do."""


class OutOfMemoryError(ModelError):
    """The requests need more memory than is free; the model is still loaded, and fewer requests may fit."""


def extra_hint(extra: str) -> str:
    """Return the hint for what needs an extra of the package. The package is on no index, so a clone installs it."""
    return f"pip install '.[{extra}]' in your clone of llvid"


def first_line(error: BaseException) -> str:
    """Return the first line of an error, with the next one if that says what it announces; or the error's class."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return " ".join(line.strip() for line in lines[: 2 if lines[0].rstrip().endswith(":") else 1])


def last_line(error: BaseException) -> str:
    """Return the last line of an error, for libraries that give the reason there."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


def described(error: BaseException) -> str:
    """Return the class and the first line of an error of any kind."""
    words = first_line(error)
    return words if words == type(error).__name__ else f"{type(error).__name__} {words}"


def nearest(word: str, known: Iterable[str], *, least: float = 0.6) -> str | None:
    """Return a hint with the known word that is most similar to a mistyped one; None below the similarity `least`."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=least)
    return f"did you mean {close[0]!r}?" if close else None
