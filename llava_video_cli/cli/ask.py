"""`llvid ask`: questions about a video or picture, each answer streamed."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from ..conversation import Answer, Chunk
from ..errors import UsageError
from ..model import Loading
from ..prompt.subtitles import Subtitles, notes_of
from ..remote.discovery import announced
from ..runs.conversation_file import read_conversation
from ..runs.preflight import placeholders
from ..runs.record import ask_values, media_values, settings_values
from ..video import announced_frames
from . import console
from .download import model_loader
from .media import check, notes, read, read_speech
from .options import AnyModelFlags, FrameFlags, OutputFlags, PresetFlag, SpeechFlag, TextFlags, takes
from .settings import Settings, check_text, settle

UNFINISHED = {
    "length": "the answer was cut off at {} tokens; --max-new-tokens allows more",
    "repetition": "the answer began to repeat itself and was stopped; --repetition-penalty 1.1 may help",
}
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
            metavar="QUESTION...", help="Asked one by one, each anew; `-` reads one from stdin.", show_default=False
        ),
    ] = None,
    *,
    messages: Annotated[
        Path | None,
        typer.Option(
            "--messages",
            metavar="FILE",
            help="Answer the last question of a conversation in YAML or JSON, instead of MEDIA and QUESTION.",
            show_default=False,
        ),
    ] = None,
    with_: Annotated[
        list[str] | None,
        typer.Option(
            "--with",
            metavar="PATH",
            help="A further video or picture for the same prompt, in order; repeatable.",
            show_default=False,
        ),
    ] = None,
    windows: Annotated[
        float | None,
        typer.Option(
            "--windows",
            min=0.01,
            metavar="SECONDS",
            help="For hours of video: ask each window of that length, then answer from what was seen.",
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
        from .ask_conversation import answer

        if media is not None or with_:
            raise UsageError("--messages and media or questions exclude each other", "write them into its file")
        written = read_conversation(messages)
        answer(written, settle(preset, model, frames, text, written), output)
        return
    if media is None or not questions:
        raise UsageError(
            f"Missing argument '{'QUESTION' if media else 'MEDIA'}'", "`llvid ask --help` shows how it is used"
        )
    settings = settle(preset, model, frames, text)
    asked = _questions(questions)
    paths = [media, *(with_ or ())]
    subtitles = read_speech(speech, paths)
    show_questions = len(asked) > 1 and console.stderr.is_terminal
    if windows is not None:
        from .ask_windows import ask_windows

        ask_windows(paths, asked, windows, settings, output, subtitles, show_questions=show_questions)
        return
    say_what_runs(settings, output)
    answer_all(paths, asked, settings, output, subtitles, show_questions=show_questions)


def answer_all(
    paths: Sequence[str],
    questions: Sequence[str],
    settings: Settings,
    output: OutputFlags,
    subtitles: Subtitles | None = None,
    *,
    show_questions: bool = False,
) -> None:
    """Read the media while the model loads, then ask and show one question after the other."""
    pictures = check(paths)
    with console.progress(output.quiet) as progress:
        say_notes(settings, output)
        show = progress.watch("reading frames" if settings.remote is not None else "reading frames, loading the model")
        loader = model_loader(settings, output, progress)
        preset = settings.preset
        expected = placeholders(paths, pictures, preset.sampling)
        loader.begin(preset.request(question, expected) for question in questions)
        if not loader.has_begun:
            announced = placeholders(paths, pictures, preset.sampling, announced_frames)
            loader.insist(preset.request(question, announced) for question in questions)
        contents = [
            read(path, picture, settings.preset.sampling, show) for path, picture in zip(paths, pictures, strict=True)
        ]
        if not output.quiet:
            for line in notes(contents):
                console.note(line)
        progress.say(settings.opening)
        model = loader.result()
        requests, heard = settings.preset.requests(questions, contents, subtitles, model.budget)
        speech = notes_of([heard])
        for line in speech if not output.quiet else ():
            console.note(line)
        for question, request in zip(questions, requests, strict=True):
            if show_questions and not output.quiet and not output.json:
                progress.stop()
                console.note(f"> {question}")
            progress.say("thinking")
            answer = collect(model.stream(request), progress, silent=output.json)
            if output.json:
                media = [media_values(path, content) for path, content in zip(paths, contents, strict=True)]
                media[0]["notes"] += speech
                values = settings_values(model, settings.preset, subtitles)
                console.write_json(ask_values(media, question, answer, values))
            if answer.finish_reason != "stop" and not output.quiet:
                console.note(UNFINISHED[answer.finish_reason].format(settings.preset.generation.max_new_tokens))


def say_notes(settings: Settings, output: OutputFlags) -> None:
    """Write what a user should know about where the answers come from."""
    if output.quiet:
        return
    for line in settings.notes:
        console.note(line)


def say_what_runs(settings: Settings, output: OutputFlags) -> None:
    """Tell of a server of the user's own that has the model, where it may answer as well as the weights here."""
    if output.quiet or settings.remote is not None or settings.loading != Loading(frames=settings.loading.frames):
        return
    if (url := announced(settings.model)) is not None:
        console.note(f"a server of yours has {settings.model} loaded: --server {url} answers at once")


def collect(
    chunks: Iterator[Chunk], progress: console.Progress, silent: bool, pieces: list[str] | None = None
) -> Answer:
    """Write a stream as it comes, unless silent; return the whole. What came stands in `pieces`, whatever happens."""
    pieces = [] if pieces is None else pieces
    last: Chunk | None = None
    try:
        for last in chunks:
            pieces.append(last.text)
            if last.text and not silent:
                progress.stop()
                console.write(last.text)
    finally:
        if isinstance(chunks, Generator):
            chunks.close()  # stops the generation when the user leaves
        if any(pieces) and not silent:
            console.write("\n")
    assert last is not None and last.finish_reason is not None and last.usage is not None
    return Answer("".join(pieces), last.finish_reason, last.usage)


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
        raise UsageError("a question was to come from stdin, but it is closed")
    if sys.stdin.isatty():
        console.note("type the question, then Ctrl-D")
    try:
        return sys.stdin.read().strip()
    except UnicodeDecodeError:
        raise UsageError("the question from stdin is not text in UTF-8") from None
