"""`llvid ask`: questions about a video or picture, each answer streamed."""

from __future__ import annotations

import glob
import os
import re
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import typer

from ..conversation import Answer
from ..errors import UsageError
from ..model import Loading
from ..remote import announced
from ..runs.conversation_file import Conversation, read_conversation
from ..runs.session import Session
from ..system.files import state_folder
from ..video.files import may_be_picture
from ..video.spool import is_spooled
from . import console, decisions
from .answer import answer_all, ask_windows, note_unfinished
from .app import EXIT_NO_ANSWER, failing_as
from .download import typed_media
from .options import AnswerFlags, AnyModelFlags, FrameFlags, OutputFlags, PresetFlag, SpeechFlag, TextFlags, flag
from .settings import Settings, check_text, check_used_flags, settle, settle_every, settle_subtitles

_FEWEST_WORDS = 3  # that are taken for one question without quotes
_SEPARATE = re.compile(r"\s|[?？。؟]")  # in a question of its own
_MOST_NAMED = 3  # files in a hint
_NOTE_SECONDS = 24 * 3600  # until a running server is mentioned again
HELP = """Ask one or more questions about a video or a picture.

Examples:

    llvid ask video.mp4 "What happens in this video?"

    llvid ask video.mp4 "Who is in it?" "Where are they?" --frames 16 --json

    llvid ask video.mp4 "Is this person in the video?" --with photo.jpg

    llvid ask frames/ "What happens?" --source-fps 2

    yt-dlp -o - URL | llvid ask - "What happens?"

    llvid ask https://example.com/clip.mp4 "What happens?"

    llvid ask film.mkv "When do they leave the house?" --windows 60 --subtitles auto

    echo "What is on the table?" | llvid ask photo.jpg -

    if llvid ask clip.mp4 "Is there text on screen?" --choices yes,no --exit-code; then echo found; fi

    llvid ask --messages conversation.yaml
"""


@dataclass(frozen=True)
class AskFlags:
    """What is asked about; None where the user set nothing."""

    messages: Path | None = flag(
        None,
        "Answer the last question of a conversation in a YAML or JSON file, instead of MEDIA and QUESTION.",
        metavar="FILE",
    )
    more_media: list[str] | None = flag(
        None,
        "Another video or picture for the same prompt; repeatable, and the order is kept.",
        "--with",
        metavar="PATH",
    )
    exit_code: bool = flag(
        None,
        "With one question and two choices: exit with 0 for the first, 1 for the second, 2 for any failure.",
        "--exit-code",
        default=False,
    )
    windows: str | None = flag(
        None,
        "For long videos: ask about each window of this length, or each shot, then combine the answers.",
        metavar="SECONDS|scene",
    )


def ask(
    media: Annotated[
        str | None,
        typer.Argument(
            metavar="MEDIA", show_default=False,
            help="A video or a picture; a folder, or a pattern such as 'frame_*.jpg', of pictures that are the frames "
            "of one video; `-` for stdin; or a URL.",
        ),
    ] = None,
    questions: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="QUESTION...", show_default=False,
            help="Each question is answered without the others; `-` reads a question from stdin "
            "[default: the preset's prompt].",
        ),
    ] = None,
    *,
    own: AskFlags,
    model: AnyModelFlags,
    frames: FrameFlags,
    text: TextFlags,
    speech: SpeechFlag,
    preset: PresetFlag,
    output: AnswerFlags,
) -> int:  # fmt: skip
    """Ask the questions and write the answers to stdout; return the exit code."""
    with failing_as(EXIT_NO_ANSWER) if own.exit_code else nullcontext():
        _check_typed(media, questions or (), own)
        written = None if own.messages is None else read_conversation(own.messages)
        settings = settle(preset, model, frames, text, written)
        check_used_flags(frames, settings.preset, own.windows, text)
        output.detail(*decisions.chosen(settings, preset, model))
        texts = [] if written is not None else _questions(questions or [settings.preset.prompt], output)
        _check_exit_code(own, settings, len(texts) or 1)
        if written is not None:
            answers: Sequence[Answer] = [_answer_messages(written, settings, output)]
        else:
            if not questions:
                output.note(f"no question was given, so the preset's is asked: {texts[0]}")
            with typed_media([str(media), *(own.more_media or ())], output) as paths:
                answers = _answer(paths, texts, own, settings, speech, output)
        if not own.exit_code:
            return 0
        sys.stdout.flush()
        scores = answers[0].scores
        assert scores is not None, "there are choices"
        return list(scores).index(answers[0].text)


def _check_typed(media: str | None, questions: Sequence[str], own: AskFlags) -> None:
    """Raise UsageError for arguments that don't go together."""
    if own.messages is not None:
        if media is not None or own.more_media:
            raise UsageError(
                "use --messages, or MEDIA and QUESTION, not both", "write the media and questions into the file"
            )
        return
    if media is None:
        raise UsageError("missing argument 'MEDIA'", "`llvid ask --help` shows how to use it")
    if "-" in (media, *(own.more_media or ())) and "-" in questions:
        raise UsageError("stdin can be the video or a question, not both")
    check_order(media, questions)


def _check_exit_code(own: AskFlags, settings: Settings, questions: int) -> None:
    choices = len(settings.preset.generation.choices)
    if own.exit_code and (choices != 2 or questions != 1):
        got = f"got {questions} and {choices}"
        raise UsageError(f"--exit-code needs one question and two choices, {got}", "--choices yes,no")


def _answer(
    paths: Sequence[str],
    texts: Sequence[str],
    own: AskFlags,
    settings: Settings,
    speech: SpeechFlag,
    output: OutputFlags,
) -> Sequence[Answer]:
    subtitles = settle_subtitles(speech, paths, settings.preset)
    show_questions = len(texts) > 1 and console.stderr.is_terminal
    if (every := settle_every(own.windows, "--windows", settings.preset)) is not None:
        return ask_windows(paths, texts, every, settings, output, subtitles, show_questions=show_questions)
    # A server of this user may have the model loaded; options that say how to load it rule the server out.
    is_free = settings.remote is None and replace(settings.loading, frames=None, constrained=False) == Loading()
    if not output.quiet and is_free and (url := announced(settings.model)) is not None and is_new(url):
        output.note(
            f"your server at {url} has {settings.model} loaded: use it with --server {url} to load nothing here"
        )
    return answer_all(paths, texts, settings, output, subtitles, show_questions=show_questions)


def is_new(url: str) -> bool:
    """Return whether a server was not mentioned for a day, and remember that it is now."""
    marker = state_folder() / "told-of-server"
    with suppress(OSError, UnicodeDecodeError):
        if marker.read_text(encoding="utf-8") == url and time.time() - marker.stat().st_mtime < _NOTE_SECONDS:
            return False
    with suppress(OSError):
        marker.parent.mkdir(parents=True, exist_ok=True)
        marker.write_text(url, encoding="utf-8")
    return True


def _answer_messages(written: Conversation, settings: Settings, output: OutputFlags) -> Answer:
    """Read the media of a conversation while the model loads, then answer its last question."""
    from .chat_session import TerminalChat

    preset = settings.preset
    session = Session.of(written.drafts, preset.sampling, preset.generation)
    session = replace(session, system=preset.system, timestamps=preset.timestamps)
    if session.question is None:
        raise UsageError("the last message must be from the user, and have a text")
    with console.progress(output.quiet) as progress:
        chat = TerminalChat(session, settings, output, progress)
        chat.insist()
        answer = chat.show(session, chat.request(session))
    note_unfinished(answer, preset.generation.max_new_tokens, output.note)
    return answer


def _questions(questions: Sequence[str], output: OutputFlags) -> list[str]:
    """Return the questions, with the one that is `-` read from stdin; words without quotes are one question."""
    if questions.count("-") > 1:
        raise UsageError("only one question can come from stdin")
    are_words = "-" not in questions and not any(map(_SEPARATE.search, questions[:-1]))
    if are_words and len(questions) >= _FEWEST_WORDS and len(questions[-1].split()) == 1:
        questions = [" ".join(questions)]
        output.note(f"asked as one question: {shlex.quote(questions[0])} (quotes keep its words together)")
    texts = [_stdin() if question == "-" else question.strip() for question in questions]
    for text in texts:
        if not text:
            raise UsageError("a question is empty")
        check_text(text, "a question")
    return texts


def check_order(media: str, questions: Sequence[str]) -> None:
    """Raise `UsageError` for files among the questions, with the line that was probably meant."""
    files = list(filter(_is_file, questions))
    if not files:
        return
    words = [text for text in questions if text not in files]
    if not (os.path.lexists(media) or is_spooled(media) or any(glob.iglob(media))):  # noqa: PTH207 - as it was typed
        words.insert(0, media)
        if len(files) == 1:
            raise UsageError(
                f"{files[0]} is a file, not a question",
                f"the video comes first: {shlex.join(['llvid', 'ask', files[0], *words])}",
            )
    else:
        files.insert(0, media)
    hint = f"`--with {shlex.quote(files[-1])}` adds it to the prompt"
    if not all(may_be_picture(Path(file).suffix.lower()) for file in files):
        prompt = f" --prompt {shlex.quote(words[-1])}" if words else ""
        hint = f"`llvid caption {_typed(files)}{prompt}` asks about each of them; {hint}"
    else:
        hint += "; to ask about pictures as one video, name their folder, or a pattern in quotes: '*.jpg'"
    raise UsageError(f"{files[-1]} is a file, not a question", hint)


def _typed(files: Sequence[str]) -> str:
    """Return files as they are typed: many of a folder were probably a pattern."""
    first = Path(files[0])
    if len(files) > _MOST_NAMED and len({(Path(file).parent, Path(file).suffix) for file in files}) == 1:
        return f"{shlex.quote(os.path.dirname(files[0]))}/*{first.suffix}" if "/" in files[0] else f"*{first.suffix}"  # noqa: PTH120
    return shlex.join(files) if len(files) <= _MOST_NAMED else f"{shlex.join(files[:_MOST_NAMED])} ..."


def _is_file(text: str) -> bool:
    with suppress(OSError, ValueError):  # too long for a name, as questions are
        return bool(Path(text).suffix) and Path(text).is_file()
    return False


def _stdin() -> str:
    if sys.stdin is None:
        raise UsageError("can't read the question: stdin is closed")
    if sys.stdin.isatty():
        console.note("type the question, then press Ctrl-D")
    try:
        return sys.stdin.read().strip()
    except UnicodeDecodeError:
        raise UsageError("the question from stdin is not UTF-8 text") from None
