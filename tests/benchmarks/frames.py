"""How fast frames are read, against every other reader that gives the right ones.

    ../shared/tools/make_videos.sh /tmp/videos all
    python tests/benchmarks/frames.py --videos /tmp/videos [--cells 10min 2h] [--frames 8 32] [--runs 5]

All readers take turns within one run, with a short pause between two; medians of whole calls, from the path to the
pixels. The right frames are those
of a sequential decode; a reader that is far behind when its frames are checked against them is not called again, but
for the best of them. The last line is the same as one JSON document.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import peers
from truth import Truth

SHARED = Path(__file__).resolve().parents[3] / "shared" / "videos"
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
WARM_UP = SHARED / "bikes.mp4"
FAR_BEHIND = 2.0  # a reader that takes this many times ours when its frames are checked is measured there only
PAUSE_SECONDS = 0.05  # so that none pays for what the one before leaves to be done: torchcodec costs the next one 10 ms
WRAPPERS = ("transformers decord", "transformers opencv", "transformers torchcodec")  # timed as what they wrap


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--frames", nargs="*", type=int, default=list(COUNTS))
    parser.add_argument("--cells", nargs="*", default=[""], help="parts of the names of the files")
    parser.add_argument("--readers", nargs="*", default=[""], help="parts of the names of the readers")
    options = parser.parse_args()
    results = []
    for label, name in FILES.items():
        path = next((folder / name for folder in (options.videos, SHARED) if (folder / name).exists()), None)
        if path is None or not any(part in label for part in options.cells):
            print(f"{label}: left out")
            continue
        truth = Truth(str(path), options.frames)
        for count in options.frames:
            readers = {
                reader_name: Timed(reader)
                for reader_name, reader in peers.READERS.items()
                if reader_name == "llvid"
                or (reader_name not in WRAPPERS and any(part in reader_name for part in options.readers))
            }
            for reader in readers.values():
                reader.prepare(str(WARM_UP))
            wrong = {n: verdict for n, r in readers.items() if (verdict := truth.verdict(r, count)) != "same"}
            if "llvid" in wrong:
                raise SystemExit(f"{label}, {count} frames: our own frames are {wrong['llvid']}")
            results.append(measure(label, str(path), count, readers, wrong, options.runs))
    ratios = [cell["best_peer_over_llvid"] for cell in results if cell["best_peer_over_llvid"]]
    if ratios:
        mean = math.exp(statistics.fmean(map(math.log, ratios)))
        print(f"best other reader over llvid: geometric mean {mean:.2f}, least {min(ratios):.2f}")
    print(json.dumps(results))


class Timed:
    """A reader, and the seconds of each of its calls."""

    def __init__(self, reader: peers.Reader) -> None:
        self._reader = reader
        self.seconds: list[float] = []

    def __call__(self, path: str, count: int) -> peers.Pixels:
        """Read as the reader does."""
        start = time.perf_counter()
        try:
            return self._reader(path, count)
        finally:
            self.seconds.append(time.perf_counter() - start)

    def prepare(self, path: str) -> None:
        """Import what the reader needs."""
        with suppress(Exception):  # what it can't read is seen later
            self._reader(path, 1)


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
        for reader in running.values():
            time.sleep(PAUSE_SECONDS)
            reader(path, count)
    seconds = {name: reader.seconds for name, reader in right.items()}
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    mine = medians["llvid"]
    print(f"\n{label}, {count} frames")
    for name, median in sorted(medians.items(), key=lambda pair: pair[1]):
        print(f"  {name:34s} {median:8.3f} s  {median / mine:6.2f}  of {len(seconds[name])}")
    for name, verdict in wrong.items():
        print(f"  {name:34s} {verdict}")
    best = min((median for name, median in medians.items() if name != "llvid"), default=None)
    return {
        "cell": label,
        "frames": count,
        "seconds": {name: round(median, 4) for name, median in medians.items()},
        "wrong": wrong,
        "best_peer_over_llvid": round(best / mine, 3) if best else None,
    }


if __name__ == "__main__":
    main()
