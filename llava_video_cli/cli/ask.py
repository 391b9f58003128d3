"""`llvid ask`: questions about a video or picture, each answer streamed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from ..errors import UsageError
from ..model import Loading
from ..remote.discovery import announced
from ..runs.conversation_file import Conversation, read_conversation
from ..runs.session import Session
from . import console
from .answer import answer_all, note_unfinished
from .options import AnyModelFlags, FrameFlags, OutputFlags, PresetFlag, SpeechFlag, TextFlags, takes
from .settings import Settings, check_text, settle, settle_subtitles

_EXAMPLES = """
Examples:

    llvid ask video.mp4 "What happens in this video?"

    llvid ask video.mp4 "Who is in it?" "Where are they?" --frames 16 --json

    llvid ask video.mp4 "Is this person in the video?" --with photo.jpg

    llvid ask film.mkv "When do they leave the house?" --windows 60 --subtitles auto

    echo "What is on the table?" | llvid ask photo.jpg -

    llvid ask --messages conversation.yaml
"""


def add_to(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("ask", help=f"Ask one or more questions about a video or a picture.\n{_EXAMPLES}")(ask)


@takes(model=AnyModelFlags, frames=FrameFlags, text=TextFlags, speech=SpeechFlag, preset=PresetFlag, output=OutputFlags)
def ask(
    media: Annotated[
        str | None, typer.Argument(metavar="MEDIA", help="A video or a picture.", show_default=False)
    ] = None,
    questions: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="QUESTION...",
            help="Each is asked on its own, without the others; `-` reads one from stdin.",
            show_default=False,
        ),
    ] = None,
    *,
    messages: Annotated[
        Path | None,
        typer.Option(
            "--messages",
            metavar="FILE",
            help="Answer the last question of a conversation in a YAML or JSON file, instead of MEDIA and QUESTION.",
            show_default=False,
        ),
    ] = None,
    with_: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="PATH",
            help="Another video or picture for the same prompt; repeatable, kept in order.",
            show_default=False,
        ),
    ] = None,
    windows: Annotated[
        float | None,
        typer.Option(
            "--windows",
            min=0.01,
            metavar="SECONDS",
            help="For long videos: ask about each window of this length, then answer from what was seen in them.",
            show_default=False,
        ),
    ] = None,
    model: AnyModelFlags,
    frames: FrameFlags,
    text: TextFlags,
    speech: SpeechFlag,
    preset: PresetFlag,
    output: OutputFlags,
) -> None:
    """Ask the questions and write the answers to stdout."""
    if messages is not None:
        if media is not None or with_:
            raise UsageError(
                "--messages and media or questions exclude each other", "write them into the file of --messages"
            )
        written = read_conversation(messages)
        _answer_messages(written, settle(preset, model, frames, text, written), output)
        return
    if media is None or not questions:
        raise UsageError(
            f"Missing argument '{'QUESTION' if media else 'MEDIA'}'", "`llvid ask --help` shows how it is used"
        )
    settings = settle(preset, model, frames, text)
    texts = _questions(questions)
    paths = [media, *(with_ or ())]
    subtitles = settle_subtitles(speech, paths)
    show_questions = len(texts) > 1 and console.stderr.is_terminal
    if windows is not None:
        from .ask_windows import ask_windows

        ask_windows(paths, texts, windows, settings, output, subtitles, show_questions=show_questions)
        return
    _note_server(settings, output)
    answer_all(paths, texts, settings, output, subtitles, show_questions=show_questions)


def _note_server(settings: Settings, output: OutputFlags) -> None:
    """Name a server of the user's own that has the model loaded, if the options leave it a choice."""
    if output.quiet or settings.remote is not None or settings.loading != Loading(frames=settings.loading.frames):
        return
    if (url := announced(settings.model)) is not None:
        output.note(
            f"your server at {url} has {settings.model} loaded: with --server {url} nothing has to be loaded here"
        )


def _answer_messages(written: Conversation, settings: Settings, output: OutputFlags) -> None:
    """Read the media of a conversation while the model loads, then answer its last question."""
    from .chat_session import TerminalChat

    preset = settings.preset
    session = replace(Session.of(written.drafts, preset.sampling, preset.generation), system=preset.system)
    if session.question is None:
        raise UsageError("the last message must be the user's, with a text")
    with console.progress(output.quiet) as progress:
        chat = TerminalChat(session, settings, output, progress)
        chat.insist()
        answer = chat.show(session, chat.request(session))
    note_unfinished(answer, preset.generation.max_new_tokens, output)


def _questions(questions: Sequence[str]) -> list[str]:
    """Return the questions, with the one that is `-` read from stdin."""
    if questions.count("-") > 1:
        raise UsageError("only one question can come from stdin")
    texts = [_stdin() if question == "-" else question.strip() for question in questions]
    for text in texts:
        if not text:
            raise UsageError("a question is empty")
        check_text(text, "a question")
        if _is_file(text):
            raise UsageError(f"{text} is a file, not a question", f"`--with {text}` adds it to the prompt")
    return texts


def _is_file(text: str) -> bool:
    """Whether a question is the name of a file: the end of `--with a.jpg b.jpg`, or the media in the wrong place."""
    try:
        return bool(Path(text).suffix) and Path(text).is_file()
    except (OSError, ValueError):  # too long for a name, as questions are
        return False


def _stdin() -> str:
    if sys.stdin is None:
        raise UsageError("a question should come from stdin, but it is closed")
    if sys.stdin.isatty():
        console.note("type the question, then Ctrl-D")
    try:
        return sys.stdin.read().strip()
    except UnicodeDecodeError:
        raise UsageError("the question from stdin is not text in UTF-8") from None
