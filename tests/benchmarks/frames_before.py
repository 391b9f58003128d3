"""Reading frames with another checkout against this one, on the files of ../shared/videos.

    git worktree add /tmp/before 711183e
    python tests/benchmarks/frames_before.py --before /tmp/before [--frames 8 32] [--runs 7]

A process for each checkout; they take turns, with a short pause before each call, so that a noisy machine is noisy for
both. The figure of a file is the median, over the turns, of the other's time divided by ours: above 1, ours is faster.
The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from truth import VIDEOS

HERE = Path(__file__).parents[2]
PAUSE_SECONDS = 0.05  # as in frames.py
READS = """
import sys, time
from llava_video_cli import Sampling, read_frames
for line in sys.stdin:
    count, path = line.rstrip("\\n").split(" ", 1)
    start = time.perf_counter()
    try:
        read_frames(path, Sampling(frames=int(count)))
        print(time.perf_counter() - start, flush=True)
    except Exception as error:
        print(type(error).__name__, flush=True)
"""


class Checkout(NamedTuple):
    """A process that reads frames with a checkout's code."""

    process: subprocess.Popen[str]

    @classmethod
    def of(cls, folder: Path) -> Checkout:
        """Start the process."""
        pipe = subprocess.PIPE
        command = [sys.executable, "-c", READS]  # which imports from where it runs
        return cls(subprocess.Popen(command, cwd=folder, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True))

    def seconds(self, path: Path, count: int) -> float | None:
        """Return what reading takes; None if it fails."""
        assert self.process.stdin is not None and self.process.stdout is not None
        time.sleep(PAUSE_SECONDS)
        self.process.stdin.write(f"{count} {path}\n")
        self.process.stdin.flush()
        said = self.process.stdout.readline().strip()
        return float(said) if said[:1].isdigit() else None


def gains(before: Checkout, after: Checkout, count: int, runs: int) -> dict[str, float]:
    """Return, by the file's name, how many times the other's time is ours."""
    found: dict[str, float] = {}
    for path in sorted(VIDEOS.iterdir()):
        if None in [each.seconds(path, count) for each in (before, after)]:
            continue
        pairs = []
        for run in range(runs):
            turn = (before, after) if run % 2 else (after, before)
            taken = {each: each.seconds(path, count) for each in turn}
            old, new = taken[before], taken[after]
            assert old is not None and new is not None
            pairs.append(old / new)
        found[path.name] = round(statistics.median(pairs), 3)
    return found


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, help="the other checkout")
    parser.add_argument("--frames", nargs="*", type=int, default=[8, 32])
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()
    before, after = Checkout.of(options.before), Checkout.of(HERE)
    document = {}
    for count in options.frames:
        found = gains(before, after, count, options.runs)
        print(f"\ntimes as fast as before, {count} frames")
        for name, gain in sorted(found.items(), key=lambda pair: pair[1]):
            print(f"  {name:34s} {gain:6.2f}")
        mean = math.exp(statistics.fmean(map(math.log, found.values())))
        print(f"  {'geometric mean':34s} {mean:6.2f}")
        document[count] = {"mean": round(mean, 3), "files": found}
    print(json.dumps(document))


if __name__ == "__main__":
    main()
