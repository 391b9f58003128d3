"""The table of a run: a file of records, and one beside it for those that a condition on their scores leaves out."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, filterfalse
from pathlib import Path
from typing import TypeAlias

from ..errors import LlvidError, UsageError, nearest
from ..validation import is_special
from .formats import check_parquet, parquet_rows, write_parquet
from .ledger import Ledger
from .record import Record

_COMPARED: dict[str, Callable[[float, float], bool]] = {
    ">=": operator.ge, "<=": operator.le, ">": operator.gt, "<": operator.lt,
}  # fmt: skip
_CONDITION = re.compile(r"\s*(.+?)\s*(>=|<=|>|<)\s*([0-9.eE+-]+)\s*")


@dataclass(frozen=True)
class Where:
    """A condition on a record's scores, such as `yes>0.8`; a record without that score does not meet it."""

    choice: str
    sign: str
    value: float

    def __call__(self, record: Record) -> bool:
        """Whether a record meets it."""
        score = record.scores.get(self.choice)
        return score is not None and _COMPARED[self.sign](score, self.value)


def parse_where(text: str, choices: Sequence[str]) -> Where:
    """Return the condition that a text stands for. Raises `UsageError`, also for what is none of the choices."""
    if match := _CONDITION.fullmatch(text):
        choice, sign, number = match.groups()
        with suppress(ValueError):
            where = Where(choice, sign, float(number))
            if choice in choices:
                return where
            hint = nearest(choice, choices) or f"the choices are {', '.join(choices)}"
            raise UsageError(f"--where: {choice!r} is not one of the choices", hint if choices else "use --choices")
    raise UsageError(f"--where must be a choice, one of {' '.join(_COMPARED)}, and a number, got {text!r}", "yes>0.8")


def rest_path(output: Path) -> Path:
    """Return where the records stand that a table does not keep: beside `x.jsonl` in `x.rest.jsonl`."""
    return output.with_name(f"{output.stem}.rest{output.suffix}")


class SplitLedger:
    """The ledgers of a table and of the records beside it, as one: a record goes to the first if it is `wanted`.

    `begin` moves those that stand in the wrong one, so that another condition sorts them again. `settle` removes the
    second file if nothing is left in it. A record that is moved is written first and dropped then: whatever ends the
    run, it stands in one of the two or in both, and the next run sorts that out.
    """

    def __init__(self, kept: Ledger, rest: Ledger, wanted: Callable[[Record], bool]) -> None:
        self._kept, self._rest, self._wanted = kept, rest, wanted

    @property
    def done(self) -> set[str]:
        """The keys of all records."""
        return self._kept.done | self._rest.done

    @property
    def replaced(self) -> int:
        """How many records of replaced videos are gone."""
        return self._kept.replaced + self._rest.replaced

    @property
    def is_pending(self) -> bool:
        """Whether a file that is to be overwritten is still the old one."""
        return self._kept.is_pending or self._rest.is_pending

    def begin(self, keep: Set[str] = frozenset()) -> None:
        """Begin to write, and move what stands in the wrong file."""
        self._kept.begin(keep)
        self._rest.begin(keep)
        for source, target, is_wrong in (
            (self._kept, self._rest, lambda record: not self._wanted(record)),
            (self._rest, self._kept, self._wanted),
        ):
            moved = set[str]()
            for record in source.records():
                if is_wrong(record):
                    moved.add(record.key)
                    if record.key not in target.done:
                        target.append(record)
            source.forget(moved)

    def append(self, record: Record) -> None:
        """Write a record to its file."""
        target, other = (self._kept, self._rest) if self._wanted(record) else (self._rest, self._kept)
        target.append(record)
        other.replace(record.request_key, record.key)

    def replace(self, request_key: str) -> None:
        """Drop the record of a request whose video was replaced since."""
        self._kept.replace(request_key)
        self._rest.replace(request_key)

    def complete(self) -> None:
        """Take note that the run has come to its end: what it overwrites may go, if there is anything new."""
        for ledger in (self._kept, self._rest):
            ledger.complete(may_be_empty=bool(self.done))

    def record_of(self, request_key: str) -> Record | None:
        """Return the record of a request, whatever its video was then."""
        return self._kept.record_of(request_key) or self._rest.record_of(request_key)

    def records(self) -> Iterator[Record]:
        """Yield all records."""
        return chain(self._kept.records(), self._rest.records())

    def settle(self) -> None:
        """Bring both files to their final state."""
        self._kept.flush()  # what was moved here is safe before it leaves the other one
        self._rest.flush()
        self._kept.settle()
        self._rest.settle()
        if not (self._rest.done or self._rest.is_pending):
            self._rest.path.unlink(missing_ok=True)


Table: TypeAlias = Ledger | SplitLedger


@contextmanager
def open_table(
    path: Path, *, overwrite: bool = False, scored: bool = False, where: Where | None = None
) -> Iterator[Table]:
    """Open a table of records, that are `scored` if they have choices.

    With `where`, it keeps only those that meet it, and the others stand in its `rest_path`. Without one, a scored table
    takes back what an earlier run left there. A Parquet file is made at the end of the JSONL beside it, which has all
    records. Raises what `Ledger` does.
    """
    if path.suffix.lower() == ".parquet":
        yield from _parquet(path, overwrite, where)
        return
    rest = rest_path(path)
    if where is None and not (scored and rest.exists()):
        with Ledger(path, overwrite=overwrite, scored=scored) as ledger:
            yield ledger
        return
    with (
        Ledger(path, overwrite=overwrite, scored=scored) as kept,
        Ledger(rest, overwrite=overwrite, scored=scored) as others,
    ):
        both = SplitLedger(kept, others, where or (lambda _: True))
        try:
            yield both
        finally:
            both.settle()


def _parquet(path: Path, overwrite: bool, where: Where | None) -> Iterator[Ledger]:
    check_parquet()
    beside, rest = path.with_name(f"{path.name}.jsonl"), rest_path(path)
    for each in (path, rest):
        if is_special(each):
            raise UsageError(f"{each} is not a regular file, so a run can't resume", "choose a file with -o")
    rows = parquet_rows(path)
    if not overwrite and (rows is None or (rows and not beside.exists())):
        words = "is not a table of llvid" if rows is None else f"has lost its records, {beside.name}"
        raise LlvidError(f"{path} {words}", "choose another file with -o, or replace it with --overwrite")
    others = parquet_rows(rest)
    if where is not None and others is None:
        raise LlvidError(f"{rest} is not a table of llvid", "choose another file with -o")
    with Ledger(beside, overwrite=overwrite) as ledger:
        try:
            yield ledger
        finally:
            is_old = ledger.settle() or where is not None or rows != len(ledger.done)
            if is_old and ledger.done and not ledger.is_pending and (not overwrite or ledger.is_complete):
                choices, wanted = ledger.choices, where or (lambda _: True)
                write_parquet(filter(wanted, ledger.records()), path, choices)
                if where is not None:
                    write_parquet(filterfalse(where, ledger.records()), rest, choices)
                if others is not None and (where is None or not parquet_rows(rest)):
                    rest.unlink(missing_ok=True)
