"""What a long run writes: a file, a folder or a bucket, which is its own ledger, and the failures beside it.

What stands there is done. In a file a record is one append. A folder or a bucket is written in parts, each whole, every
minute and every few thousand records: a run that is killed loses what it has not written, which the next one makes
again.
"""

from __future__ import annotations

import os
import posixpath
import stat
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import LlvidError, UsageError, first_line
from ..system.files import lock, whole_file
from .formats import JsonLines, TableFormat, check_parquet, table_format, write_parquet
from .record import Failure, Record
from .storage import buffered, file_system, is_address

_KEY_DIGITS = 32
_PART_RECORDS = 5000
_PART_SECONDS = 60.0
_ERRORS = "_errors.jsonl"  # readers of folders leave names with an underscore out


class Ledger:
    """An open output file, locked against other runs; use it in a `with` block.

    `done` holds the keys of the records that stand in it. A last row that was torn off, by SIGKILL or a power cut, is
    cut away. Raises LlvidError for a file that another run is writing, that is not one of ours, or can't be written.
    """

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        self.path, self.rows = path, table_format(path.suffix)
        self._file = _open(path)
        try:
            lock(self._file.fileno(), str(path))
            self.done, self._end = (set[str](), 0) if overwrite else _read(self._file, self.rows, path)
        except BaseException:
            self._file.close()
            raise

    def begin(self) -> None:
        """Drop what is to be overwritten; until then a run that fails early leaves it as it was."""
        if not self._end:
            self._file.truncate(0)

    def append(self, record: Record) -> None:
        """Write a record. Raises LlvidError when it can't be written; what was there before stays as it was."""
        row = self.rows.encode(record.values)
        content = row if self._end else self.rows.header + row
        try:
            _write_at(self._file, self._end, content)
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(self._end)
            raise LlvidError(
                f"can't write {self.path}: {error.strerror}",
                "earlier records are complete; run the same command to continue",
            ) from None
        self._end += len(content)
        self.done.add(record.key)

    def records(self) -> Iterator[Record]:
        """Yield what stands in the file."""
        with self.path.open("rb") as file:
            for row in self.rows.split(file):
                if row != self.rows.header:
                    yield Record(self.rows.decode(row))

    def __enter__(self) -> Ledger:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


@contextmanager
def open_table(path: Path, *, overwrite: bool = False) -> Iterator[Ledger]:
    """Open the ledger of a table: its own file, or the JSONL beside a Parquet file, which is made at the end."""
    is_parquet = path.suffix.lower() == ".parquet"
    if is_parquet:
        check_parquet()
    with Ledger(path.with_name(f"{path.name}.jsonl") if is_parquet else path, overwrite=overwrite) as ledger:
        try:
            yield ledger
        finally:
            if is_parquet:
                write_parquet(ledger.records(), path)


class Errors:
    """The failures beside an output file, in `NAME.errors.jsonl`: those of this run, and earlier ones not tried again.

    Use it in a `with` block: its end leaves none that has gone well since, and no file if there are none.
    """

    def __init__(self, output: Path, *, overwrite: bool = False) -> None:
        self.path = output.with_name(f"{output.stem}.errors.jsonl")
        self._rows = JsonLines()
        self._left = {} if overwrite else self._load()

    def append(self, failure: Failure) -> None:
        """Write a failure; an older one of the same video is forgotten."""
        row = self._rows.encode(failure.values)
        self._left[_name(failure.names)] = row
        try:
            with self.path.open("ab") as file:
                file.write(row)
        except OSError as error:
            raise LlvidError(f"can't write {self.path}: {error.strerror}") from None

    def succeeded(self, record: Record) -> None:
        """Forget an older failure."""
        self._left.pop(_name(record.values), None)

    def close(self) -> None:
        """Write those that are left."""
        if self._left:
            with whole_file(self.path) as beside:
                beside.write_bytes(b"".join(self._left.values()))
        else:
            self.path.unlink(missing_ok=True)

    def __enter__(self) -> Errors:
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(LlvidError):  # what went wrong before is what the user should read
            self.close()

    def _load(self) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        with suppress(FileNotFoundError), self.path.open("rb") as file:
            for row in file:
                with suppress(ValueError):  # a torn line
                    found[_name(self._rows.decode(row))] = row.rstrip(b"\n") + b"\n"
        return found


def _name(values: Mapping[str, Any]) -> str:
    """Return what tells a video, or a request of a file of requests, from others."""
    return str(values.get("id") if "id" in values else values.get("video_path"))


def _open(path: Path) -> BinaryIO:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise LlvidError(f"can't write {path}: {error.strerror}", "choose another path with -o") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UsageError(f"{path} is not a regular file, so a run can't resume", "choose a file with -o")
    return os.fdopen(descriptor, "rb+", buffering=0)


def _read(file: BinaryIO, rows: TableFormat, path: Path) -> tuple[set[str], int]:
    """Return the keys in a file, and where its last whole row ends; what is behind that is cut off."""
    done: set[str] = set()
    end = 0
    with path.open("rb") as lines:
        for number, row in enumerate(rows.split(lines), start=1):
            is_header, torn = number == 1 and bool(rows.header), not row.endswith(b"\n")
            try:
                key = rows.key(row) if not is_header else ""
                if (is_header and row != rows.header) or (torn and len(key) != _KEY_DIGITS):
                    raise ValueError("other columns")
            except (ValueError, IndexError) as error:
                if torn and (number > 1 or rows.may_begin_with(row)):
                    break
                raise LlvidError(
                    f"{path}, row {number}, is not a record of llvid: {error}",
                    "choose another file with -o, or replace it with --overwrite",
                ) from None
            end += len(row)
            if not is_header:
                done.add(key)
            if torn:  # all of it but the line end
                _write_at(file, end, b"\n")
                end += 1
                break
    try:
        file.truncate(end)
    except OSError as error:
        raise LlvidError(f"can't write {path}: {error.strerror}") from None
    return done, end


def _write_at(file: BinaryIO, at: int, content: bytes) -> None:
    file.seek(at)
    left = memoryview(content)
    while left:
        left = left[file.write(left) :]


def is_folder(path: str) -> bool:
    """Whether records go to a folder or a bucket, as its name or what is there says."""
    return is_address(path) or path.endswith("/") or os.path.isdir(path)  # noqa: PTH112


class PartFiles:
    """The parts; `done` holds the keys in them. Use it in a `with` block. Raises LlvidError.

    A folder is locked against other runs; a bucket can't be.
    """

    def __init__(self, place: str, *, overwrite: bool = False) -> None:
        self.place = place.rstrip("/")
        self._suffix = ".parquet" if posixpath.splitext(self.place)[1].lower() == ".parquet" else ".jsonl"
        self._run, self._number, self._waiting, self._written_at = uuid.uuid4().hex[:8], 0, list[Record](), 0.0
        self._rows, self._overwrite = JsonLines(), overwrite
        with _reported(self.place):
            self._system, self._path = file_system(self.place)
            self._system.create_dir(self._path, recursive=True)
            self._lock = _locked(self._path) if self._system.type_name == "local" else None
            try:
                self._old = self._parts()
                self.done = set[str]() if overwrite else {key for part in self._old for key in self._keys(part)}
            except BaseException:
                self._unlock()
                raise

    def begin(self) -> None:
        """Drop what is to be overwritten."""
        if self._overwrite:
            with _reported(self.place):
                for part in self._old:
                    self._system.delete_file(part)
        self._written_at = time.monotonic()

    def append(self, record: Record) -> None:
        """Take a record, to be written with the next part."""
        self._waiting.append(record)
        self.done.add(record.key)
        if len(self._waiting) >= _PART_RECORDS or time.monotonic() - self._written_at > _PART_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Write what waits as a part."""
        self._written_at = time.monotonic()
        if not self._waiting:
            return
        name = f"part-{self._run}-{self._number:05d}{self._suffix}"
        if self._suffix == ".parquet":
            self.put(name, lambda beside: write_parquet(self._waiting, beside))
        else:
            content = b"".join(self._rows.encode(record.values) for record in self._waiting)
            self.put(name, lambda beside: beside.write_bytes(content))
        self._number += 1
        self._waiting = []

    def put(self, name: str, write: Callable[[Path], object]) -> None:
        """Put a file there, whole or not at all."""
        with _reported(self.place), tempfile.TemporaryDirectory(prefix="llvid-") as folder:
            beside = Path(folder) / f"part{posixpath.splitext(name)[1]}"
            write(beside)
            hidden = f"{self._path}/.{name}"
            # a bucket shows a file once it is whole
            to = hidden if self._system.type_name == "local" else f"{self._path}/{name}"
            with self._system.open_output_stream(to) as stream:
                stream.write(beside.read_bytes())
            if to == hidden:
                self._system.move(hidden, f"{self._path}/{name}")

    def drop(self, name: str) -> None:
        """Take a file away, if it is there."""
        from pyarrow import fs

        with _reported(self.place):
            if self._system.get_file_info(f"{self._path}/{name}").type == fs.FileType.File:
                self._system.delete_file(f"{self._path}/{name}")

    def __enter__(self) -> PartFiles:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.flush()
        finally:
            self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)

    def _parts(self) -> list[str]:
        from pyarrow import fs

        found = self._system.get_file_info(fs.FileSelector(self._path))
        names = [each.base_name for each in found if each.type == fs.FileType.File]
        return [f"{self._path}/{name}" for name in sorted(names) if name.startswith("part-")]

    def _keys(self, part: str) -> Iterator[str]:
        with self._system.open_input_file(part) as file:
            if part.endswith(".parquet"):
                from pyarrow import parquet

                for batch in parquet.ParquetFile(file).iter_batches(columns=["key"]):
                    yield from batch.column(0).to_pylist()
            else:
                yield from map(self._rows.key, buffered(file))


def _locked(folder: str) -> int | None:
    """Return what holds the lock of a folder until it is closed; None where folders can't be opened (Windows)."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:
        return None
    try:
        lock(descriptor, f"{folder}/")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


class PartErrors:
    """The failures of a run beside its parts, in `_errors.jsonl`, which is written at the end."""

    def __init__(self, to: PartFiles) -> None:
        self.path = f"{to.place}/{_ERRORS}"
        self._to, self._left = to, dict[str, bytes]()

    def append(self, failure: Failure) -> None:
        """Take a failure."""
        self._left[str(failure.names)] = JsonLines().encode(failure.values)

    def succeeded(self, record: Record) -> None:
        """Do nothing: the failures of earlier runs are not kept, they were all tried again."""

    def close(self) -> None:
        """Write them."""
        if content := b"".join(self._left.values()):
            self._to.put(_ERRORS, lambda beside: beside.write_bytes(content))
        else:
            self._to.drop(_ERRORS)


@contextmanager
def _reported(place: str) -> Iterator[None]:
    """Turn errors of files into one line."""
    try:
        yield
    except (OSError, ValueError, IndexError) as error:
        words = getattr(error, "strerror", None) or first_line(error)
        raise LlvidError(f"{place} can't be used for records: {words}", "choose another path with -o") from None
