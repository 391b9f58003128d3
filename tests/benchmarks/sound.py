"""Decoding the sound of a long film against FFmpeg, and the memory that it takes.

    python tests/benchmarks/sound.py /tmp/two_hours.mp4

Each run is a process of its own, alternating: `ffmpeg -vn` to 16 kHz mono, and `iter_sound`. Seconds by the clock and
of the processors (user and system), medians; `iter_sound` without the import of its libraries, which is shown apart.
Wanted: at most 1.2. The peak of memory is shown for the whole file and for its first minute. The last line is one JSON
document. A film to measure with:

    ffmpeg -f lavfi -i testsrc2=s=320x180:r=24:d=7200 -f lavfi -i anoisesrc=d=7200:c=pink:r=48000 \
        -ac 2 -c:v libx264 -preset ultrafast -c:a aac /tmp/two_hours.mp4
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time

RUNS = 5


def processor_seconds(who: int) -> float:
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime


def ffmpeg(path: str) -> dict[str, float]:
    began, before = time.perf_counter(), processor_seconds(resource.RUSAGE_CHILDREN)
    command = ["ffmpeg", "-nostdin", "-v", "quiet", "-y", "-i", path, "-vn", "-ac", "1", "-ar", "16000"]
    subprocess.run([*command, "-f", "s16le", os.devnull], check=True)
    processor = processor_seconds(resource.RUSAGE_CHILDREN) - before
    return {"seconds": time.perf_counter() - began, "processor_seconds": processor}


def ours(path: str, end_seconds: float | None = None) -> dict[str, float]:
    """Decode in a process of its own."""
    command = [sys.executable, __file__, "--decode", path, *([] if end_seconds is None else [str(end_seconds)])]
    return dict(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def decode(path: str, end_seconds: float | None) -> None:
    began = time.perf_counter()
    from llava_video_cli.video.sound import RATE, iter_sound

    importing, before = time.perf_counter() - began, processor_seconds(resource.RUSAGE_SELF)
    began = time.perf_counter()
    samples = sum(len(chunk.samples) for chunk in iter_sound(path, end_seconds=end_seconds))
    values = {
        "seconds": time.perf_counter() - began,
        "processor_seconds": processor_seconds(resource.RUSAGE_SELF) - before,
        "import_seconds": importing,
        "sound_seconds": samples / RATE,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(values))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("path")
    parser.add_argument("end", nargs="?", type=float)
    parser.add_argument("--decode", action="store_true")
    parser.add_argument("--runs", type=int, default=RUNS)
    given = parser.parse_args()
    if given.decode:
        decode(given.path, given.end)
        return
    load = os.getloadavg()[0]
    pairs = [(ffmpeg(given.path), ours(given.path)) for _ in range(given.runs)]
    result: dict[str, object] = {"load_before": load, "load_after": os.getloadavg()[0], "runs": given.runs}
    for name in ("seconds", "processor_seconds"):
        theirs, own = (statistics.median(pair[side][name] for pair in pairs) for side in (0, 1))
        ratio = statistics.median(pair[1][name] / pair[0][name] for pair in pairs)
        print(f"{name}: ffmpeg {theirs:.2f}, iter_sound {own:.2f}, ratio {ratio:.2f} (median of the pairs)")
        result[name] = {"ffmpeg": theirs, "iter_sound": own, "ratio": ratio}
    result["peak_mib"] = {"whole": pairs[-1][1]["peak_mib"], "first_minute": ours(given.path, 60.0)["peak_mib"]}
    result["import_seconds"] = statistics.median(pair[1]["import_seconds"] for pair in pairs)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
