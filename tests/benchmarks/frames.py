"""How fast frames are read, against every other reader that gives the right ones.

    ../shared/tools/make_videos.sh /tmp/videos all
    python tests/benchmarks/frames.py --videos /tmp/videos [--cells 10min 2h] [--frames 8 32] [--runs 5]
    python tests/benchmarks/frames.py --real [--cells sample] [--readers "torchcodec exact" decord] [--runs 15]

With --real, the files are those of ../shared/videos. Each reader has a process of its own, so that none pays for what
another leaves in memory, and they take turns in random order, with a short pause between two; medians of whole calls,
from the path to the pixels. The right frames are those of a sequential decode, by number or by time; a reader that is
far behind when its frames are checked against them is not called again, but for the best of them. The last line is the
same as one JSON document.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import random
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import av
import peers
from truth import VIDEOS, Truth

FILES = {
    "10s 720p": "h264_720p_10s.mp4",
    "60s 1080p, key every 60": "h264_1080p_60s_gop60.mp4",
    "60s 1080p, key every 250": "h264_1080p_60s_gop250.mp4",
    "20s hevc": "hevc_720p_20s.mp4",
    "20s vp9": "vp9_720p_20s.webm",
    "6min av1": "long_180p_av1.mp4",
    "10min 1080p": "h264_1080p_10min.mp4",
    "2h 480p": "h264_480p_2h.mp4",
}
COUNTS = (8, 32)
WARM_UP = VIDEOS / "bikes.mp4"
FAR_BEHIND = 2.0  # a reader that takes this many times ours when its frames are checked is measured there only
PAUSE_SECONDS = 0.05  # so that what one leaves to be done is done before the next begins
RIGHT = ("same", "same by time")
FLOORS = ("PyAV alone", "PyAV alone, threads")  # no readers that one could use: they know the frames beforehand
WRAPPERS = ("transformers decord", "transformers opencv", "transformers torchcodec")  # timed as what they wrap


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--videos", type=Path)
    source.add_argument("--real", action="store_true", help="the files of ../shared/videos")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--frames", nargs="*", type=int, default=list(COUNTS))
    parser.add_argument("--cells", nargs="*", default=[""], help="parts of the names of the files")
    parser.add_argument("--readers", nargs="*", default=[""], help="parts of the names of the readers")
    options = parser.parse_args()
    results = []
    readers = {
        name: Timed(name)
        for name in peers.READERS
        if name == "llvid" or (name not in WRAPPERS and any(part in name for part in options.readers))
    }
    files = {path.name: path.name for path in sorted(VIDEOS.iterdir())} if options.real else FILES
    for label, name in files.items():
        path = next((folder / name for folder in (options.videos or VIDEOS, VIDEOS) if (folder / name).exists()), None)
        if path is None or not any(part in label for part in options.cells):
            print(f"{label}: left out")
            continue
        try:
            truth = Truth(str(path), options.frames)
        except (av.error.FFmpegError, AssertionError):
            print(f"{label}: no video")
            continue
        for count in options.frames:
            for reader in readers.values():
                reader.seconds.clear()
            wrong = {n: verdict for n, r in readers.items() if (verdict := truth.verdict(r, count)) not in RIGHT}
            if "llvid" in wrong:
                print(f"{label}, {count} frames: left out, our own frames are {wrong['llvid']}")
                continue
            results.append(measure(label, str(path), count, readers, wrong, options.runs))
    for count in options.frames:
        cells = [cell for cell in results if cell["frames"] == count and cell["best_peer_over_llvid"]]
        if not cells:
            continue
        ratios = {cell["cell"]: cell["best_peer_over_llvid"] for cell in cells}
        print(f"\nbest other reader whose frames are right over llvid, {count} frames")
        for cell, ratio in sorted(ratios.items(), key=lambda pair: pair[1]):
            print(f"  {cell:34s} {ratio:6.2f}")
        print(f"  {'geometric mean':34s} {math.exp(statistics.fmean(map(math.log, ratios.values()))):6.2f}")
    print(json.dumps(results))


class Timed:
    """A reader in a process of its own, and the seconds of each of its calls."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._process = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        self.seconds: list[float] = []
        with suppress(Exception):  # what it can't read is seen later
            self(str(WARM_UP), 1)  # imports what the reader needs

    def __call__(self, path: str, count: int) -> peers.Pixels:
        """Read as the reader does."""
        pixels, seconds = self._process.submit(timed, self._name, path, count).result()
        self.seconds.append(seconds)
        return pixels

    def time(self, path: str, count: int) -> None:
        """Let the reader read, and leave the frames there."""
        self.seconds.append(self._process.submit(timed, self._name, path, count, is_kept=False).result()[1])


def timed(name: str, path: str, count: int, *, is_kept: bool = True) -> tuple[peers.Pixels, float]:
    """Return what a reader gives, or nothing of it, and the seconds that it took."""
    start = time.perf_counter()
    pixels = peers.READERS[name](path, count)
    seconds = time.perf_counter() - start
    return pixels if is_kept else pixels[:0], seconds


def measure(
    label: str, path: str, count: int, readers: dict[str, Timed], wrong: dict[str, str], runs: int
) -> dict[str, Any]:
    """Let the readers take turns; print the table of one cell."""
    right = {name: reader for name, reader in readers.items() if name not in wrong}
    others = [reader.seconds[0] for name, reader in right.items() if name != "llvid"]
    limit = max(FAR_BEHIND * right["llvid"].seconds[0], min(others, default=0.0))
    running = {name: reader for name, reader in right.items() if reader.seconds[0] <= limit}
    for reader in running.values():
        reader.seconds.clear()
    for _ in range(runs):
        for reader in random.sample(list(running.values()), len(running)):
            time.sleep(PAUSE_SECONDS)
            reader.time(path, count)
    seconds = {name: reader.seconds for name, reader in right.items()}
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    mine = medians["llvid"]
    print(f"\n{label}, {count} frames")
    for name, median in sorted(medians.items(), key=lambda pair: pair[1]):
        print(f"  {name:34s} {median:8.3f} s  {median / mine:6.2f}  of {len(seconds[name])}")
    for name, verdict in wrong.items():
        print(f"  {name:34s} {verdict}")
    best = min((median for name, median in medians.items() if name not in ("llvid", *FLOORS)), default=None)
    return {
        "cell": label,
        "frames": count,
        "seconds": {name: round(median, 4) for name, median in medians.items()},
        "wrong": wrong,
        "best_peer_over_llvid": round(best / mine, 3) if best else None,
    }


if __name__ == "__main__":
    main()
