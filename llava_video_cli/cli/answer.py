"""Answers on the terminal: the media are read while the model loads, then each answer is shown as it comes."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from time import perf_counter

from ..conversation import Answer, Chunk, join
from ..errors import MediaError, UsageError
from ..prompt.subtitles import Subtitles, notes_of
from ..runs.media import check_media, media_notes, read_media, seen_by
from ..runs.preflight import ModelLoader, most_frames, placeholders
from ..runs.record import EMPTY_ANSWER, CutNote, ask_values, media_values, settings_values
from ..speech.transcripts import hear, transcribe
from ..system.background import Background
from ..video import announced_frames, inspect
from ..video.image import Picture
from ..video.sampling import Every
from . import console, decisions
from .download import is_missing, model_loader
from .options import OutputFlags
from .settings import Settings


def answer_all(
    paths: Sequence[str],
    questions: Sequence[str],
    settings: Settings,
    output: OutputFlags,
    subtitles: Subtitles | None = None,
    *,
    show_questions: bool = False,
) -> list[Answer]:
    """Read the media while the model loads, then ask and show one question after the other; return the answers."""
    preset = settings.preset
    loader: ModelLoader | None = None
    listening: list[Background[object]] = []
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
            for path, picture in zip(paths, pictures, strict=True):
                if picture is None and preset.sampling.speech:
                    listening.append(Background("llvid-speech", transcribe, path, preset.sampling))

        show = progress.watch("reading frames" if settings.remote is not None else "reading frames, loading the model")
        contents = read_media(paths, preset.sampling, opened=load, progress=show)
        assert loader is not None, "all media were opened"
        if listening:
            progress.say("transcribing")
        for each in listening:
            each.result()
        contents = [hear(each) for each in contents]
        contents = seen_by(contents, loader.frame_input)
        media = [media_values(path, content) for path, content in zip(paths, contents, strict=True)]
        output.detail(*map(decisions.read, media))
        output.note(*media_notes(contents), *CutNote().lines(*(each["frames"] for each in media)))
        progress.say(settings.opening)
        model = loader.result()
        requests, heard = preset.requests(questions, contents, subtitles, model.budget)
        speech = notes_of([heard])
        media[0]["notes"] += speech
        output.note(*speech)
        answers = []
        for question, request in zip(questions, requests, strict=True):
            if show_questions and not output.json:
                progress.stop()
                output.note(f"> {question}")
            progress.say("thinking")
            answer = show_answer(model.stream(request), progress, silent=output.json)
            if output.json:
                values = settings_values(model, preset, subtitles)
                console.write_json(ask_values(media, question, answer, values))
            note_unfinished(answer, preset.generation.max_new_tokens, output.note)
            output.detail(decisions.answered(answer))
            answers.append(answer)
        return answers


def ask_windows(
    paths: Sequence[str],
    questions: Sequence[str],
    every: Every,
    settings: Settings,
    output: OutputFlags,
    subtitles: Subtitles | None = None,
    *,
    show_questions: bool = False,
) -> list[Answer]:
    """Ask all questions about each window of a video, read once, then answer one question after the other.

    Returns the answers.
    """
    from ..runs import windows as looks
    from ..runs.answers import RunPace
    from .run import Meter, load

    if len(paths) != 1:
        raise UsageError("--windows needs exactly one video")
    if check_media(paths) != [None]:
        raise MediaError(f"{paths[0]} is a picture, which has no windows")
    preset = settings.preset
    with console.progress(output.quiet) as progress:
        show = progress.watch("examining the video")
        video = inspect(paths[0], progress=show, source_fps=preset.sampling.source_fps)
        windows = video.windows(every, preset.sampling, progress=progress.watch("looking for the shots"))
    if preset.sampling.speech:
        Background("llvid-speech", transcribe, paths[0], preset.sampling)  # begun early; each window waits for it
    longest = max(
        windows, key=lambda window: (window.end_seconds or video.info.duration_seconds) - window.start_seconds
    )
    expected = looks.window_requests(questions, preset, most_frames(paths[0], longest))
    announced = video.announced(longest)
    model = load(settings, output, expected, lambda: looks.window_requests(questions, preset, announced))
    began, pace, parts = perf_counter(), RunPace(), []
    with Meter(len(windows), "windows", pace, quiet=output.quiet) as meter, meter.lines():
        for each in looks.answer_windows(video, windows, questions, preset, model, subtitles, pace=pace):
            parts.append(each)
            meter.count()
    seconds = perf_counter() - began
    parts.sort(key=lambda each: each.start_seconds)
    values = {
        **settings_values(model, preset, subtitles),
        **({"windows": every} if every == "scene" else {"windows_seconds": every}),
    }
    output.note(*looks.window_notes(parts), *CutNote().lines(*(each.values["frames"] for each in parts)))
    answers = []
    with console.progress(output.quiet) as progress:
        for number, question in enumerate(questions):
            if show_questions and not output.json:
                progress.stop()
                output.note(f"> {question}")
            progress.say("combining the windows")
            segments = [each.segment(number) for each in parts]
            used = looks.relevant(segments)
            answer = show_answer(looks.conclude(question, used, preset, model), progress, silent=output.json)
            if output.json:
                console.write_json(looks.windows_values(parts, number, question, answer, seconds, values))
            progress.stop()
            output.note(looks.windows_note(used, len(segments)))
            note_unfinished(answer, preset.generation.max_new_tokens, output.note)
            answers.append(answer)
    return answers


def show_answer(chunks: Iterator[Chunk], progress: console.Progress, *, silent: bool, column: int = 0) -> Answer:
    """Write a stream to stdout as it comes, unless silent; return the whole. `column` is where the cursor is."""
    shown: list[Chunk] = []
    prose = console.Prose(column)
    try:
        for chunk in chunks:
            shown.append(chunk)
            if chunk.text and not silent:
                progress.stop()
                prose.write(chunk.text)
    finally:
        if isinstance(chunks, Generator):
            chunks.close()  # stops the generation when the user leaves
        if any(chunk.text for chunk in shown) and not silent:
            prose.end()
    return join(shown)


def note_unfinished(
    answer: Answer,
    most_tokens: int,
    note: Callable[[str], None],
    ways: tuple[str, str] = ("--max-new-tokens", "--repetition-penalty"),
) -> None:
    """Say that an answer is empty, or why it ended early and which of two options helps."""
    if not answer.text.strip():
        thought = "all of it is thinking, which --show-thinking shows" if answer.usage.thinking_tokens else ""
        note(f"{EMPTY_ANSWER}: {thought}" if thought else EMPTY_ANSWER)
    if answer.finish_reason == "length":
        note(f"the answer was cut off at {most_tokens} tokens; {ways[0]} allows more")
    if answer.finish_reason == "repetition":
        note(f"the answer began to repeat itself and was stopped; {ways[1]} 1.1 may help")
