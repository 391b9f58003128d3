"""A folder of damaged copies of small videos through `llvid caption`: each is captioned or has a reason.

    python tests/benchmarks/mutated_folder.py [--files 1000] [--seed 0]

The last line is one JSON document: how many came to what, the slowest second, memory, handles and threads left over.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from mutate import mutated, peak_memory, seeds

from llava_video_cli import load_preset, open_model
from llava_video_cli.runs.answers import run
from llava_video_cli.runs.caption import CaptionJob, Task
from llava_video_cli.runs.record import Failure, settings_values
from llava_video_cli.video.limits import Limits


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    model, preset = open_model("demo"), load_preset("demo")
    task, settings = Task(preset), settings_values(model, preset)
    outcomes: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        originals = seeds(folder)
        paths = []
        for number in range(options.files):
            draw = random.Random(f"{options.seed}/{number}")
            paths.append(folder / f"damaged{number:04d}.bin")
            paths[-1].write_bytes(mutated(draw.choice(originals).read_bytes(), draw))
        jobs = [CaptionJob(str(path), task.key(path.name, path.stat()), task, settings, model.budget) for path in paths]
        handles, slowest, last = _handles(), 0.0, time.monotonic()
        for outcome in run(jobs, model, limits=Limits(seconds=20.0, pixels=4096 * 2304, bytes=2**28)):
            slowest, last = max(slowest, time.monotonic() - last), time.monotonic()
            if isinstance(outcome, Failure):
                words = str(outcome.cause).split(": ", 1)[1]
                outcomes[re.sub(r"[\d.,]+", "N", words.split("(")[0]).strip()] += 1
            else:
                outcomes["captioned"] += 1
    assert outcomes.total() == options.files
    result = {
        "files": options.files, "outcomes": dict(outcomes.most_common()), "longest_pause_seconds": round(slowest, 2),
        "peak_memory_mib": round(peak_memory() / 2**20), "handles_before_and_after": [handles, _handles()],
        "threads": [thread.name for thread in threading.enumerate()],
    }  # fmt: skip
    print(json.dumps(result))


def _handles() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


if __name__ == "__main__":
    main()
