"""How soon a cold `llvid caption` over a folder writes its first caption: another checkout against this one.

    ../shared/tools/make_videos.sh /tmp/videos small
    git worktree add /tmp/before 62cb6f9
    python tests/benchmarks/first_caption.py --videos /tmp/videos --before /tmp/before --model random:1B

Whole processes, from their start until the first record stands in the output file, then they are killed; the two
checkouts alternate. The clips are those of folder.py. The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from folder import clips

HERE = Path(__file__).parents[2]


def seconds_to_first(checkout: Path, folder: Path, options: list[str]) -> float:
    """Return the seconds until a run of a checkout has written its first record."""
    with tempfile.TemporaryDirectory() as place:
        output = Path(place) / "out.jsonl"
        command = [sys.executable, "-m", "llava_video_cli", "caption", str(folder), "-o", str(output), "-q", *options]
        began = time.perf_counter()
        process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(checkout), "HF_HUB_OFFLINE": "1"})
        try:
            while not (output.exists() and output.stat().st_size):
                if process.poll() is not None:
                    raise SystemExit(f"{command} ended without a record")
                time.sleep(0.005)
            return time.perf_counter() - began
        finally:
            process.kill()
            process.wait()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, required=True)
    parser.add_argument("--before", type=Path, required=True)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--runs", type=int, default=9)
    asked = parser.parse_args()
    folder = asked.videos / f"clips{asked.height}"
    clips(asked.videos / "base.mkv", folder, asked.height, asked.clips)
    options = ["-m", asked.model, "--frames", "8", "--max-new-tokens", "8"]
    checkouts = {"before": asked.before, "now": HERE}
    times: dict[str, list[float]] = {name: [] for name in checkouts}
    for run in range(asked.runs):
        for name in list(checkouts)[:: 1 if run % 2 else -1]:
            times[name].append(seconds_to_first(checkouts[name], folder, options))
    sooner = [before - now for before, now in zip(times["before"], times["now"], strict=True)]
    medians = {name: round(statistics.median(each), 3) for name, each in times.items()}
    for name, each in times.items():
        print(f"{name:6s} {medians[name]:7.3f} s ({min(each):.3f} to {max(each):.3f})")
    result = {"model": asked.model, "clips": asked.clips, "seconds": medians}
    print(json.dumps({**result, "sooner_seconds": round(statistics.median(sooner), 3)}))


if __name__ == "__main__":
    main()
