"""What is written of a record: a row of a table (jsonl, csv, parquet), or a file a video (txt, srt, vtt, json)."""

from __future__ import annotations

import csv
import html
import io
import json
import os
import re
import shlex
import unicodedata
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeAlias

from ..errors import LlvidError, MissingExtraError, UsageError
from ..system.files import whole_file
from ..validation import MOST_LINE_BYTES, bounded_lines, is_special, parse_json
from ..video.files import named_path
from .record import Record, path_to_text, text_to_path

TABLES = (".jsonl", ".csv", ".parquet")
_STDOUTS = (Path("/dev/stdout"), Path("/dev/fd/1"), Path("/proc/self/fd/1"))
Sidecar = Literal["txt", "srt", "vtt", "json"]
_BEGINNINGS = (b'{"video_path": ', b'{"id": ')
_PARQUET_NAMES = [
    "file", "caption", "segments", "prompt", "model", "finish_reason", "duration_seconds", "times_seconds", "notes",
    "usage", "settings", "key",
]  # fmt: skip
_SCORES = "scores"  # the column of choices, where there are any
_ROW_GROUP = 5000  # rows of a Parquet file that lie in memory
# How a spreadsheet's formula begins; one more mark before it, and it is text. Marks that stand there get one more, too.
_FORMULA_TEXT = "'*[=+\\-@\t\n\uff1d\uff0b\uff0d\uff20]"
_FORMULA_PATH = "(?:\\./)*[=+\\-@\uff1d\uff0b\uff0d\uff20]"
_DIRECTIONS = "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks that reorder a line
_STEERING = re.compile(f"[\x00-\x1f\x7f-\x9f\u2028\u2029{_DIRECTIONS}]")
_KEY = b'"key": "'  # as json.dumps writes it; inside a text its quotes would be escaped


class JsonLines:
    """A JSON object a line, with what would confuse a terminal or a reader of lines escaped."""

    header = b""

    def encode(self, values: Mapping[str, Any]) -> bytes:
        """Return a line."""
        return (json_line(values) + "\n").encode()

    def decode(self, row: bytes) -> dict[str, Any]:
        """Return a line's object. Raises ValueError for what is no row of ours."""
        values = parse_json(row)
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

    def request_key(self, row: bytes) -> str:
        """Return the request's key without reading the rest, or "" if it has none."""
        return _after(row, b'"request_key": "')

    def split(self, file: BinaryIO) -> Iterator[bytes]:
        """Yield the lines; the last one has no line end if it is torn."""
        yield from bounded_lines(file)

    def may_begin_with(self, row: bytes) -> bool:
        """Whether a torn first row can be ours: it begins as our records do."""
        return any(row[: len(begin)] == begin[: len(row)] for begin in _BEGINNINGS)


class Csv:
    """Comma-separated values (RFC 4180, with line feeds), all quoted; nested values are JSON, notes are one text.

    No cell holds control characters or is a formula. Captions lose such characters; a path with one is percent-encoded,
    as `path_to_text` does for bytes that are no text, and a path that would be a formula begins with `./`, another text
    with an apostrophe. `decode` undoes that. Tables of choices are `scored`: they have a column more.
    """

    def __init__(self, *, scored: bool = False, has_file_name: bool = False) -> None:
        more = (_SCORES,) if scored else ()
        self.columns = (
            "video_path", *(("file_name",) if has_file_name else ()), "caption", *more, "segments", "prompt", "model",
            "finish_reason", "frames", "notes", "usage", "settings", "key",
        )  # fmt: skip
        self._nested = ("segments", "frames", "usage", "settings", *more)
        self.header = self._row(self.columns)

    def encode(self, values: Mapping[str, Any]) -> bytes:
        """Return a row."""
        cells = {name: json_line(values.get(name) if name == _SCORES else values[name]) for name in self._nested}
        texts = {"file_name": "", **values, "notes": "; ".join(notes_list(values["notes"]))}
        cells |= {name: _clean_path(texts[name]) for name in ("video_path", "file_name")}
        cells |= {name: _clean_text(texts[name]) for name in self.columns if name not in cells}
        return self._row([cells[name] for name in self.columns])

    def decode(self, row: bytes) -> dict[str, Any]:
        """Return a row's values."""
        cells = dict(zip(self.columns, self._cells(row), strict=True))
        nested = {name: parse_json(cells[name]) for name in self._nested}
        texts = {name: re.sub(f"^'(?={_FORMULA_TEXT})", "", cell) for name, cell in cells.items()}
        paths = {
            name: path_to_text(text_to_path(re.sub(rf"^\./(?={_FORMULA_PATH})", "", cells[name])))
            for name in ("video_path", "file_name")
            if name in cells
        }
        return {**texts, **nested, **paths, "notes": notes_list(texts["notes"])}

    def key(self, row: bytes) -> str:
        """Return the last cell."""
        return self._cells(row)[-1]

    def request_key(self, row: bytes) -> str:
        """Return the request's key, or "" if the row has none."""
        return _after(row, b'""request_key"": ""')

    def split(self, file: BinaryIO) -> Iterator[bytes]:
        """Yield the rows, as `JsonLines` does: a line end between quotes belongs to a cell."""
        row = b""
        for line in bounded_lines(file):
            row += line
            if len(row) > MOST_LINE_BYTES:
                raise LlvidError(f"{file.name}: a row is longer than {MOST_LINE_BYTES:,} bytes")
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


def _after(row: bytes, mark: bytes) -> str:
    """Return the 32 digits behind the last such mark: the quotes of one in a text would be escaped."""
    _, found, rest = row.rpartition(mark)
    return rest[:32].decode("ascii", "replace") if found else ""


def _clean_text(text: str) -> str:
    return re.sub(f"^(?={_FORMULA_TEXT})", "'", re.sub(f"[{_DIRECTIONS}]", "", printable(text)))


def _clean_path(path: str) -> str:
    if _STEERING.search(path):
        path = path_to_text(text_to_path(path), encoded=True)
    return re.sub(f"^(?={_FORMULA_PATH})", "./", path)


def notes_list(notes: str | Sequence[str]) -> list[str]:
    """Return a record's notes; in records of version 0.1 they are one text, empty if there is none."""
    return [notes] if isinstance(notes, str) and notes else list(notes)


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
    if text.isprintable():
        return text
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


SIDECARS: dict[Sidecar, Callable[[Record], str]] = {
    "txt": txt,
    "srt": srt,
    "vtt": vtt,
    "json": lambda record: json_line(record.values) + "\n",
}


def write_sidecar(kind: Sidecar, path: Path, record: Record, option: str = "-o") -> None:
    """Write a record as text or subtitles, whole or not at all. Raises LlvidError."""
    with whole_file(path, option) as beside:
        beside.write_text(SIDECARS[kind](record), encoding="utf-8", newline="")


def is_sidecar(kind: Sidecar, path: Path, record: Record, *, by_size: bool = False) -> bool:
    """Whether a file is what `write_sidecar` writes of a record, or has its size; one that can't be read is not."""
    content = SIDECARS[kind](record).encode()
    try:
        return path.stat().st_size == len(content) if by_size else path.read_bytes() == content
    except OSError:
        return False


def check_output(path: Path, *, one_video: bool) -> None:
    """Raise `UsageError` for a file that captions can't be written to, by its ending."""
    suffix = path.suffix.lower()
    if suffix not in TABLES and not (one_video and suffix[1:] in SIDECARS):
        kind = suffix[1:] if suffix[1:] in ("txt", "srt", "vtt") else ""
        hint = f"-o {shlex.quote(str(path.with_suffix('.jsonl')))}" if path.name else None
        if kind:
            hint = f"--sidecar {kind} writes a .{kind} file next to each video; {hint} takes all captions"
        if path in _STDOUTS:
            hint = "leave out -o: captions then go to stdout, with --json as JSON lines"
        raise UsageError(
            f"{path} must end in {', '.join(TABLES)}, or, for a single video, in .txt, .srt, .vtt or .json", hint
        )


def table_format(path: Path, *, scored: bool = False, overwrite: bool = False) -> TableFormat:
    """Return the format of a file, by its name, and as it was begun. Raises LlvidError for another one."""
    match path.suffix.lower():
        case ".jsonl":
            return JsonLines()
        case ".csv":
            begun = (Csv(scored=True, has_file_name=each).header for each in (False, True))
            scored = scored or any(_begins_with(path, each) for each in begun)
            plain = (Csv(scored=each).header for each in (False, True))
            has_file_name = is_metadata(path) and (overwrite or not any(_begins_with(path, each) for each in plain))
            return Csv(scored=scored, has_file_name=has_file_name)
    raise LlvidError(f"there is no table format for {path.suffix!r}")


def is_metadata(output: Path) -> bool:
    """Whether `datasets.load_dataset("videofolder")` reads a table of that name, or what `--where` left of one."""
    return output.name.lower().partition(".")[0] == "metadata" and output.suffix.lower() in TABLES


def _begins_with(path: Path, header: bytes) -> bool:
    try:
        if is_special(path):
            return False
        with path.open("rb") as file:
            return file.read(len(header)) == header
    except OSError:
        return False


@dataclass(frozen=True)
class Sidecars:
    """Which files are written for a video, and where; `folder` None means beside the video."""

    kinds: Sequence[Sidecar] = ()
    folder: Path | None = None

    def paths(self, video: str, root: str) -> dict[Sidecar, Path]:
        """Return the files of a video, which was found below `root` ("" if it was named itself)."""
        place = named_path(video)
        if self.folder is not None:
            inside = os.path.relpath(video, root) if root else os.curdir
            place = self.folder / (place.name if inside == os.curdir else inside)  # a folder's pictures may be a video
        return {kind: place.with_name(f"{place.stem}.{kind}") for kind in self.kinds}

    def write(
        self, record: Record, video: str, root: str, keep: Container[Path] = (), *, spare: bool = False
    ) -> list[Path]:
        """Write the files of a video's record but those to keep, each whole or not at all. Raises LlvidError.

        With `spare`, files that are there stay, and are returned.
        """
        spared = []
        for kind, path in self.paths(video, root).items():
            if path in keep:
                continue
            if spare and path.exists():
                spared.append(path)
                continue
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                message = f"can't create the folder {path.parent}: {error.strerror}"
                raise LlvidError(message, "choose another path with --output-dir") from None
            write_sidecar(kind, path, record, "--output-dir")
        return spared


def unwritable(video: str, sidecars: Iterable[Path], owners: dict[Path, str]) -> LlvidError | None:
    """Return why a video can't have these sidecars, if so; `owners` are the videos of others, and gets this one.

    Another one may have them already, as of a.mp4 and a.mkv, or their ending makes a name too long.
    """
    for path in sidecars:
        if (other := owners.setdefault(path, video)) != video:
            return LlvidError(f"{video}: {path} is already the sidecar of {other}", "rename one of the two")
        try:
            path.exists()
        except OSError as error:
            return LlvidError(f"{video}: its sidecar {path.name} can't be written: {error.strerror}")
    return None


def check_parquet() -> None:
    """Raise MissingExtraError if the package for it is not there."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError:
        raise MissingExtraError("Parquet needs the package pyarrow", "parquet") from None


def parquet_rows(path: Path) -> int | None:
    """Return how many records a Parquet file of ours has, 0 if it isn't there or empty; None if it is not ours."""
    from pyarrow import ArrowException, parquet

    if not path.exists() or not path.stat().st_size:
        return 0
    try:
        metadata = parquet.read_metadata(path)
    except (OSError, ArrowException):
        return None
    names = [name for name in metadata.schema.to_arrow_schema().names if name not in (_SCORES, "file_name")]
    return metadata.num_rows if names == _PARQUET_NAMES else None


def write_parquet(records: Iterable[Record], path: Path, choices: Sequence[str] = ()) -> None:
    """Write the records, whole or not at all. Their scores have `choices`. Raises LlvidError."""
    import pyarrow as arrow
    from pyarrow import parquet

    text, number = arrow.string(), arrow.float64()
    segment = arrow.struct([("start_seconds", number), ("end_seconds", number), ("text", text)])
    types = {"segments": arrow.list_(segment), "notes": arrow.list_(text)}
    types |= {"duration_seconds": number, "times_seconds": arrow.list_(number)}
    names = list(_PARQUET_NAMES)
    if choices:
        names.insert(2, _SCORES)
        types[_SCORES] = arrow.struct([(choice, number) for choice in choices])
    if is_metadata(path):
        names.insert(0, "file_name")
    schema = arrow.schema([(name, types.get(name, text)) for name in names])
    with whole_file(path) as beside, parquet.ParquetWriter(beside, schema) as writer:
        rows_left = map(_row, records)
        while rows := list(islice(rows_left, _ROW_GROUP)):
            writer.write_table(arrow.Table.from_pylist(rows, schema))


def _row(record: Record) -> dict[str, Any]:
    values = record.values
    frames = values["frames"] or {}
    return {
        **{name: values[name] for name in ("caption", "segments", "prompt", "model", "finish_reason", "key")},
        "notes": notes_list(values["notes"]),
        "file": values["video_path"],
        _SCORES: values.get(_SCORES),
        "file_name": values.get("file_name"),
        "duration_seconds": frames.get("duration_seconds"),
        "times_seconds": frames.get("times_seconds", []),
        "usage": json.dumps(values["usage"]),
        "settings": json.dumps(values["settings"]),
    }


def _clock(seconds: float, point: str) -> str:
    thousandths = max(0, round(seconds * 1000))  # sound may begin before the first picture
    minutes, rest = divmod(thousandths, 60_000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 1000:02d}{point}{rest % 1000:03d}"
