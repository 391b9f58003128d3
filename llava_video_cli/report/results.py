"""Reads what `llvid caption`, `batch` and `find` wrote: one result per line, and the failures next to it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from ..conversation import Segment
from ..errors import LlvidError, nearest
from ..runs.ledger import errors_path
from ..runs.record import text_to_path
from ..validation import bounded_lines, is_special, parse_json
from ..video.files import PictureList
from ..video.sampling import clock

_HINT = "name a file that `llvid caption -o`, `llvid batch -o` or `llvid find -o` wrote: one JSON object per line"
_MOMENT_FRAMES = 8  # on the sheet of a moment
# 1e999 is infinite
_JSON = json.JSONDecoder(parse_constant=lambda _: None, parse_float=lambda text: number(float(text)))


@dataclass(frozen=True)
class Result:
    """One line: a video or picture, as the line names it, and the model's answer.

    `text` is the caption or the answer, `scores` the probability of each choice. `id` and `question` come from a batch.
    `frames`, `usage` and `settings` are objects of the line, empty if it has none; `settings` begins with the line's
    `prompt` and `model`.
    """

    video: str
    text: str
    id: str
    question: str
    scores: dict[str, float]
    segments: tuple[Segment, ...]
    finish_reason: str
    notes: tuple[str, ...]
    frames: dict[str, Any]
    usage: dict[str, Any]
    settings: dict[str, Any]


@dataclass(frozen=True)
class FailedVideo:
    """A video without a result, and the reason."""

    video: str
    id: str
    error: str
    hint: str


@dataclass(frozen=True)
class Results:
    """A checked file of results; each iteration reads it again, one result at a time.

    `notes` are for the user. Lines that were added after the check are skipped.
    """

    path: Path
    count: int
    failures: tuple[FailedVideo, ...]
    notes: tuple[str, ...]

    def __iter__(self) -> Iterator[Result]:
        return islice(chain.from_iterable(map(_results, _lines_of(self.path, []))), self.count)


def open_results(path: Path) -> Results:
    """Check every line of a results file, and read the failures next to it if there are any.

    An incomplete last line is skipped, with a note. Raises LlvidError for a file that can't be opened, has no results,
    or has a line that is not a result; the message names the line.
    """
    notes: list[str] = []
    count = sum(len(_results(line)) for line in _lines_of(path, notes))
    errors = errors_path(path)
    failures = tuple(map(_failure, _lines_of(errors, notes))) if errors.is_file() else ()
    if not count and not failures:
        raise LlvidError(f"{path} has no results")
    return Results(path, count, failures, tuple(notes))


def path_of(video: str) -> str:
    """Return the path that a line's `video_path` is the text of; pictures that are one video are a list in JSON."""
    if video.startswith("["):
        with suppress(ValueError):
            names = parse_json(video)
            if names and all(isinstance(name, str) for name in names):
                return PictureList([text_to_path(name) for name in names])
    return text_to_path(video)


def shown_name(video: str) -> str:
    r"""Return a line's `video_path` as readable text: bytes that are not UTF-8 become `\xe9`."""
    path = str(path_of(video))
    if path != video:
        with suppress(UnicodeEncodeError):  # of half a character, which no path has
            return os.fsencode(path).decode("utf-8", "backslashreplace")
    return video


@dataclass(frozen=True)
class _Line:
    """The JSON object of a line, and the place of the line for messages."""

    value: dict[str, Any]
    where: str

    def text(self, *names: str) -> str:
        """Return the first of these fields that the line has, as text; empty if it has none."""
        value = next((self.value[name] for name in names if self.value.get(name) is not None), "")
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)

    def object(self, name: str) -> dict[str, Any]:
        value = self.value.get(name)
        return value if isinstance(value, dict) else {}

    @property
    def video(self) -> str:
        media = self.value.get("media")
        if isinstance(media, list) and media and isinstance(media[0], str):
            return media[0]
        return self.text("video_path", "video")


def _lines_of(path: Path, notes: list[str]) -> Iterator[_Line]:
    if is_special(path):
        raise LlvidError(f"{path}: not a regular file")
    try:
        with path.open("rb") as file:
            for number, line in enumerate(bounded_lines(file), start=1):
                where = f"{path}, line {number}"
                if not line.strip():
                    continue
                try:
                    value = _JSON.decode(line.decode("utf-8-sig"))
                except (ValueError, RecursionError):
                    if line.lstrip().startswith(b"{") and not line.endswith(b"\n"):
                        notes.append(f"{where} was skipped: it is incomplete")
                        return
                    raise LlvidError(f"{where}: not JSON", _HINT) from None
                if not isinstance(value, dict):
                    raise LlvidError(f"{where}: not a JSON object", _HINT)
                yield _Line(value, where)
    except FileNotFoundError:
        hint = None
        with suppress(OSError):
            hint = nearest(path.name, (entry.name for entry in islice(path.parent.iterdir(), 1000)))
        raise LlvidError(f"{path}: no such file", hint) from None
    except IsADirectoryError:
        raise LlvidError(f"{path}: a folder, not a results file", "name the JSONL file in it") from None
    except (OSError, ValueError) as error:  # ValueError: a name that can't be a file's
        words = error.strerror if isinstance(error, OSError) else error
        raise LlvidError(f"{path}: can't be opened: {words}") from None


def _results(line: _Line) -> list[Result]:
    """Return the result of a line, or, of a video in which something was looked for, one for each of its moments."""
    moments = line.value.get("moments")
    if not (line.video and isinstance(moments, list)):
        return [_result(line)]
    found = [_moment(line, moment) for moment in moments if isinstance(moment, dict)]
    return found or [_whole(line, "no moment was found")]


def _moment(line: _Line, moment: dict[str, Any]) -> Result:
    """Return a moment as the result of its part of the video."""
    start, end = (number(moment.get(f"{name}_seconds")) or 0.0 for name in ("start", "end"))
    instant = number(moment.get("instant_seconds"))
    text = f"{clock(start)}-{clock(end)}" + (f", at {clock(instant)}" if instant is not None else "")
    whole = _whole(line, text)
    given = whole.settings.get("sampling")
    part = {"frames": _MOMENT_FRAMES, "fps": None, "mode": "uniform", "start_seconds": start, "end_seconds": end}
    return replace(
        whole,
        question=str(moment.get("query", "")),
        scores={"yes": number(moment.get("probability")) or 0.0},
        segments=(Segment(start, max(start, end), text),),
        frames={**whole.frames, "count": _MOMENT_FRAMES, "times_seconds": None},
        settings={**whole.settings, "sampling": (given if isinstance(given, dict) else {}) | part},
    )


def _result(line: _Line) -> Result:
    if not line.video or not any(isinstance(line.value.get(name), str) for name in ("caption", "answer")):
        is_failure = isinstance(line.value.get("error"), str)
        hint = "name the results file: the page also shows the failures next to it" if is_failure else _HINT
        raise LlvidError(f"{line.where}: no video with a caption or an answer", hint)
    return _whole(line, line.text("caption", "answer"))


def _whole(line: _Line, text: str) -> Result:
    frames = line.object("frames")
    return Result(
        video=line.video,
        text=text,
        id=line.text("id"),
        question=line.text("question"),
        scores={
            choice: score
            for choice, value in line.object("scores").items()
            if (score := number(value)) is not None and 0 <= score <= 1
        },
        segments=tuple(_segments(line.value.get("segments"), number(frames.get("duration_seconds")))),
        finish_reason=line.text("finish_reason"),
        notes=tuple(_lines(line.value.get("notes"))),
        frames=frames,
        usage=line.object("usage"),
        settings={name: line.value[name] for name in ("prompt", "model") if line.value.get(name) is not None}
        | line.object("settings"),
    )


def _failure(line: _Line) -> FailedVideo:
    if not isinstance(line.value.get("error"), str):
        raise LlvidError(f"{line.where}: no video with an error")
    return FailedVideo(line.video, line.text("id"), line.text("error"), line.text("hint"))


def number(value: Any) -> float | None:
    """Return a JSON value as a float, or None if it is not a finite number."""
    with suppress(OverflowError):
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
    return None


def _segments(values: Any, duration_seconds: float | None) -> Iterator[Segment]:
    for value in values if isinstance(values, list) else []:
        if isinstance(value, dict) and isinstance(value.get("text"), str):
            start = number(value.get("start_seconds")) or 0.0
            end = number(value.get("end_seconds"))
            yield Segment(start, max(start, end if end is not None else duration_seconds or start), value["text"])


def _lines(notes: Any) -> list[str]:
    texts = notes if isinstance(notes, list) else [notes]
    return [line for text in texts if isinstance(text, str) for line in text.splitlines() if line.strip()]
