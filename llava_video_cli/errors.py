"""What can go wrong, as classes that exist to be caught.

LlvidError                exit code 1
├── UsageError            exit code 2: an option, a question or a preset that makes no sense
├── MediaError            a video or picture that can't be read
├── ServerError           a server that can't be reached, refuses the key or has another model: no request will do
└── ModelError            a checkpoint that can't be loaded or can't run here
    ├── ContextError      a prompt that doesn't fit the checkpoint's context
    └── OutOfMemoryError  an answer that needs more memory than is free: fewer at a time may fit
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class LlvidError(Exception):
    """A failure with one line to read and, where there is one, a next step.

    `str(error)` is the line, without a full stop; `hint` is the next step or None; `exit_code` is the
    process's exit code when nothing catches the error.
    """

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(LlvidError):
    """The request itself makes no sense."""

    exit_code = 2


class MediaError(LlvidError):
    """A video or picture can't be read."""


class ServerError(LlvidError):
    """A server answers nothing, whatever is asked."""


class ModelError(LlvidError):
    """A checkpoint can't be loaded, or can't run on this machine."""


class ContextError(ModelError):
    """The prompt doesn't fit the context that the checkpoint was trained for."""


class OutOfMemoryError(ModelError):
    """What was asked for at a time needs more memory than is free; nothing is lost but the attempt."""


def first_line(error: BaseException) -> str:
    """Return the first line of what a library's error says, or its class where it says nothing."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].strip()


def last_line(error: BaseException) -> str:
    """Return the last line, for errors that say the reason at their end."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1].strip()


def described(error: BaseException) -> str:
    """Return an unknown error's class and the first line of what it says."""
    words = first_line(error)
    return words if words == type(error).__name__ else f"{type(error).__name__} {words}"


def nearest(word: str, known: Iterable[str], *, least: float = 0.5) -> str | None:
    """Return a hint that names the known word nearest to a mistyped one, or None if none is as near as `least` of 1."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=least)
    return f"did you mean {close[0]!r}?" if close else None
