"""What it costs to find the shots of a video, beside PySceneDetect's own run on the same file, and whether cuts differ.

    ../shared/tools/make_videos.sh /tmp/videos all
    python tests/benchmarks/scene_cuts.py --videos /tmp/videos/h264_1080p_10min.mp4 /tmp/videos/h264_480p_2h.mp4

Whole processes that alternate, `--rounds` of each: the time, the processor time, and the peak memory. The cuts that
only one of the two finds come with the time of each. `--profile` shows where our time goes instead. The last line is
one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

TOLERANCE_SECONDS = 0.05
OURS = """
import json, sys
from llava_video_cli import Sampling
from llava_video_cli.video import inspect
windows = inspect(sys.argv[1]).windows("scene", Sampling(scene_detector=sys.argv[2]))
print(json.dumps([window.start_seconds for window in windows]))
"""
THEIRS = """
import json, sys
import scenedetect
detector = scenedetect.AdaptiveDetector() if sys.argv[2] == "adaptive" else scenedetect.ContentDetector()
scenes = scenedetect.detect(sys.argv[1], detector, start_in_scene=True)
print(json.dumps([start.seconds for start, _ in scenes]))
"""
PROFILE = """
import cProfile, pstats, sys
profile = cProfile.Profile()
code = compile(sys.argv.pop(1), "ours", "exec")
profile.runcall(exec, code, {})
pstats.Stats(profile).sort_stats("tottime").print_stats(15)
"""


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--videos", type=Path, nargs="+", required=True)
    parser.add_argument("--detector", choices=["adaptive", "content"], default="adaptive")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", action="store_true")
    options = parser.parse_args()
    if options.profile:
        for video in options.videos:
            subprocess.run([sys.executable, "-c", PROFILE, OURS, str(video), options.detector], check=True)
        return
    found = {}
    for video in options.videos:
        runs: dict[str, list[dict[str, Any]]] = {"llvid": [], "scenedetect": []}
        for _ in range(options.rounds):
            for name, code in (("llvid", OURS), ("scenedetect", THEIRS)):
                runs[name].append(measured(code, video, options.detector))
        row: dict[str, Any] = {}
        for name, results in runs.items():
            values = {key: median(each[key] for each in results) for key in ("seconds", "cpu_seconds", "peak_mib")}
            row[name] = {**values, "shots": len(results[0]["cuts"])}
        row["ratio"] = round(row["llvid"]["seconds"] / row["scenedetect"]["seconds"], 2)
        row["cpu_ratio"] = round(row["llvid"]["cpu_seconds"] / row["scenedetect"]["cpu_seconds"], 2)
        ours, theirs = runs["llvid"][0]["cuts"], runs["scenedetect"][0]["cuts"]
        row["only_llvid"], row["only_scenedetect"] = without(ours, theirs), without(theirs, ours)
        found[video.name] = row
        print(video.name, json.dumps(row), flush=True)
    print(json.dumps(found))


def measured(code: str, video: Path, detector: str) -> dict[str, Any]:
    """Run the code in a process of its own."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", code, str(video), detector], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = status
    assert status == 0, f"{video} failed"
    return {
        "seconds": round(time.perf_counter() - start, 2),
        "cpu_seconds": round(usage.ru_utime + usage.ru_stime, 2),
        "peak_mib": round(usage.ru_maxrss / 1024),
        "cuts": json.loads(output.splitlines()[-1]),
    }


def without(cuts: list[float], others: list[float]) -> list[float]:
    """Return the cuts that have no other one near."""
    return [cut for cut in cuts if all(abs(cut - other) > TOLERANCE_SECONDS for other in others)]


if __name__ == "__main__":
    main()
