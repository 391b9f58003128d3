"""What a long run writes where a file would be too large: a folder or a bucket, in parts.

Each part is whole, and one is written every minute and every few thousand records: a run that is killed loses what it
has not written, which the next one makes again.
"""

from __future__ import annotations

import os
import posixpath
import re
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Set
from contextlib import contextmanager, suppress
from pathlib import Path

from ..errors import LlvidError, first_line
from ..system.files import flush_folder, lock
from .formats import JsonLines, write_parquet
from .ledger import failure_rows
from .record import Failure, Record
from .storage import buffered, file_system, is_address

_PART_RECORDS = 5000
_PART_SECONDS = 60.0
_PART = re.compile(r"part-[0-9a-f]{8}-\d{5,}\.(jsonl|parquet)")
_ERRORS = "_errors.jsonl"  # readers of folders leave names with an underscore out


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
        self._rows, self._overwrite, self.is_complete, self.replaced = JsonLines(), overwrite, False, 0
        with _reported(self.place):
            self._system, self._path = file_system(self.place)
            is_local = self._system.type_name == "local"
            self._is_new = is_local and not os.path.isdir(self._path)  # noqa: PTH112
            self._system.create_dir(self._path, recursive=True)
            self._lock = _locked(self._path) if is_local else None
            try:
                self._old = self._parts()
                self.done = set[str]() if overwrite else {key for part in self._old for key in self._keys(part)}
            except BaseException:
                self._unlock()
                raise

    def begin(self, keep: Set[str] = frozenset()) -> None:
        """Take note of the time: a part is written every minute."""
        del keep
        self._written_at = time.monotonic()

    def append(self, record: Record) -> None:
        """Take a record, to be written with the next part."""
        self._waiting.append(record)
        self.done.add(record.key)
        if len(self._waiting) >= _PART_RECORDS or time.monotonic() - self._written_at > _PART_SECONDS:
            self.flush()

    def replace(self, request_key: str) -> None:
        """Do nothing: parts stay as they were written, with the records of videos that were replaced since."""

    def complete(self) -> None:
        """Take note that the run has come to its end: what it overwrites may go."""
        self.is_complete = True

    def flush(self) -> None:
        """Write what waits as a part."""
        self._written_at = time.monotonic()
        if not self._waiting:
            return
        name = f"part-{self._run}-{self._number:05d}{self._suffix}"
        if self._suffix == ".parquet":
            choices = list(dict.fromkeys(choice for record in self._waiting for choice in record.scores))
            self.put(name, lambda beside: write_parquet(self._waiting, beside, choices))
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
                with Path(hidden).open("rb") as file:  # else a power cut may leave it empty
                    os.fsync(file.fileno())
                self._system.move(hidden, f"{self._path}/{name}")
                flush_folder(Path(self._path))

    def drop(self, name: str) -> None:
        """Take a file away, if it is there."""
        with _reported(self.place):
            if self._has(name):
                self._system.delete_file(f"{self._path}/{name}")

    def check_errors(self) -> None:
        """Raise LlvidError if the file of errors is somebody else's."""
        with _reported(self.place):
            if self._has(_ERRORS):
                with self._system.open_input_file(f"{self._path}/{_ERRORS}") as file:
                    if failure_rows(buffered(file)) is None:
                        raise ValueError(f"{_ERRORS} in it was not written by llvid")

    def _has(self, name: str) -> bool:
        from pyarrow import fs

        return bool(self._system.get_file_info(f"{self._path}/{name}").type == fs.FileType.File)

    def __enter__(self) -> PartFiles:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.flush()
            if self._overwrite and self.is_complete and self._number:
                with _reported(self.place):
                    for part in self._old:
                        self._system.delete_file(part)
        finally:
            if self._is_new:
                with suppress(OSError):  # it isn't empty
                    Path(self._path).rmdir()
            self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)

    def _parts(self) -> list[str]:
        from pyarrow import fs

        found = self._system.get_file_info(fs.FileSelector(self._path))
        names = sorted(each.base_name for each in found if each.type == fs.FileType.File)
        tables = [name for name in names if name.endswith((".jsonl", ".parquet")) and name[0] not in "._"]
        if foreign := [name for name in tables if not _PART.fullmatch(name)]:
            raise ValueError(f"{foreign[0]} in it was not written by llvid")
        return [f"{self._path}/{name}" for name in tables]

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
        to.check_errors()

    def begin(self) -> None:
        """Do nothing: the file is written at the end."""

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
