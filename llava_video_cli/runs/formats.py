"""What is written of a record: a row of a table (jsonl, csv, parquet), or a file beside its video (txt, srt, vtt)."""

from __future__ import annotations

import csv
import html
import io
import json
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias

from ..errors import LlvidError, UsageError
from ..system.files import whole_file
from .record import Record

TABLES = (".jsonl", ".csv", ".parquet")
Sidecar = Literal["txt", "srt", "vtt"]
_BEGINNINGS = (b'{"video_path": ', b'{"id": ')
_ROW_GROUP = 5000  # rows of a Parquet file that lie in memory
_KEY = b'"key": "'  # as json.dumps writes it; inside a text its quotes would be escaped


class JsonLines:
    """A JSON object a line, with what would confuse a terminal or a reader of lines escaped."""

    header = b""

    def encode(self, values: Mapping[str, Any]) -> bytes:
        """Return a line."""
        return (json_line(values) + "\n").encode()

    def decode(self, row: bytes) -> dict[str, Any]:
        """Return a line's object. Raises ValueError for what is no row of ours."""
        values = json.loads(row)
        if not isinstance(values, dict):
            raise ValueError("not an object")
        return values

    def key(self, row: bytes) -> str:
        """Return the key without reading the rest, where it stands at the end as we write it. Raises ValueError."""
        begin = row.rfind(_KEY)
        if begin >= 0 and row.rstrip().endswith(b'"}'):
            begin += len(_KEY)
            return row[begin : row.index(b'"', begin)].decode("ascii")
        key = self.decode(row).get("key")
        if not isinstance(key, str):
            raise ValueError("it has no key")
        return key

    def split(self, file: BinaryIO) -> Iterator[bytes]:
        """Yield the lines; the last one has no line end if it is torn."""
        yield from file

    def may_begin_with(self, row: bytes) -> bool:
        """Whether a torn first row can be ours: it begins as our records do."""
        return any(row[: len(begin)] == begin[: len(row)] for begin in _BEGINNINGS)


class Csv:
    """Comma-separated values (RFC 4180, with line feeds), all of them quoted; nested values are JSON."""

    columns = (
        "video_path", "caption", "segments", "prompt", "model", "finish_reason", "frames", "notes", "usage",
        "settings", "key",
    )  # fmt: skip
    _nested = ("segments", "frames", "usage", "settings")

    def __init__(self) -> None:
        self.header = self._row(self.columns)

    def encode(self, values: Mapping[str, Any]) -> bytes:
        """Return a row. Control characters of a caption are left out: csv readers stop at some."""
        values = {**values, "caption": printable(values["caption"])}
        return self._row([json_line(values[name]) if name in self._nested else values[name] for name in self.columns])

    def decode(self, row: bytes) -> dict[str, Any]:
        """Return a row's values."""
        cells = self._cells(row)
        return {
            name: json.loads(cell) if name in self._nested else cell
            for name, cell in zip(self.columns, cells, strict=True)
        }

    def key(self, row: bytes) -> str:
        """Return the last cell."""
        return self._cells(row)[-1]

    def split(self, file: BinaryIO) -> Iterator[bytes]:
        """Yield the rows, as `JsonLines` does: a line end between quotes belongs to a cell."""
        row = b""
        for line in file:
            row += line
            if row.count(b'"') % 2 == 0:
                yield row
                row = b""
        if row:
            yield row.rstrip(b"\n")

    def may_begin_with(self, row: bytes) -> bool:
        """Whether it is a piece of the header."""
        return self.header.startswith(row)

    def _cells(self, row: bytes) -> list[str]:
        try:
            (cells,) = csv.reader(io.StringIO(row.decode(), newline=""), strict=True)
        except csv.Error as error:
            raise ValueError(str(error)) from None
        if len(cells) != len(self.columns):
            raise ValueError(f"{len(cells)} cells, not {len(self.columns)}")
        return cells

    def _row(self, cells: Sequence[str]) -> bytes:
        text = io.StringIO(newline="")
        csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n").writerow(cells)  # lone carriage returns too
        return text.getvalue().encode()


TableFormat: TypeAlias = JsonLines | Csv  # their rows are bytes with a line end


def json_line(values: Any) -> str:
    """Return JSON without a line end, in which characters that steer a terminal or can't be encoded are escaped."""
    line = json.dumps(values, ensure_ascii=False, allow_nan=False)
    return line if line.isascii() and line.isprintable() else "".join(map(_json_safe, line))


def _json_safe(character: str) -> str:
    if character.isprintable() or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
        return character
    return json.dumps(character)[1:-1]  # ASCII: surrogate pairs where JSON needs them


def printable(text: str) -> str:
    """Return text without control characters, line breaks and tabs aside."""
    return "".join(c for c in text if c in "\n\t" or unicodedata.category(c) not in ("Cc", "Cs"))


def txt(record: Record) -> str:
    """Return the caption, and a line end."""
    return printable(record.text).strip() + "\n"


def srt(record: Record) -> str:
    """Return SubRip subtitles, a cue for each segment."""
    return "".join(f"{number}\n{cue}" for number, cue in enumerate(_cues(record, ",", str), start=1))


def vtt(record: Record) -> str:
    """Return WebVTT subtitles, a cue for each segment."""
    return "WEBVTT\n\n" + "".join(_cues(record, ".", partial(html.escape, quote=False)))


def _cues(record: Record, point: str, escape: Callable[[str], str]) -> Iterator[str]:
    for segment in record.segments:
        # On one line: an empty line would end the cue, and an arrow would begin another.
        text = re.sub("-+>", "→", " ".join(printable(segment.text).split())) or "-"
        yield f"{_clock(segment.start_seconds, point)} --> {_clock(segment.end_seconds, point)}\n{escape(text)}\n\n"


SIDECARS: dict[Sidecar, Callable[[Record], str]] = {"txt": txt, "srt": srt, "vtt": vtt}


def check_output(path: Path, *, one_video: bool) -> None:
    """Raise `UsageError` for a file that captions can't be written to, by its ending."""
    suffix = path.suffix.lower()
    if suffix not in TABLES and not (one_video and suffix[1:] in SIDECARS):
        raise UsageError(f"{path} must end in {', '.join(TABLES)}, or, for a single video, in .txt, .srt or .vtt")


def table_format(suffix: str) -> TableFormat:
    """Return the format of a file's ending. Raises LlvidError for another one."""
    match suffix.lower():
        case ".jsonl":
            return JsonLines()
        case ".csv":
            return Csv()
    raise LlvidError(f"there is no table format for {suffix!r}")


@dataclass(frozen=True)
class Sidecars:
    """Where they go, and which ones; `folder` None means beside the video."""

    kinds: Sequence[Sidecar] = ()
    folder: Path | None = None

    def paths(self, video: str, root: str) -> dict[Sidecar, Path]:
        """Return the files of a video, which was found below `root` ("" if it was named itself)."""
        place = Path(video)
        if self.folder is not None:
            place = self.folder / (os.path.relpath(video, root) if root else place.name)
        return {kind: place.with_name(f"{place.stem}.{kind}") for kind in self.kinds}

    def write(self, record: Record, root: str) -> None:
        """Write a record's files, each whole or not at all. Raises LlvidError."""
        for kind, path in self.paths(record.path, root).items():
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise LlvidError(f"can't create the folder {path.parent}: {error.strerror}") from None
            with whole_file(path) as beside:
                beside.write_text(SIDECARS[kind](record), encoding="utf-8", newline="")


def check_parquet() -> None:
    """Raise LlvidError if the package for it is not there."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise LlvidError("Parquet needs the package pyarrow", "pip install 'llava-video-cli[parquet]'") from None


def write_parquet(records: Iterable[Record], path: Path) -> int:
    """Write the records, whole or not at all; return how many. Raises LlvidError."""
    import pyarrow as arrow
    from pyarrow import parquet

    text, number = arrow.string(), arrow.float64()
    segment = arrow.struct([("start_seconds", number), ("end_seconds", number), ("text", text)])
    columns = [("file", text), ("caption", text), ("segments", arrow.list_(segment)), ("prompt", text), ("model", text)]
    columns += [("finish_reason", text), ("duration_seconds", number), ("times_seconds", arrow.list_(number))]
    columns += [("notes", text), ("usage", text), ("settings", text), ("key", text)]
    schema = arrow.schema(columns)
    count = 0
    with whole_file(path) as beside, parquet.ParquetWriter(beside, schema) as writer:
        rows_left = map(_row, records)
        while rows := list(islice(rows_left, _ROW_GROUP)):
            writer.write_table(arrow.Table.from_pylist(rows, schema))
            count += len(rows)
    return count


def _row(record: Record) -> dict[str, Any]:
    values = record.values
    frames = values["frames"] or {}
    return {
        **{name: values[name] for name in ("caption", "segments", "prompt", "model", "finish_reason", "notes", "key")},
        "file": values["video_path"],
        "duration_seconds": frames.get("duration_seconds"),
        "times_seconds": frames.get("times_seconds", []),
        "usage": json.dumps(values["usage"]),
        "settings": json.dumps(values["settings"]),
    }


def _clock(seconds: float, point: str) -> str:
    thousandths = round(seconds * 1000)
    minutes, rest = divmod(thousandths, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"
