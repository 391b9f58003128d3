"""Whole commands of another checkout against this one's: none should have become slower.

    ../shared/tools/make_videos.sh /tmp/videos small
    git worktree add /tmp/before 62cb6f9
    python tests/benchmarks/before_after.py --before /tmp/before --videos /tmp/videos [--pairs 9]

Each pair runs a command once in each checkout, in turns which of them is first, with the demo checkpoint. The ratio is
that of a pair's seconds, after to before; its 95 % interval is of the medians of 10,000 resamples of the pairs. The
last line is one JSON document.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from folder import clips

HERE = Path(__file__).parents[2]
QUESTIONS = ("What happens?", "What shape is it?", "What color is it at the end?", "Which way does it move?") * 3


def timed(checkout: Path, arguments: list[str]) -> float:
    """Run llvid of that checkout, and return its seconds."""
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    began = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "llava_video_cli", *arguments],
        cwd=checkout,
        env=environment,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return time.perf_counter() - began


@contextmanager
def served(checkout: Path) -> Iterator[str]:
    """Run a server of that checkout with the demo checkpoint, and give its address."""
    command = [sys.executable, "-m", "llava_video_cli", "serve", "-m", "demo", "--port", "0"]
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    with subprocess.Popen(command, cwd=checkout, env=environment, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "answers at" in line)
        yield line.split("answers at ")[1].split("/v1")[0]
        process.terminate()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True)
    parser.add_argument("--videos", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--clips", type=int, default=40)
    options = parser.parse_args()
    results = {}
    with (
        tempfile.TemporaryDirectory() as name,
        served(options.before) as before_url,
        served(HERE) as after_url,
    ):
        folder = Path(name)
        films = clips(options.videos / "base.mkv", folder / "clips", 480, options.clips)
        one = str(films[0])
        out = str(folder / "out.jsonl")
        commands: dict[str, Callable[[str], list[str]]] = {
            "startup: llvid --help": lambda _: ["--help"],
            "startup: llvid ask": lambda _: ["ask", one, "What happens?", "-m", "demo"],
            "folder": lambda _: ["caption", str(films[0].parent), "-o", out, "-m", "demo"],
            "questions": lambda _: ["ask", one, *QUESTIONS, "-m", "demo", "-n", "32"],
            "remote": lambda url: ["ask", one, "What happens?", "--server", url],
        }
        for label, arguments in commands.items():
            pairs = []
            for number in range(options.pairs + 1):
                sides = [(options.before, before_url), (HERE, after_url)]
                seconds = {}
                for checkout, url in sides if number % 2 else sides[::-1]:
                    for old in folder.glob("out.*"):
                        old.unlink()
                    seconds[checkout] = timed(checkout, arguments(url))
                if number:  # the first pair fills the caches
                    pairs.append((seconds[options.before], seconds[HERE]))
            ratios = np.array([after / before for before, after in pairs])
            draws = np.random.default_rng(0).choice(ratios, (10_000, len(ratios)))
            low, high = np.percentile(np.median(draws, axis=1), (2.5, 97.5))
            results[label] = {
                "before_seconds": round(statistics.median(pair[0] for pair in pairs), 3),
                "after_seconds": round(statistics.median(pair[1] for pair in pairs), 3),
                "ratio": round(float(np.median(ratios)), 3),
                "interval": [round(float(low), 3), round(float(high), 3)],
                "load": round(os.getloadavg()[0], 1),
            }
            print(label, results[label], flush=True)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
