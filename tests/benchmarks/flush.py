"""What flushing records to the disk once a second costs a run, against never and after each record.

    python tests/benchmarks/flush.py [--records 2000] [--folder .]

Records are appended as fast as can be, which no model does. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from records import record

from llava_video_cli.runs.ledger import Ledger

_ROUNDS = 7


def seconds(folder: str, count: int, way: str) -> float:
    """Return what appending and closing takes."""
    flush = os.fsync
    with tempfile.TemporaryDirectory(dir=folder) as name:
        made = [record(f"{number}.mp4", "A red circle moves right. " * 10, number) for number in range(count)]
        began = time.perf_counter()
        if way == "never":
            os.fsync = lambda fd: None  # noqa: ARG005
        try:
            with Ledger(Path(name) / "out.jsonl") as ledger, (Path(name) / "out.jsonl").open("rb") as file:
                for each in made:
                    ledger.append(each)
                    if way == "each record":
                        os.fsync(file.fileno())
        finally:
            os.fsync = flush
        return time.perf_counter() - began


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=2000)
    parser.add_argument("--folder", default=".")
    options = parser.parse_args()
    ways = ("never", "once a second", "each record")
    taken: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(_ROUNDS):
        for way in ways:
            taken[way].append(seconds(options.folder, options.records, way))
    each = {way: round(statistics.median(times) / options.records * 1e6, 1) for way, times in taken.items()}
    print(json.dumps({"records": options.records, "microseconds_a_record": each}))


if __name__ == "__main__":
    main()
