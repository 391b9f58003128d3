"""What the workers of a run on a cluster know, and what one stage hands to the next: tables of pickled values."""

from __future__ import annotations

import pickle
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import LlvidError
from ..model import Model
from ..runs.caption import Task
from ..runs.prefetch import Question, Result
from ..video import Resize
from ..video.limits import Limits

COLUMN = "row"


@dataclass(frozen=True)
class Work:
    """What all workers of a run know; `name` tells runs apart that share a worker.

    `folder` is the one that the run was started in, `home` that of its output. `done` refers to the packed keys of what
    needn't be done. `book` is the actor with the Book.
    """

    name: str
    task: Task
    folder: str
    home: str
    limits: Limits
    open_model: Callable[[], Model]
    open_resize: Callable[[], Resize]
    book: Any
    done: Any
    batch_size: int | None


@dataclass(frozen=True)
class Entry:
    """A video to do, with the key of its record; one that can't be found has an error instead."""

    path: str
    key: str
    error: LlvidError | None = None


@dataclass(frozen=True)
class Read:
    """A question about a video, and, with the last one, how many there are and the error that ended the reading."""

    entry: Entry
    number: int = 0
    question: Question | None = None
    count: int | None = None
    error: LlvidError | None = None


@dataclass(frozen=True)
class Said:
    """The same with what came of it."""

    entry: Entry
    question: Question | None = None
    result: Result | None = None
    count: int | None = None
    error: LlvidError | None = None
    settings: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Fatal:
    """What makes going on useless."""

    error: LlvidError


def table(values: Iterable[Any]) -> Any:
    """Return values as a table."""
    import pyarrow as arrow

    return arrow.table({COLUMN: arrow.array([pickle.dumps(value, 5) for value in values], arrow.large_binary())})


def values_of(rows: Any) -> list[Any]:
    """Return the values of a table, which came from another process of the same run."""
    return [pickle.loads(row.as_buffer()) for row in rows.column(COLUMN)]


def pack(keys: Iterable[str]) -> bytes:
    """Return keys in 16 bytes each, sorted."""
    return b"".join(sorted(map(bytes.fromhex, keys)))


class Packed:
    """Packed keys, looked up by bisection."""

    def __init__(self, content: memoryview) -> None:
        self._content = content

    def __len__(self) -> int:
        return len(self._content) // 16

    def __getitem__(self, index: int) -> bytes:
        return bytes(self._content[16 * index : 16 * index + 16])

    def __contains__(self, key: str) -> bool:
        wanted = bytes.fromhex(key)
        at = bisect_left(self, wanted)
        return at < len(self) and self[at] == wanted
