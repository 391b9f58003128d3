"""`llvid chat`: a conversation about videos and pictures, typed or from a pipe."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import LlvidError, UsageError
from ..runs.conversation_file import read_conversation
from ..runs.session import Session
from ..system.files import state_folder
from . import console, decisions
from .download import typed_media
from .options import AnswerFlags, AnyModelFlags, FrameFlags, PresetFlag, TextFlags, option
from .settings import settle

if TYPE_CHECKING:
    from .chat_session import TerminalChat

HELP = """Talk about videos and pictures: the model remembers the conversation.

/help lists the commands of a chat; Ctrl-C stops an answer, Ctrl-D ends the chat. If stdin is a pipe, each
line is a question or a command, and the exit code is 1 if one of them failed.

Examples:

    llvid chat video.mp4

    llvid chat --load talk.yaml

    printf 'Who is in it?\\nWhere are they?\\n' | llvid chat video.mp4
"""
_PROMPT = "> "
_MOST_LINES = 1000  # of the history
_MOST_BYTES = 2**20
_FIRST_CHECK_SECONDS = 0.2  # a missing model is usually reported before the first question is typed


def chat(
    media: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="MEDIA...",
            show_default=False,
            help="Videos and pictures for the first question, as for `llvid ask`, but not from stdin.",
        ),
    ] = None,
    *,
    load: Annotated[
        Path | None, option("Continue a conversation from a YAML or JSON file that /save wrote.", metavar="FILE")
    ] = None,
    no_history: Annotated[bool, option("Do not save a history of typed lines.", "--no-history")] = False,
    model: AnyModelFlags,
    frames: FrameFlags,
    text: TextFlags,
    preset: PresetFlag,
    output: AnswerFlags,
) -> int:
    """Read and answer lines until stdin ends; return the exit code."""
    if "-" in (media or ()):
        raise UsageError(
            "a chat reads its questions from stdin, so the video can't come from there", "write it to a file first"
        )
    with typed_media(media or (), output) as paths:
        written = read_conversation(load) if load is not None else None
        settings = settle(preset, model, frames, text, written)
        output.detail(*decisions.chosen(settings, preset, model))

        from .chat_commands import completions, protocol
        from .chat_session import TerminalChat

        chosen, drafts = settings.preset, written.drafts if written is not None else ()
        generation = chosen.generation.asked(settings.drawn_seed)
        session = Session.of(drafts, chosen.sampling, generation)
        session = replace(session, system=chosen.system, timestamps=chosen.timestamps)
        for path in paths:
            session = session.add(path)
        with console.progress(output.quiet) as progress:
            lines = ChatInput(None if no_history else state_folder() / "history", completions)
            terminal_chat = TerminalChat(session, settings, output, progress, stops=lines.interactive)
            terminal_chat.file = load
            if lines.interactive and console.stdout_is_terminal() and sys.stderr.isatty():
                terminal_chat.pictures = protocol(os.environ)
            terminal_chat.load_anyway()
            terminal_chat.media(session)
            terminal_chat.loader.check(_FIRST_CHECK_SECONDS)
            if lines.interactive:
                terminal_chat.say(_welcome(session))
            return _loop(terminal_chat, lines)


def _loop(terminal_chat: TerminalChat, lines: ChatInput) -> int:
    from .chat_commands import take

    failed = False
    while True:
        terminal_chat.loader.check()
        try:
            line = lines.next()
            if line is None:
                break
            if not take(terminal_chat, line):
                return int(failed and not lines.interactive)
        except KeyboardInterrupt:
            if not lines.interactive:
                raise
            terminal_chat.spinner.stop()
            console.stderr.print()
        except LlvidError as failure:
            terminal_chat.loader.check()  # without a model the chat ends
            terminal_chat.spinner.stop()
            console.error(failure)
            failed = True
    if lines.interactive:
        console.stderr.print()  # the shell's prompt begins on a line of its own
    return int(failed and not lines.interactive)


def _welcome(session: Session) -> str:
    parts = []
    if session.exchanges:
        parts.append(f"questions answered so far: {len(session.exchanges)}")
    if session.question is not None:
        parts.append("the last question has no answer yet: /retry asks it")
    elif session.waiting:
        parts.append(f"the next question is about {', '.join(session.waiting)}")
    return "; ".join([*parts, "/help lists the commands, Ctrl-D ends the chat"])


class ChatInput:
    """Lines from stdin; `interactive` if a user types them.

    `history` is the file where typed lines are kept, if any; only its owner can read it. `complete` returns the
    completions of a line, each as a whole line.
    """

    def __init__(self, history: Path | None, complete: Callable[[str], list[str]]) -> None:
        if sys.stdin is None:
            raise UsageError("can't read questions: stdin is closed")
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")  # paths are not always text
        self.interactive = sys.stdin.isatty()
        self._history = history if self.interactive else None
        # Python's input() edits lines only if both are terminals, and writes its prompt to stdout.
        self._editor = _editor(complete) if self.interactive and console.stdout_is_terminal() else None
        if self._history is not None and self._editor is not None:
            for line in read_history(self._history):
                self._editor.add_history(line)

    def next(self) -> str | None:
        """Return the next line, None at the end; raises `KeyboardInterrupt` if Ctrl-C is typed."""
        if not self.interactive:
            return sys.stdin.readline() or None
        # Ctrl-C discards a line, even while a model loads: this thread imports nothing that it could interrupt.
        with _handled(signal.SIGINT, signal.default_int_handler):
            line = self._typed()
        if line is not None and line.strip() and self._history is not None:
            with suppress(OSError), _private(self._history) as file:
                file.write(os.fsencode(line.replace("\n", " ")) + b"\n")
        return line

    def _typed(self) -> str | None:
        if self._editor is not None:
            try:
                return _edited(self._editor)
            except EOFError:
                return None
        console.stderr.file.write(_PROMPT)
        console.stderr.file.flush()
        return sys.stdin.readline() or None


class _StoppedError(Exception):
    """Ctrl-Z was typed, and the program goes on; the argument is what was typed of the line."""


def _edited(editor: ModuleType) -> str:
    """Return a line. After Ctrl-Z it begins again with what was typed: the shell changed the mode of the terminal."""

    def stop(*_: object) -> None:
        with _handled(signal.SIGTSTP, signal.SIG_DFL):
            signal.raise_signal(signal.SIGTSTP)  # returns when the program goes on
        raise _StoppedError(editor.get_line_buffer())

    typed = ""
    while True:
        editor.set_startup_hook(partial(editor.insert_text, typed))
        try:
            with _handled(signal.SIGTSTP, stop):
                return input(_PROMPT)
        except _StoppedError as stopped:
            typed = str(stopped)
            sys.stdout.write("\r")


@contextmanager
def _handled(number: int, handler: Callable[..., object] | signal.Handlers) -> Iterator[None]:
    before = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, before)


def _editor(complete: Callable[[str], list[str]]) -> ModuleType | None:
    try:
        import readline
    except ImportError:  # on Windows
        return None

    matches: list[str] = []

    def offer(_: str, number: int) -> str | None:
        if number == 0:
            # The terminal would execute control characters in a name.
            matches[:] = [
                line for line in complete(readline.get_line_buffer()) if console.shown(line, one_line=True) == line
            ]
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
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        with suppress(OSError):
            with _private(temporary) as file:
                file.writelines(lines)
            temporary.replace(path)
    return [console.shown(os.fsdecode(line).rstrip("\n"), one_line=True) for line in lines]


@contextmanager
def _private(path: Path) -> Iterator[io.BufferedWriter]:
    """Open a file to append lines; only its owner can read it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab") as file:  # noqa: PTH123 - a descriptor
        yield file
