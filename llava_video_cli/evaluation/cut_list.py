"""Moments as something that an editor or a player takes: ffmpeg's command lines, an edit decision list, subtitles."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..runs.formats import printable, srt
from ..runs.record import Record
from ..system.files import check_place, check_replaceable, short_stem, whole_file

_FPS = 25.0  # of an edit list where no rate is known
# How a list begins; the first subtitle ends with a probability.
_BEGINNINGS = {
    ".sh": rb"#!/bin/sh\n(ffmpeg -nostdin -n -ss |\Z)",
    ".edl": rb"TITLE: .*\nFCM: NON-DROP FRAME\n",
    ".srt": rb"1\n.* --> .*\n.* \([01]\.[0-9]{2}\)\n",
}
_HEAD_BYTES = 2**16


def write_cuts(path: Path, records: Sequence[Record]) -> None:
    """Write the moments of records, each video's in order of time, whole or not at all; see `check_cuts`."""
    write = _writer(path, len(records))
    with whole_file(path, "--cuts") as beside:
        text = write(records, path)  # a file's name may have bytes that are not UTF-8
        beside.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")


def check_cuts(path: Path, videos: int = 1, *, overwrite: bool = False) -> None:
    """Raise `LlvidError` for a file that can't be written, or not for so many videos.

    That is one of another ending, in a folder that is not there, or one that is there and no list, unless `overwrite`.
    """
    _writer(path, videos)
    check_place(path)
    check_replaceable(path, _is_ours, " was not written by `llvid find`", "--cuts", overwrite=overwrite)


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    return re.match(_BEGINNINGS[path.suffix.lower()], head) is not None


def _writer(path: Path, videos: int) -> Callable[[Sequence[Record], Path], str]:
    """Return what writes a file of that ending; raises `UsageError` for another one, or for too many videos."""
    formats = {".sh": _ffmpeg, ".edl": _edl, ".srt": _subtitles}
    if path.suffix.lower() not in formats:
        raise UsageError(f"{path} must end in .sh (ffmpeg lines), .edl or .srt")
    if videos > 1 and path.suffix.lower() == ".srt":
        raise UsageError(f"{path}: subtitles are of one video, and there are {videos}", "use .sh or .edl")
    return formats[path.suffix.lower()]


def _moments(record: Record) -> list[dict[str, Any]]:
    return sorted(record.values["moments"], key=lambda each: each["start_seconds"])


def _ffmpeg(records: Sequence[Record], _: Path) -> str:
    """Return a line for each moment: it is encoded anew, as a copy could begin at a keyframe only."""
    lines, taken = ["#!/bin/sh"], set[str]()
    for record in records:
        for moment in _moments(record):
            start, end = moment["start_seconds"], moment["end_seconds"]
            number, stem = 1, short_stem(record.path)
            while (name := f"{stem}-{number}.mp4") in taken:
                number += 1
            taken.add(name)
            given, cut = (shlex.quote(_as_file(each)) for each in (record.path, name))
            lines.append(f"ffmpeg -nostdin -n -ss {start:.6f} -t {end - start:.6f} -i {given} {cut}")
    return "\n".join(lines) + "\n"


def _as_file(path: str) -> str:
    """Return a path that ffmpeg takes for no option, and what is before a colon for no protocol."""
    return f"./{path}" if path.startswith("-") or ":" in path.partition("/")[0] else path


def _edl(records: Sequence[Record], path: Path) -> str:
    """Return a CMX 3600 list: the moments one behind the other, in time code of each video's own rate."""
    lines, at = [f"TITLE: {printable(path.stem)}", "FCM: NON-DROP FRAME", ""], 0.0
    number = 0
    for record in records:
        fps = record.values.get("average_fps") or _FPS
        for moment in _moments(record):
            number += 1
            start, end = moment["start_seconds"], moment["end_seconds"]
            times = [_time_code(seconds, fps) for seconds in (start, end, at, at + end - start)]
            at += end - start
            lines += [f"{number:03d}  AX       V     C        {' '.join(times)}"]
            name = " ".join(printable(Path(record.path).name).split())
            lines += [f"* FROM CLIP NAME: {name}", ""]
    return "\n".join(lines)


def _time_code(seconds: float, fps: float) -> str:
    frames, base = round(seconds * fps), max(1, round(fps))
    rest, frame = divmod(frames, base)
    return f"{rest // 3600:02d}:{rest // 60 % 60:02d}:{rest % 60:02d}:{frame:02d}"


def _subtitles(records: Sequence[Record], _: Path) -> str:
    """Return subtitles, for a single video: a cue for each moment."""
    segments = [
        {
            "start_seconds": moment["start_seconds"],
            "end_seconds": moment["end_seconds"],
            "text": f"{moment['query']} ({moment['probability']:.2f})",
        }
        for record in records
        for moment in _moments(record)
    ]
    return srt(Record({"segments": segments}))
