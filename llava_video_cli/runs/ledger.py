"""What a long run writes: a file, which is its own ledger, and the failures beside it.

What stands there is done; a record is one append.
"""

from __future__ import annotations

import os
import re
import stat
import zlib
from collections.abc import Iterable, Iterator, Mapping, Set
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path
from shutil import copymode
from threading import Timer
from types import TracebackType
from typing import Any, BinaryIO

from ..errors import LlvidError, UsageError
from ..system.files import flush_folder, lock, whole_file
from ..validation import bounded_lines, is_special
from .formats import JsonLines, table_format
from .record import Failure, Record

_KEY = re.compile("[0-9a-f]{32}")
_TABLES = (".csv", ".parquet")
_FAILURE_KEYS = {"id", "video", "video_path", "error", "hint"}
_FLUSH_SECONDS = 1.0  # that a power cut may cost


class Ledger:
    """An open output file, locked against other runs; use it in a `with` block.

    `done` holds the keys of the records that stand in it. Of a last row that was torn off, by SIGKILL or a power cut,
    nothing is left once the next record is written. Records are flushed to the disk within a second. A record takes the
    place of the one that was made of the same request before its video was replaced; `replaced` counts those.

    With `overwrite`, records go to a hidden file beside, which takes the place of the old one at the end of a run that
    is `complete`. Until then the old one stays, and the next such run goes on. An exception leaves no new empty file.
    A table that is `scored` has a column for scores.

    Raises LlvidError for a file that another run is writing, that is not one of ours, or can't be written.
    """

    def __init__(self, path: Path, *, overwrite: bool = False, scored: bool = False) -> None:
        self.path, self.rows, self.replaced = path, table_format(path, scored=scored, overwrite=overwrite), 0
        self.is_complete = self._may_be_empty = False
        self._target = self._place = Path(os.path.realpath(path))  # a symbolic link stays
        self._dropped = set[str]()
        self._timer: Timer | None = None
        self._flush_error: OSError | None = None
        self._has_changed, was_there = False, self._target.exists()
        with ExitStack() as opened:
            self._file = opened.enter_context(_open(self._target))
            if not was_there:
                opened.push(lambda kind, *_: _remove_empty(self._target) if kind else None)
            if overwrite and self._file.seek(0, os.SEEK_END):
                name = f".llvid-{zlib.crc32(os.fsencode(path.name)):08x}.new{path.suffix}"
                self._place = self._target.with_name(name)
                self._file = opened.enter_context(_open(self._place))
                opened.callback(_remove_empty, self._place)
            self.done = set[str]()
            self._requests = dict[str, tuple[str, int]]()  # of each, the record's key, and where its row begins
            self._end, self._tail = self._read()
            self._status = os.fstat(self._file.fileno())
            self._opened = opened.pop_all()

    @property
    def is_pending(self) -> bool:
        """Whether the file that is to be overwritten is still the old one."""
        return self._place != self._target

    def complete(self, *, may_be_empty: bool = False) -> None:
        """Take note that the run has come to its end: what it overwrites may go, for at least a record if not empty."""
        self.is_complete, self._may_be_empty = True, may_be_empty

    def begin(self, keep: Set[str] = frozenset()) -> None:
        """Cut off a torn row; until then a run that fails early leaves everything as it was.

        Of an earlier run that was to overwrite the file and didn't come to its end, the records of these keys stay.
        """
        if self.is_pending:
            self.forget(self.done - keep)
            if not self.done:
                self._end, self._dropped, self._requests = 0, set(), {}
        self._file.truncate(self._end)

    def append(self, record: Record) -> None:
        """Write a record. Raises LlvidError when it can't be written; what was there before stays as it was."""
        row = self.rows.encode(record.values)
        content = self._tail + row if self._end else self.rows.header + row
        self._check_place()
        try:
            if self._flush_error is not None:
                raise self._flush_error
            self._file.truncate(self._end)
            self._file.seek(self._end)
            left = memoryview(content)
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(self._end)
            raise self._unwritten(error) from None
        self.replace(record.request_key, record.key)
        self._end, self._tail, self._has_changed = self._end + len(content), b"", True
        if record.request_key:
            self._requests[record.request_key] = record.key, self._end - len(row)
        if self._timer is None:
            self._timer = Timer(_FLUSH_SECONDS, self._flush)
            self._timer.daemon = True
            self._timer.start()
        self.done.add(record.key)

    def replace(self, request_key: str, key: str = "") -> None:
        """Drop the record of a request if its key is another one: its video was replaced since."""
        old, _ = self._requests.pop(request_key, (key, 0))
        if old != key:
            self._dropped.add(old)
            self.done.discard(old)
            self.replaced += 1

    def record_of(self, request_key: str) -> Record | None:
        """Return the record of a request, whatever its video was then."""
        if request_key not in self._requests:
            return None
        with self._place.open("rb") as file:
            file.seek(self._requests[request_key][1])
            return Record(self.rows.decode(next(self.rows.split(file))))

    def forget(self, keys: Set[str]) -> None:
        """Drop records; they leave the file at the end of the run."""
        self._dropped |= keys
        self.done -= keys
        self._requests = {request: row for request, row in self._requests.items() if row[0] not in keys}

    @property
    def choices(self) -> list[str]:
        """The choices that its records have scores of."""
        scored = (self.rows.decode(row).get("scores") or {} for row in self._rows() if b'"scores": ' in row)
        return list(dict.fromkeys(choice for scores in scored for choice in scores))

    def records(self) -> Iterator[Record]:
        """Yield what stands in the file."""
        for row in self._rows():
            if row != self.rows.header:
                yield Record(self.rows.decode(row))

    def flush(self) -> None:
        """Bring what was appended to the disk now. Raises LlvidError if that fails, or has failed before."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer.join()
            self._flush()
        if self._flush_error is not None:
            raise self._unwritten(self._flush_error)

    def settle(self) -> bool:
        """Put the new file in the place of the old one, without dropped records; return whether anything changed."""
        self.flush()
        if self.done or self._dropped:  # else it may have been removed because it is empty
            self._check_place()
        is_whole = self.is_complete and (self.done or self._may_be_empty)
        if is_whole if self.is_pending else self._dropped:
            with whole_file(self._target) as beside, beside.open("wb") as file:
                for row in self._rows():
                    file.write(row if row.endswith(b"\n") else row + b"\n")
                file.flush()
                os.fsync(file.fileno())
                copymode(self._target, beside)
            if self.is_pending:
                self._place.unlink()
            self._place, self._end, self._has_changed = self._target, self._target.stat().st_size, True
            self._dropped, self._status = set(), self._target.stat()
            flush_folder(self._target.parent)
        return self._has_changed

    def __enter__(self) -> Ledger:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and not self._has_changed:  # else this was done before the first record
                self._file.truncate(self._end)
                self._file.seek(self._end)
                self._file.write(self._tail)
                self._end += len(self._tail)
            with suppress(LlvidError) if kind else nullcontext():  # what went wrong before is what counts
                self.settle()
        finally:
            self._opened.__exit__(kind, error, trace)

    def _rows(self) -> Iterator[bytes]:
        """Yield the whole rows, without those that were dropped."""
        end = 0
        with self._place.open("rb") as file:
            for row in self.rows.split(file):
                end += len(row)
                if end > self._end:
                    return
                if not self._dropped or row == self.rows.header or self.rows.key(row) not in self._dropped:
                    yield row

    def _read(self) -> tuple[int, bytes]:
        """Learn the keys; return where the last whole row ends, and what it lacks: its line end, if anything."""
        end, tail = 0, b""
        with self._place.open("rb") as lines:
            for number, row in enumerate(self.rows.split(lines), start=1):
                is_header, torn = number == 1 and bool(self.rows.header), not row.endswith(b"\n")
                try:
                    key = self.rows.key(row) if not is_header else ""
                    if row != self.rows.header if is_header else not _KEY.fullmatch(key):
                        raise ValueError("other columns" if is_header else "its key is none")
                except (ValueError, IndexError) as error:
                    if self.is_pending or (torn and (number > 1 or self.rows.may_begin_with(row))):
                        break
                    raise LlvidError(
                        f"{self.path}, row {number}, is not a record of llvid: {error}",
                        "choose another file with -o, or replace it with --overwrite",
                    ) from None
                if not is_header:
                    self.done.add(key)
                    self._requests[self.rows.request_key(row)] = key, end
                end += len(row)
                tail = b"\n" if torn else b""
        self._requests.pop("", None)  # of records of version 0.1
        return end, tail

    def _check_place(self) -> None:
        """Raise LlvidError if the file was removed or replaced since it was opened: what is written there is lost."""
        try:
            is_there = os.path.samestat(self._status, self._place.stat())
        except OSError:
            is_there = False
        if not is_there:
            problem = "was removed or replaced during the run, so the records of this run are lost"
            raise LlvidError(f"{self._place if self.is_pending else self.path} {problem}", "run the same command again")

    def _unwritten(self, error: OSError) -> LlvidError:
        hint = "earlier records are complete; run the same command to continue"
        return LlvidError(f"can't write {self.path}: {error.strerror}", hint)

    def _flush(self) -> None:
        self._timer = None
        try:
            os.fsync(self._file.fileno())
            flush_folder(self._place.parent)
        except OSError as error:
            self._flush_error = error


class Errors:
    """The failures beside an output file, at its `errors_path`: those of this run, and earlier ones not tried again.

    Use it in a `with` block: its end leaves none that has gone well since, and no file if there are none. The file is
    locked. Raises LlvidError.
    """

    def __init__(self, output: Path, *, overwrite: bool = False) -> None:
        self.path = errors_path(output)
        left = _failures(self.path)
        if left is None:
            raise LlvidError(
                f"{self.path} was not written by llvid, and failures would go there", "choose another path with -o"
            )
        # version 0.1 wrote those of x.csv to x.errors.jsonl
        may_be_old = not left and output.suffix.lower() in _TABLES and not output.with_suffix(".jsonl").exists()
        has_rows = may_be_old and output.exists() and output.stat().st_size
        self._old = output.with_name(f"{output.stem}.errors.jsonl") if has_rows else None
        self._left = left or (self._old and _failures(self._old)) or {}
        self._overwrite, self._has_changed = overwrite, False
        self._file: BinaryIO | None = None
        self._end = 0  # of the last whole row
        if self.path.exists():
            self._open()

    def begin(self, done: Iterable[Record] = ()) -> None:
        """Forget what is to be overwritten; until then a run that fails early leaves it as it was.

        Forget what is `done`, too: a run that was killed leaves the failures of what it has made since.
        """
        if self._overwrite and self._left:
            self._left, self._has_changed = {}, True
        for record in done if self._left else ():
            self.succeeded(record)

    def append(self, failure: Failure) -> None:
        """Write a failure; an older one of the same video is forgotten."""
        row = JsonLines().encode(failure.values)
        self._left[_name(failure.names)], self._has_changed = row, True
        file = self._open()
        try:
            file.truncate(self._end)  # a torn row, which the next run would take for somebody else's
            file.seek(self._end)
            left = memoryview(row)
            while left:
                left = left[file.write(left) :]
            self._end += len(row)
        except OSError as error:
            raise LlvidError(f"can't write {self.path}: {error.strerror}") from None

    def succeeded(self, record: Record) -> None:
        """Forget an older failure."""
        self._has_changed |= self._left.pop(_name(record.values), None) is not None

    def close(self) -> None:
        """Write those that are left."""
        try:
            if self._has_changed:
                self._has_changed = False
                if self._left:
                    with whole_file(self.path) as beside:
                        beside.write_bytes(b"".join(self._left.values()))
                else:
                    self.path.unlink(missing_ok=True)
                if self._old is not None and _failures(self._old):
                    self._old.unlink()
        finally:
            if self._file is not None:
                self._file.close()
                self._file = None

    def __enter__(self) -> Errors:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with suppress(LlvidError) if kind else nullcontext():  # what went wrong before is what the user should read
            self.close()

    def _open(self) -> BinaryIO:
        if self._file is None:
            self._file = _open(self.path)
            self._end = self._file.read().rfind(b"\n") + 1
        return self._file


def errors_path(output: Path) -> Path:
    """Return where the failures of an output go, of which each has a file of its own.

    Those of `x.jsonl` go to `x.errors.jsonl`, or, where that is a file of somebody else's, to `x.jsonl.errors.jsonl`;
    those of `x.csv` go to `x.csv.errors.jsonl`.
    """
    short, whole = (output.with_name(f"{name}.errors.jsonl") for name in (output.stem, output.name))
    return whole if output.suffix.lower() in _TABLES or _failures(short) is None else short


def _failures(path: Path) -> dict[str, bytes] | None:
    """Return the rows of a file of errors by what they are about; None if it is not one of ours."""
    try:
        if is_special(path):
            return None
        if not path.exists():
            return {}
        with path.open("rb") as file:
            return failure_rows(bounded_lines(file))
    except (OSError, LlvidError):
        return None


def failure_rows(rows: Iterable[bytes]) -> dict[str, bytes] | None:
    """Return rows of failures by what they are about; None if some are none. A torn last one is left out."""
    found: dict[str, bytes] = {}
    for row in rows:
        try:
            values = JsonLines().decode(row)
            name = values.get("video_path", values.get("video"))
            is_named = all(isinstance(each, str) for each in (name if isinstance(name, list) else [name]))
            if not is_named or not isinstance(values.get("error"), str) or set(values) - _FAILURE_KEYS:
                return None
        except ValueError:
            if row.endswith(b"\n") or not JsonLines().may_begin_with(row):
                return None
            continue
        found[_name(values)] = row.rstrip(b"\n") + b"\n"
    return found


def _name(values: Mapping[str, Any]) -> str:
    """Return what tells a video, or a request of a file of requests, from others: the ids 1 and "1" are two."""
    return repr(values["id"] if "id" in values else values.get("video_path"))


def _open(path: Path) -> BinaryIO:
    """Return a file, locked, to read and write it; it is made if necessary."""
    irregular = UsageError(f"{path} is not a regular file, so a run can't resume", "choose a file with -o")
    if is_special(path):
        raise irregular
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise LlvidError(f"can't write {path}: {error.strerror}", "choose another path with -o") from None
    file = os.fdopen(descriptor, "rb+", buffering=0)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise irregular
        lock(descriptor, str(path))
        if not path.exists() or not os.path.samestat(os.fstat(descriptor), path.stat()):  # one that has just ended
            raise LlvidError(f"another run is writing {path}", "run the command again")
    except BaseException:
        file.close()
        raise
    return file


def _remove_empty(path: Path) -> None:
    with suppress(OSError):
        if not path.stat().st_size:
            path.unlink()
