"""A caption run on a Ray cluster, with the same records as on one machine.

Connect with `Cluster.connected`, open the output with `open_output`, and iterate over `caption_on_cluster`.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..runs.caption import Task
from ..runs.formats import TABLES, check_parquet
from ..runs.ledger import Errors, Ledger, PartErrors, PartFiles, is_folder, open_table
from ..runs.record import Failure, Record
from ..runs.storage import is_address
from .pipeline import run
from .session import ClusterSession


@dataclass(frozen=True)
class ClusterOutput:
    """Where outcomes are written; None where nothing is. Keys use paths as seen from `folder`."""

    records: Ledger | PartFiles | None
    failures: Errors | PartErrors | None
    folder: str

    @property
    def done(self) -> set[str]:
        """The keys of the records that it holds."""
        return self.records.done if self.records is not None else set()


@contextmanager
def open_output(to: str | None, *, overwrite: bool = False) -> Iterator[ClusterOutput]:
    """Open the output of a run: a file, a folder of parts, or a bucket; with None, nothing is written.

    Raises UsageError for a file of another kind, and LlvidError for one that can't be written.
    """
    if to is None:
        yield ClusterOutput(None, None, os.getcwd())  # noqa: PTH109 - as a run on one machine sees it
    elif is_folder(to):
        check_parquet()
        with PartFiles(to, overwrite=overwrite) as parts:
            yield ClusterOutput(parts, PartErrors(parts), "/" if is_address(to) else _absolute(to))
    elif Path(to).suffix.lower() not in TABLES:
        raise UsageError(
            f"{to} must end in {', '.join(TABLES)}, or be a folder/ or an address such as s3://bucket/name"
        )
    else:
        with open_table(Path(to), overwrite=overwrite) as ledger:
            yield ClusterOutput(ledger, Errors(Path(to), overwrite=overwrite), _absolute(Path(to).parent))


def _absolute(path: str | Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100 - links in a path stay


def caption_on_cluster(
    paths: Iterable[str], task: Task, session: ClusterSession, output: ClusterOutput, **options: Any
) -> Generator[Record | Failure, None, None]:
    """Caption the videos that are not done yet, and yield each outcome once it is written.

    The other arguments are those of `pipeline.run`. Raises LlvidError for what ends the run: a model that can't be
    loaded, a cluster that is lost, a full disk, a prompt that no video's frames would fit.
    """
    if output.records is not None:
        output.records.begin()
    try:
        for outcome in run(paths, task, session, done=output.done, output_folder=output.folder, **options):
            if isinstance(outcome, Record):
                if output.records is not None:
                    output.records.append(outcome)
                if output.failures is not None:
                    output.failures.succeeded(outcome)
            elif task.is_fatal(outcome.cause):
                raise outcome.cause
            elif output.failures is not None:
                output.failures.append(outcome)
            yield outcome
    finally:
        if output.failures is not None:
            output.failures.close()
