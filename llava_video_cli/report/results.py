"""What `llvid caption` and `llvid batch` wrote, read back: a result a line, and the failures beside it."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from ..conversation import Segment
from ..errors import LlvidError, nearest
from ..runs.record import text_to_path


@dataclass(frozen=True)
class Result:
    """One line: a video or picture, as the line names it, and what the model said of it.

    `text` is the caption or the answer. `id` and `question` are a batch's. `frames`, `usage` and `settings` are the
    line's own objects (`settings` with `prompt` and `model` before the rest), empty where the line has none.
    """

    video: str
    text: str
    id: str
    question: str
    segments: tuple[Segment, ...]
    finish_reason: str
    notes: tuple[str, ...]
    frames: dict[str, Any]
    usage: dict[str, Any]
    settings: dict[str, Any]


@dataclass(frozen=True)
class Failure:
    """A video without a result, and why."""

    video: str
    id: str
    error: str
    hint: str


@dataclass(frozen=True)
class Results:
    """A results file whose every line was looked at; iterating reads the results again, one at a time.

    `notes` are lines for the user. Lines that were added after it was opened are left out.
    """

    path: Path
    count: int
    failures: tuple[Failure, ...]
    notes: tuple[str, ...]

    def __iter__(self) -> Iterator[Result]:
        return islice(map(_result, _objects(self.path, [])), self.count)


def open_results(path: Path) -> Results:
    """Look at every line of a results file, and read `NAME.errors.jsonl` beside it if there is one.

    A last line that was torn off in the middle is left out, and noted. Raises LlvidError for what can't be opened, has
    nothing in it, or has a line that is no result; the message names the line.
    """
    notes: list[str] = []
    count = sum(1 for _ in map(_result, _objects(path, notes)))
    beside = path.with_name(f"{path.stem}.errors.jsonl")
    failures = tuple(map(_failure, _objects(beside, notes))) if beside.is_file() else ()
    if not count and not failures:
        raise LlvidError(f"{path} has no results in it")
    return Results(path, count, failures, tuple(notes))


def shown_name(video: str) -> str:
    r"""Return a line's `video_path` as text to read: bytes that are not UTF-8 become `\xe9`."""
    path = text_to_path(video)
    return path if path == video else os.fsencode(path).decode("utf-8", "backslashreplace")


@dataclass(frozen=True)
class _Object:
    """A line's JSON object, and where it stands."""

    value: dict[str, Any]
    where: str

    def text(self, *names: str) -> str:
        """Return the first of the fields that is there, as text; empty for none."""
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


def _objects(path: Path, notes: list[str]) -> Iterator[_Object]:
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                where = f"{path}, line {number}"
                if not line.strip():
                    continue
                try:
                    value = _parse(line)
                except (ValueError, RecursionError):
                    if line.lstrip().startswith(b"{") and not line.endswith(b"\n"):
                        notes.append(f"{where} was left out: it is cut off in the middle")
                        return
                    raise LlvidError(f"{where}: not JSON", _HINT) from None
                if not isinstance(value, dict):
                    raise LlvidError(f"{where}: not a JSON object", _HINT)
                yield _Object(value, where)
    except FileNotFoundError:
        raise LlvidError(f"{path}: no such file", _meant(path)) from None
    except IsADirectoryError:
        raise LlvidError(f"{path}: a folder, not a file of results", "name the JSONL file in it") from None
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        words = error.strerror if isinstance(error, OSError) else error
        raise LlvidError(f"{path}: can't be opened: {words}") from None


_HINT = "the results of `llvid caption -o` and `llvid batch -o` are read, a JSON object a line"


def _parse(line: bytes) -> Any:
    return json.loads(line.decode("utf-8-sig"), parse_constant=lambda _: None, parse_float=_finite)


def _finite(text: str) -> float | None:
    value = float(text)  # 1e999 is infinite
    return value if math.isfinite(value) else None


def _meant(path: Path) -> str | None:
    try:
        return nearest(path.name, (entry.name for entry in islice(path.parent.iterdir(), 1000)))
    except OSError:
        return None


def _result(line: _Object) -> Result:
    said = [line.value.get(name) for name in ("caption", "answer")]
    if not line.video or not any(isinstance(text, str) for text in said):
        failure = isinstance(line.value.get("error"), str)
        hint = "name the file of the results: the failures beside it are shown too" if failure else _HINT
        raise LlvidError(f"{line.where}: no video with a caption or an answer", hint)
    frames = line.object("frames")
    return Result(
        video=line.video,
        text=line.text("caption", "answer"),
        id=line.text("id"),
        question=line.text("question"),
        segments=tuple(_segments(line.value.get("segments"), number(frames.get("duration_seconds")))),
        finish_reason=line.text("finish_reason"),
        notes=tuple(_lines(line.value.get("notes"))),
        frames=frames,
        usage=line.object("usage"),
        settings={name: line.value[name] for name in ("prompt", "model") if line.value.get(name) is not None}
        | line.object("settings"),
    )


def _failure(line: _Object) -> Failure:
    if not isinstance(line.value.get("error"), str):
        raise LlvidError(f"{line.where}: no video with an error")
    return Failure(line.video, line.text("id"), line.text("error"), line.text("hint"))


def number(value: Any) -> float | None:
    """Return a JSON value as a finite number, or None if it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value)
    except OverflowError:
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
