"""Answers on the terminal: the media are read while the model loads, then each answer is shown as it comes."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence

from ..conversation import Answer, Chunk, join
from ..prompt.subtitles import Subtitles, notes_of
from ..runs.media import check_media, media_notes, read_media
from ..runs.preflight import ModelLoader, placeholders
from ..runs.record import ask_values, media_values, settings_values
from ..video import announced_frames
from ..video.image import Picture
from . import console
from .download import is_missing, model_loader
from .options import OutputFlags
from .settings import Settings

_UNFINISHED = {
    "length": "the answer was cut off at {} tokens; --max-new-tokens allows more",
    "repetition": "the answer began to repeat itself and was stopped; --repetition-penalty 1.1 may help",
}


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
    preset = settings.preset
    loader: ModelLoader | None = None
    if is_missing(settings):
        check_media(paths)  # a broken file is reported before the download
    with console.progress(output.quiet) as progress:

        def load(pictures: Sequence[Picture | None]) -> None:
            nonlocal loader
            output.note(*settings.notes)
            loader = model_loader(settings, output, progress)
            expected = placeholders(paths, pictures, preset.sampling)
            loader.begin(preset.request(question, expected) for question in questions)
            if not loader.has_begun:
                announced = placeholders(paths, pictures, preset.sampling, announced_frames)
                loader.insist(preset.request(question, announced) for question in questions)

        show = progress.watch("reading frames" if settings.remote is not None else "reading frames, loading the model")
        contents = read_media(paths, preset.sampling, opened=load, progress=show)
        output.note(*media_notes(contents))
        progress.say(settings.opening)
        assert loader is not None, "all media were opened"
        model = loader.result()
        requests, heard = preset.requests(questions, contents, subtitles, model.budget)
        speech = notes_of([heard])
        output.note(*speech)
        for question, request in zip(questions, requests, strict=True):
            if show_questions and not output.json:
                progress.stop()
                output.note(f"> {question}")
            progress.say("thinking")
            answer = show_answer(model.stream(request), progress, silent=output.json)
            if output.json:
                media = [media_values(path, content) for path, content in zip(paths, contents, strict=True)]
                media[0]["notes"] += speech
                values = settings_values(model, preset, subtitles)
                console.write_json(ask_values(media, question, answer, values))
            note_unfinished(answer, preset.generation.max_new_tokens, output)


def show_answer(chunks: Iterator[Chunk], progress: console.Progress, *, silent: bool) -> Answer:
    """Write a stream to stdout as it comes, unless silent; return the whole."""
    shown: list[Chunk] = []
    try:
        for chunk in chunks:
            shown.append(chunk)
            if chunk.text and not silent:
                progress.stop()
                console.write(chunk.text)
    finally:
        if isinstance(chunks, Generator):
            chunks.close()  # stops the generation when the user leaves
        if any(chunk.text for chunk in shown) and not silent:
            console.write("\n")
    return join(shown)


def note_unfinished(answer: Answer, max_new_tokens: int, output: OutputFlags) -> None:
    """Say why an answer ended early, and what helps."""
    if answer.finish_reason != "stop":
        output.note(_UNFINISHED[answer.finish_reason].format(max_new_tokens))
