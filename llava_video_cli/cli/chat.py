"""`llvid chat`: a conversation about videos and pictures, typed or from a pipe."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import LlvidError
from ..runs.conversation_file import read_conversation
from ..runs.session import Session
from . import console
from .options import AnyModelFlags, FrameFlags, OutputFlags, PresetFlag, TextFlags
from .settings import settle

if TYPE_CHECKING:
    from .chat_input import ChatInput
    from .chat_session import TerminalChat

HELP = """Talk about videos and pictures: the model remembers the conversation.

/help lists the commands of a chat; Ctrl-C stops an answer, Ctrl-D ends the chat. From a pipe, each line is
a question or a command, and the exit code is 1 if one of them failed.

Examples:

    llvid chat video.mp4

    llvid chat --load talk.yaml

    printf 'Who is in it?\\nWhere are they?\\n' | llvid chat video.mp4
"""
_FIRST_CHECK_SECONDS = 0.2  # a missing model is mostly reported before the first question is typed


def chat(
    media: Annotated[
        list[str] | None,
        typer.Argument(metavar="MEDIA...", help="Videos and pictures for the first question.", show_default=False),
    ] = None,
    *,
    load: Annotated[
        Path | None,
        typer.Option(
            "--load", metavar="FILE", help="Continue a conversation from a YAML or JSON file that /save wrote.",
            show_default=False,
        ),
    ] = None,
    no_history: Annotated[bool, typer.Option("--no-history", help="Do not keep a history of typed lines.")] = False,
    model: AnyModelFlags,
    frames: FrameFlags,
    text: TextFlags,
    preset: PresetFlag,
    output: OutputFlags,
) -> int:  # fmt: skip
    """Read and answer lines until stdin ends; return the exit code."""
    written = read_conversation(load) if load is not None else None
    settings = settle(preset, model, frames, text, written)

    from .chat_commands import completions
    from .chat_input import ChatInput, history_file
    from .chat_session import TerminalChat
    from .terminal_images import protocol

    chosen, drafts = settings.preset, written.drafts if written is not None else ()
    generation = chosen.generation.asked(settings.drawn_seed)
    session = replace(Session.of(drafts, chosen.sampling, generation), system=chosen.system)
    for path in media or ():
        session = session.add(path)
    with console.progress(output.quiet) as progress:
        lines = ChatInput(None if no_history else history_file(), completions)
        terminal_chat = TerminalChat(session, settings, output, progress, stops=lines.interactive)
        terminal_chat.file = load
        if lines.interactive and sys.stdout.isatty() and sys.stderr.isatty():
            terminal_chat.pictures = protocol(os.environ)
        terminal_chat.hurry()
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
                return _code(failed, lines)
        except KeyboardInterrupt:
            if not lines.interactive:
                raise
            terminal_chat.stop_spinner()
            console.stderr.print()
        except LlvidError as failure:
            terminal_chat.loader.check()  # without a model the chat ends
            terminal_chat.stop_spinner()
            console.error(failure)
            failed = True
    if lines.interactive:
        console.stderr.print()  # the shell's prompt begins on a line of its own
    return _code(failed, lines)


def _code(failed: bool, lines: ChatInput) -> int:
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
