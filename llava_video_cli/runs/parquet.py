"""Records as a Parquet file, as trainers read them: columns `file` and `caption`, then the rest."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from ..errors import LlvidError
from ..system.atomic_file import whole_file
from .record import Record

_ROWS = 5000  # of a row group: bounds the memory


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
        for rows in _batches(records):
            writer.write_table(arrow.Table.from_pylist(rows, schema))
            count += len(rows)
    return count


def _batches(records: Iterable[Record]) -> Iterator[list[dict[str, Any]]]:
    rows = (_row(record) for record in records)
    while batch := list(islice(rows, _ROWS)):
        yield batch


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
