"""How fast frames are read, against every other reader that gives the right ones.

    ../shared/tools/make_videos.sh /tmp/videos all
    python tests/benchmarks/frames.py --videos /tmp/videos [--cells 10min 2h] [--runs 5]

All readers take turns within one run; medians of whole calls, from the path to the pixels; a reader that is far behind
in the first round sits out the others. The right frames are those of a sequential decode. The last line is the same as
one JSON document.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
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
FAR_BEHIND = 2.0  # a reader that takes this many times ours in the first round is measured in that one only
WRAPPERS = ("transformers decord", "transformers opencv", "transformers torchcodec")  # timed as what they wrap


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, required=True)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--cells", nargs="*", default=[""], help="parts of the names of the files")
    parser.add_argument("--readers", nargs="*", default=[""], help="parts of the names of the readers")
    options = parser.parse_args()
    results = []
    for label, name in FILES.items():
        path = next((folder / name for folder in (options.videos, SHARED) if (folder / name).exists()), None)
        if path is None or not any(part in label for part in options.cells):
            print(f"{label}: left out")
            continue
        readers = {
            reader_name: reader
            for reader_name, reader in peers.READERS.items()
            if reader_name == "llvid"
            or (reader_name not in WRAPPERS and any(part in reader_name for part in options.readers))
        }
        truth = Truth(str(path), COUNTS)
        for count in COUNTS:
            wrong = {n: verdict for n, r in readers.items() if (verdict := truth.verdict(r, count)) != "same"}
            if "llvid" in wrong:
                raise SystemExit(f"{label}, {count} frames: our own frames are {wrong['llvid']}")
            results.append(measure(label, str(path), count, readers, wrong, options.runs))
    ratios = [cell["best_peer_over_llvid"] for cell in results if cell["best_peer_over_llvid"]]
    if ratios:
        mean = math.exp(statistics.fmean(map(math.log, ratios)))
        print(f"best other reader over llvid: geometric mean {mean:.2f}, least {min(ratios):.2f}")
    print(json.dumps(results))


def measure(
    label: str, path: str, count: int, readers: dict[str, peers.Reader], wrong: dict[str, str], runs: int
) -> dict[str, Any]:
    """Let the readers take turns; print the table of one cell."""
    seconds: dict[str, list[float]] = {name: [] for name in readers if name not in wrong}
    for _ in range(runs):
        for name, taken in seconds.items():
            if taken and taken[0] > FAR_BEHIND * seconds["llvid"][0]:
                continue
            start = time.perf_counter()
            readers[name](path, count)
            taken.append(time.perf_counter() - start)
    medians = {name: statistics.median(taken) for name, taken in seconds.items()}
    mine = medians["llvid"]
    print(f"\n{label}, {count} frames")
    for name, median in sorted(medians.items(), key=lambda pair: pair[1]):
        print(f"  {name:34s} {median:8.3f} s  {median / mine:6.2f}  of {len(seconds[name])}")
    for name, verdict in wrong.items():
        print(f"  {name:34s} {verdict}")
    others = [median for name, median in medians.items() if name != "llvid"]
    return {
        "cell": label,
        "frames": count,
        "seconds": {name: round(median, 4) for name, median in medians.items()},
        "wrong": wrong,
        "best_peer_over_llvid": round(min(others) / mine, 3) if others else None,
    }


if __name__ == "__main__":
    main()
