"""A folder captioned with SIGKILL at random moments, resumed each time, against an undisturbed run.

    python tests/benchmarks/kill.py [--clips 300] [--kills 10] [--seed 0] [--form jsonl|csv]

Every clip has to stand in the end file once, and the records, their times aside, have to be the same bytes. The last
line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from terminal import scene

from llava_video_cli.demo.world import write_clip
from llava_video_cli.runs.formats import table_format


def make(folder: Path, count: int) -> None:
    """Write clips of which many differ."""
    folder.mkdir()
    for number in range(count):
        changes: dict[str, Any] = {"shape": ("circle", "square", "triangle")[number % 3], "y": 0.3 + number % 40 / 100}
        write_clip(folder / f"{number:04d}.mp4", scene(**changes))


def command(folder: Path, out: Path) -> list[str]:
    """What a user would type."""
    return [sys.executable, "-m", "llava_video_cli", "caption", str(folder), "-m", "demo", "-o", str(out), "-q"]


def records(path: Path) -> list[str]:
    """The records, sorted, without what a clock says; each in the bytes that the file has."""
    rows, found = table_format(path), []
    with path.open("rb") as file:
        for row in rows.split(file):
            if row != rows.header:
                values = rows.decode(row)
                assert rows.encode(values) == row, "each row is what we write"
                for name in ("first_token_seconds", "total_seconds", "peak_memory_bytes"):
                    del values["usage"][name]
                found.append(json.dumps(values))
    return sorted(found)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=300)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--form", choices=["jsonl", "csv"], default="jsonl")
    options = parser.parse_args()
    draw = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "clips"
        make(folder, options.clips)
        undisturbed, killed = Path(name) / f"undisturbed.{options.form}", Path(name) / f"killed.{options.form}"
        start = time.monotonic()
        subprocess.run(command(folder, undisturbed), check=True)
        whole = time.monotonic() - start
        kills, sizes = 0, []
        while kills < options.kills:
            process = subprocess.Popen(command(folder, killed))
            began = killed.stat().st_size if killed.exists() else 0
            # a moment while it loads, or some time after it has begun to write
            if draw.random() < 0.8:
                while process.poll() is None and (killed.stat().st_size if killed.exists() else 0) == began:
                    time.sleep(0.002)
            time.sleep(draw.random() * whole / options.kills)
            if process.poll() is None:
                kills += 1
            process.kill()
            process.wait()
            sizes.append(killed.stat().st_size if killed.exists() else 0)
            if sizes[-1] >= undisturbed.stat().st_size:
                killed.unlink()
        subprocess.run(command(folder, killed), check=True)
        mine, theirs = records(killed), records(undisturbed)
        assert len(theirs) == options.clips and mine == theirs
    print(json.dumps({"clips": options.clips, "kills": kills, "bytes_after_each": sizes, "the_same": True}))


if __name__ == "__main__":
    main()
