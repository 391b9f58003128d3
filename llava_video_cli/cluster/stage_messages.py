"""What the stages of a run on a cluster pass to each other: tables of pickled values."""

from __future__ import annotations

import pickle
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import LlvidError
from ..model import Model
from ..runs.caption import Task
from ..runs.prefetch import JobRequest, Result
from ..video import Resize
from ..video.limits import Limits

COLUMN = "row"


@dataclass(frozen=True)
class StageContext:
    """What every worker of a run is given.

    `run_id` tells runs apart that share a worker. Relative paths are relative to `working_folder`, where the run was
    started; keys use paths as seen from `output_folder`. `attempts` is the Ray actor that holds the `AttemptLog`,
    `done` a Ray reference to the packed keys of finished videos.
    """

    run_id: str
    task: Task
    working_folder: str
    output_folder: str
    limits: Limits
    open_model: Callable[[], Model]
    open_resize: Callable[[], Resize]
    attempts: Any
    done: Any
    batch_size: int | None


@dataclass(frozen=True)
class InputVideo:
    """A video of the input, with the key of its record; one that can't be found has an error and no key."""

    path: str
    key: str
    error: LlvidError | None = None


@dataclass(frozen=True)
class VideoQuestion:
    """A question about a video.

    The last question of a video has the `count` of all of them, and the error that ended the reading, if any. A video
    without questions has one such message, with a count of 0 and no `question`.
    """

    video: InputVideo
    number: int = 0
    question: JobRequest | None = None
    count: int | None = None
    error: LlvidError | None = None


@dataclass(frozen=True)
class VideoAnswer:
    """A `VideoQuestion` with its result. The question has lost its frames."""

    video: InputVideo
    question: JobRequest | None = None
    result: Result | None = None
    count: int | None = None
    error: LlvidError | None = None
    settings: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class FatalError:
    """An error that ends the run."""

    error: LlvidError


def table(values: Iterable[Any]) -> Any:
    """Return values as a table."""
    import pyarrow as arrow

    return arrow.table({COLUMN: arrow.array([pickle.dumps(value, 5) for value in values], arrow.large_binary())})


def values_of(rows: Any) -> list[Any]:
    """Return the values of a table that another process of the same run made."""
    return [pickle.loads(row.as_buffer()) for row in rows.column(COLUMN)]


def pack(keys: Iterable[str]) -> bytes:
    """Return keys as 16 bytes each, sorted."""
    return b"".join(sorted(map(bytes.fromhex, keys)))


class PackedKeys:
    """A set of packed keys, searched by bisection."""

    def __init__(self, content: memoryview) -> None:
        self._content = content

    def __contains__(self, key: str) -> bool:
        packed, count = bytes.fromhex(key), len(self._content) // 16
        index = bisect_left(range(count), packed, key=self._key)
        return index < count and self._key(index) == packed

    def _key(self, index: int) -> bytes:
        return bytes(self._content[16 * index : 16 * index + 16])
