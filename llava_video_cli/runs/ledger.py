"""The output file of a long run, which is its own ledger: a record is one append, and what stands there is done."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from ..errors import LlvidError, UsageError
from ..system.files import lock, whole_file
from .formats import JsonLines, TableFormat, table_format
from .record import Failure, Record

_KEY_DIGITS = 32


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
        self._write(row if self._end else self.rows.header + row)
        self.done.add(record.key)

    def records(self) -> Iterator[Record]:
        """Yield what stands in the file."""
        with self.path.open("rb") as file:
            for row in self.rows.split(file):
                if row != self.rows.header:
                    yield Record(self.rows.decode(row))

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def _write(self, content: bytes) -> None:
        try:
            _write_at(self._file, self._end, content)
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(self._end)
            raise LlvidError(
                f"can't write {self.path}: {error.strerror}", "all that was written before is whole; run again to go on"
            ) from None
        self._end += len(content)


class Errors:
    """The failures beside an output file, in `NAME.errors.jsonl`: those of this run, and earlier ones not tried again.

    Use it in a `with` block: its end leaves none that has gone well since, and no file if there are none.
    """

    def __init__(self, output: Path, *, overwrite: bool = False) -> None:
        self.path = errors_path(output)
        self._rows = JsonLines()
        self._left = {} if overwrite else self._load()

    @property
    def count(self) -> int:
        """How many there are."""
        return len(self._left)

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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(LlvidError):  # what went wrong before is what the user should read
            self.close()

    def _load(self) -> dict[str, bytes]:
        found: dict[str, bytes] = {}
        with suppress(FileNotFoundError), self.path.open("rb") as file:
            for row in file:
                with suppress(ValueError):  # a torn line
                    found[_name(self._rows.decode(row))] = row.rstrip(b"\n") + b"\n"
        return found


def errors_path(output: Path) -> Path:
    """Return where the failures of a run go."""
    return output.with_name(f"{output.stem}.errors.jsonl")


def _name(values: Mapping[str, Any]) -> str:
    """Return what tells a video, or a request of a file of requests, from others."""
    return str(values.get("id") if "id" in values else values.get("video_path"))


def _open(path: Path) -> BinaryIO:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise LlvidError(f"can't write {path}: {error.strerror}", "name another place with -o") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise UsageError(f"{path} is not a regular file, which a run can go on with", "name a file with -o")
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
                raise _foreign(path, number, str(error)) from None
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


def _foreign(path: Path, number: int, why: str) -> LlvidError:
    return LlvidError(
        f"{path}, row {number}, is not a record of llvid's: {why}", "name another file with -o, or --overwrite it"
    )
