"""`llvid ask --windows`: questions about a video of hours, from what is seen in each of its windows."""

from __future__ import annotations

import time
from collections.abc import Sequence

from ..errors import MediaError, UsageError
from ..prompt.subtitles import Subtitles
from ..runs.batches import RunPace
from ..runs.media import check_media
from ..runs.preflight import most_frames
from ..runs.record import settings_values
from ..runs.windows import (
    answer_windows,
    conclude,
    relevant,
    window_notes,
    window_requests,
    windows_note,
    windows_values,
)
from ..video import inspect
from . import console
from .answer import note_unfinished, show_answer
from .options import OutputFlags
from .run import Meter, load
from .settings import Settings


def ask_windows(
    paths: Sequence[str],
    questions: Sequence[str],
    every_seconds: float,
    settings: Settings,
    output: OutputFlags,
    subtitles: Subtitles | None = None,
    *,
    show_questions: bool = False,
) -> None:
    """Ask all questions about each window, read once, then answer one question after the other."""
    if len(paths) != 1:
        raise UsageError("--windows is for one video")
    if check_media(paths) != [None]:
        raise MediaError(f"{paths[0]} is a picture: it has no windows")
    preset = settings.preset
    with console.progress(output.quiet) as progress:
        show = progress.watch("looking through the video")
        video = inspect(paths[0], progress=show)
        windows = video.windows(every_seconds, preset.sampling)
    ends = (windows[0], windows[-1])  # the last one may be the longest
    expected = [each for window in ends for each in window_requests(questions, preset, most_frames(paths[0], window))]
    model = load(settings, output, expected, lambda: window_requests(questions, preset, video.announced(windows[0])))
    began, pace, parts = time.perf_counter(), RunPace(), []
    with Meter(len(windows), "windows", pace, quiet=output.quiet) as meter:
        for each in answer_windows(video, windows, questions, preset, model, subtitles, pace=pace):
            parts.append(each)
            meter.count(failed=False)
    seconds = time.perf_counter() - began
    parts.sort(key=lambda each: each.start_seconds)
    values = {**settings_values(model, preset, subtitles), "windows_seconds": every_seconds}
    for line in window_notes(parts) if not output.quiet else ():
        console.note(line)
    with console.progress(output.quiet) as progress:
        for number, question in enumerate(questions):
            if show_questions and not output.quiet and not output.json:
                progress.stop()
                console.note(f"> {question}")
            progress.say("putting the windows together")
            segments = [each.segment(number) for each in parts]
            used = relevant(segments)
            answer = show_answer(conclude(question, used, preset, model), progress, silent=output.json)
            if output.json:
                console.write_json(windows_values(parts, number, question, answer, seconds, values))
            if output.quiet:
                continue
            progress.stop()
            console.note(windows_note(used, len(segments)))
            note_unfinished(answer, preset.generation.max_new_tokens, output)
