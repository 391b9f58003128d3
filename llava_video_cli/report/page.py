"""One self-contained HTML page to look through results: contact sheets, captions, times.

The page is a template (`assets/`) around blocks of JSON and base64. Untrusted text (names, captions, errors) is only in
those blocks, never in markup, and the page's script inserts it as text. The rows come first and the pictures last, so a
browser shows a page of 100 MB as soon as it has read the rows.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, fields, replace
from datetime import datetime
from importlib.metadata import version
from importlib.resources import files
from io import BytesIO
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO
from urllib.parse import quote

from ..checkpoint.frame_input import PUBLISHED_INPUT
from ..errors import LlvidError, UsageError
from ..video import read_frames
from ..video.contact_sheet import contact_sheet, sheet_of
from ..video.files import PictureList, may_be_media
from ..video.fit import FrameInput
from ..video.image import is_picture, read_image
from ..video.limits import Limits
from ..video.sampling import Sampling
from .results import Result, Results, number, path_of, shown_name

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

_TEMPLATE = ("report.html", "report.css", "rows.js", "search.js", "page.js")  # the scripts as one, in this order
_TITLE = b"<title>llvid report</title>"
_HEAD_BYTES = 2048  # that the title is in
_CLOSING = "</script>\n"
_SHOWN_FRAMES = 8
_SHEET_PIXELS, _CELL_PIXELS = 640, 320  # width of a sheet and of a cell, at most
_PICTURE_PIXELS = 480  # of a still picture, on its longer side
_SHEET_AREA = 640 * 400  # pixels of frames on one sheet; upright videos would otherwise have twice as many
_SHEET_BYTES = 20_000  # at most
_QUALITIES = (70, 50, 35, 20)  # of the JPEG, until it fits
_STEEPEST = 3  # height to width; a taller frame is cropped, as it would fill the page
_READERS, _PREFETCHED = 2, 4  # videos
_INPUT_SIDES = range(16, 4097)  # pixels of what a model gets; a record that says otherwise is not believed
_MOST_TIMES = 256  # frames marked on a time line
_LIMITS = Limits(seconds=30.0, bytes=2**30, cores=1)
_URL = re.compile(r"https?://[!#-;=?-~]+", re.IGNORECASE | re.ASCII)


def write_report(
    file: TextIO,
    results: Results,
    folder: Path,
    *,
    sheets: bool = True,
    progress: Callable[[int], None] = lambda _: None,
) -> int:
    """Write the page, and return how many videos could not be read.

    The links to the videos are relative to `folder`, the page's. The memory does not grow with the number of results.
    With `sheets`, each video is read once more, for at most 30 seconds; `progress` is called with the number of results
    whose videos are read.
    """
    before, between, after = _template()
    head = {
        "name": shown_name(str(results.path)),
        "made": datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        "version": version("llava-video-cli"),
        "notes": results.notes,
    }
    file.write(before + _block("head", _json(head)))
    file.write(_opening("rows") + "[")
    for index, row in enumerate(_rows(results, folder, sheets)):
        file.write((",\n" if index else "\n") + _json(row))
    file.write("\n]" + _CLOSING)
    file.write(between)
    unreadable = done = 0
    if sheets:
        with closing(_sheets(results)) as read:
            for index, (sheet, rows) in enumerate(read):
                if isinstance(sheet, str):
                    file.write(_block(f"sheet-{index}", _json(sheet), "data-gone"))
                else:
                    file.write(_block(f"sheet-{index}", base64.b64encode(sheet).decode(), kind="text/plain"))
                unreadable, done = unreadable + isinstance(sheet, str), done + rows
                progress(done)
    file.write(after)
    return unreadable


def first_not_found(results: Results) -> str | None:
    """Return the first relative path, if none leads to a file from the current folder, nor from that of the results."""
    first = None
    for result in results:
        path = path_of(result.video)
        with suppress(OSError, ValueError):  # a name that can't be a file's
            if isinstance(path, PictureList) or Path(path).is_absolute() or _URL.fullmatch(path):
                continue
            if Path(_located(path, results.path.parent)).exists():
                return None
            first = first or path
    return first


def is_report(path: Path) -> bool:
    """Whether a file is a page that `write_report` wrote."""
    with path.open("rb") as file:
        return _TITLE in file.read(_HEAD_BYTES)


def _template() -> list[str]:
    """Return the template in three parts: before the rows, between rows and pictures, after the pictures."""
    folder = files(__package__) / "assets"
    html, style, *scripts = ((folder / name).read_text(encoding="utf-8") for name in _TEMPLATE)
    script = "".join(scripts)
    for mark, text in (("style", style), ("script", script)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        html = html.replace(f"{{{{{mark}-hash}}}}", f"'sha256-{digest}'").replace(f"{{{{{mark}}}}}", text)
    return re.split("{{(?:rows|sheets)}}", html)


def _opening(name: str, more: str = "", kind: str = "application/json") -> str:
    return f'<script type="{kind}" id="{name}"{more and " " + more}>'


def _block(name: str, text: str, more: str = "", kind: str = "application/json") -> str:
    return _opening(name, more, kind) + text + _CLOSING


def _json(value: Any) -> str:
    """Return JSON that can't end or open an HTML element or comment: ASCII, without `<`, `>` and `&`."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _rows(results: Results, folder: Path, sheets: bool) -> Iterator[dict[str, Any]]:
    """Yield each row as the page's script reads it; empty fields are left out."""
    settings: dict[str, Any] | None = None
    near = results.path.parent
    for index, (_, group) in enumerate(groupby(results, _sheet_source)):
        for result in group:
            row = _row(result)
            if link := _link(result.video, near, folder):
                row["link"] = link
            if sheets:
                row["sheet"] = index
            if result.settings != settings:  # without settings, a row has those of the row before
                row["settings"] = settings = result.settings
            yield row
    for failure in results.failures:
        error = failure.error.removeprefix(f"{failure.video}: ")
        row = {"name": shown_name(failure.video), "id": failure.id, "error": error, "hint": failure.hint}
        row["link"] = _link(failure.video, near, folder) or ""
        yield {name: value for name, value in row.items() if value}


def _row(result: Result) -> dict[str, Any]:
    times = result.frames.get("times_seconds")
    row = {
        "name": shown_name(result.video),
        "id": result.id,
        "question": result.question,
        "text": result.text,
        "scores": list(result.scores.items()),
        "segments": [[round(s.start_seconds, 3), round(s.end_seconds, 3), s.text] for s in result.segments],
        "finish": result.finish_reason,
        "notes": result.notes,
        "duration": number(result.frames.get("duration_seconds")),
        "frames": number(result.frames.get("count")),
        "sampling": result.frames.get("sampling"),
        "fit": result.frames.get("fit"),
        "share": number(result.frames.get("visible_share")),
        "times": times if isinstance(times, list) and len(times) <= _MOST_TIMES else None,
        "usage": result.usage,
    }
    return {name: value for name, value in row.items() if value}


def _link(video: str, near: Path, folder: Path) -> str | None:
    """Return the URL of a video for a page in `folder`: of http(s), or relative to the page.

    None for a file that is not there, and for one that a browser might run, as it would HTML or SVG.
    """
    path = path_of(video)
    if _URL.fullmatch(path):
        return path
    with suppress(OSError, ValueError):  # a name that can't be a file's, or on another drive
        path = _located(path, near)
        if not isinstance(path, PictureList) and may_be_media(Path(path).suffix.lower()) and Path(path).is_file():
            place = os.path.relpath(Path(path).absolute(), folder.absolute())
            return quote(os.fsencode(Path(place).as_posix()))
    return None


@dataclass(frozen=True)
class _InputSize:
    """What a record says of what the model got: how, which share of a frame, and the width and height, if it does."""

    fit: str
    share: float | None
    size: tuple[int, int] | None

    def input(self, width: int, height: int) -> FrameInput | None:
        """Return what a model that saw this share of frames of that size gets; None if the record doesn't tell."""
        size = self.size or (PUBLISHED_INPUT.width, PUBLISHED_INPUT.height)  # older records have none
        if self.share is None or not 0 < self.share <= 1 or (self.fit == "stretch" and not self.size):
            return None
        if self.fit != "crop":
            return FrameInput(*size, "stretch")
        # pixels of a frame for one of the model's; of what is cut out, one side may be whole
        scale = math.sqrt(self.share * width * height / math.prod(size))
        if scale * size[0] > width:
            scale = self.share * height / size[1]
        elif scale * size[1] > height:
            scale = self.share * width / size[0]
        return FrameInput(*size, "crop", max(1, round(min(width, height) / scale)))


def _sheet_source(result: Result) -> tuple[str, Sampling | None, _InputSize]:
    """Return the video and the sampling of a sheet, None for what may be a picture; and what the model saw."""
    frames, size = result.frames, result.frames.get("input_size")
    sides = [int(number(side) or 0) for side in size] if isinstance(size, list) else []
    is_size = len(sides) == 2 and all(side in _INPUT_SIDES for side in sides)
    seen = _InputSize(
        str(frames.get("fit")), number(frames.get("visible_share")), (sides[0], sides[1]) if is_size else None
    )
    return result.video, _few(_sampling(result), result) if frames else None, seen


def _sampling(result: Result) -> Sampling:
    given = result.settings.get("sampling")
    if isinstance(given, dict):
        names = {field.name for field in fields(Sampling)}
        with suppress(UsageError):
            return Sampling(**{name: value for name, value in given.items() if name in names})
    return Sampling(frames=_SHOWN_FRAMES)


def _few(sampling: Sampling, result: Result) -> Sampling:
    """Return the sampling for a sheet: at most eight frames, if possible from those that the model saw.

    Every second (third, ...) frame of a uniform sampling is a uniform sampling too, if their number divides evenly. If
    a video was captioned in windows, its sampling is that of one window, but the sheet shows the whole video.
    """
    if sampling.mode == "scenes":  # to find the shots again would decode the whole video
        sampling = replace(sampling, mode="uniform")
    if len(result.segments) > 1:
        return replace(sampling, frames=_SHOWN_FRAMES, fps=None)
    count = int(number(result.frames.get("count")) or sampling.frames)
    if count <= _SHOWN_FRAMES:
        return sampling
    if sampling.fps is not None:
        return replace(sampling, fps=sampling.fps / -(-count // _SHOWN_FRAMES))
    even = (few for few in range(_SHOWN_FRAMES, _SHOWN_FRAMES // 2 - 1, -1) if count % few == 0)
    return replace(sampling, frames=next(even, _SHOWN_FRAMES))


def _sheets(results: Results) -> Generator[tuple[bytes | str, int]]:
    """Yield the sheet of each video in order, or its error, with the number of consecutive results that share it."""
    pool = ThreadPoolExecutor(_READERS, thread_name_prefix="llvid-sheet")
    waiting: deque[tuple[Future[bytes | str], int]] = deque()
    try:
        for (video, sampling, seen), group in groupby(results, _sheet_source):
            sheet = pool.submit(_sheet, video, sampling, seen, results.path.parent)
            waiting.append((sheet, sum(1 for _ in group)))
            if len(waiting) > _PREFETCHED:
                first, rows = waiting.popleft()
                yield first.result(), rows
        for future, rows in waiting:
            yield future.result(), rows
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _sheet(video: str, sampling: Sampling | None, seen: _InputSize, folder: Path) -> bytes | str:
    """Return the contact sheet as a JPEG, or the error; a path is relative to the current folder, or to `folder`."""
    path = path_of(video)
    with suppress(OSError, ValueError):  # a name that can't be a file's: the reader reports it
        if isinstance(path, PictureList):
            path = PictureList([_located(each, folder) for each in path.paths])
        else:
            path = _located(path, folder)
    try:
        picture = _picture(path, sampling, seen)
    except LlvidError as failure:
        return str(failure).removeprefix(f"{path}: ")
    for quality in _QUALITIES:
        file = BytesIO()
        picture.save(file, format="jpeg", quality=quality, optimize=True)
        if file.tell() <= _SHEET_BYTES:
            break
    return file.getvalue()


def _located(path: str, folder: Path) -> str:
    return os.fspath(folder / path) if not Path(path).exists() and (folder / path).exists() else path


def _picture(path: str, sampling: Sampling | None, seen: _InputSize) -> Image:
    from PIL import Image as Pillow

    if sampling is None and is_picture(path):
        image = Pillow.fromarray(read_image(path).pixels)
        image.thumbnail((_PICTURE_PIXELS, _PICTURE_PIXELS))
        return image
    frames = read_frames(path, sampling or Sampling(frames=_SHOWN_FRAMES), limits=_LIMITS, resize=_small)
    frames = replace(frames, input=seen.input(frames.info.width, frames.info.height))
    count, height, width, _ = frames.images.shape
    rows = 1 if count <= _SHOWN_FRAMES // 2 + 1 else 2
    columns = -(-count // rows)
    shape = height / width * rows / columns  # height to width, of the sheet
    wide = min(_SHEET_PIXELS, columns * _CELL_PIXELS, int((_SHEET_AREA / shape) ** 0.5))
    return contact_sheet(frames, columns, wide) if seen.size else sheet_of(frames, columns, wide)


def _small(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a frame no wider than a cell; one that is too tall is cropped."""
    import numpy as np
    from PIL import Image as Pillow

    height, width, _ = image.shape
    cut = max(0, height - _STEEPEST * width) // 2
    whole = Pillow.fromarray(image[cut : height - cut])
    wide = min(width, _CELL_PIXELS)
    return np.asarray(whole.resize((wide, max(1, round(whole.height * wide / width))), Pillow.Resampling.BOX))
