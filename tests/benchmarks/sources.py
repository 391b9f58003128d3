"""What `llvid ask -` costs beside `llvid ask FILE`, and how long 32 of 1,000 pictures take to read.

    python tests/benchmarks/sources.py [--megabytes 100] [--rounds 7] [--folder /tmp/sources]

The film is H.264 with its header at its end; both ways take turns, and the ratio is that of their medians. The last
line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import Any

import av
import numpy as np
from PIL import Image

from llava_video_cli import Sampling, read_frames
from llava_video_cli.video.files import pictures_of

PICTURES, FRAMES, RATE = 1000, 32, 24
BIT_RATE = 8_000_000


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, default=Path("/tmp/sources"))
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    found = {
        "load": round(os.getloadavg()[0], 1),
        **stdin(film(options.folder / f"{options.megabytes}.mp4", options.megabytes * 10**6), options.rounds),
        **pictures(options.folder / "pictures", options.rounds),
    }
    print(json.dumps(found))


def film(path: Path, size: int) -> Path:
    """Write a film of so many bytes."""
    if path.exists():
        return path
    rng = np.random.default_rng(1)
    noise = [rng.integers(0, 40, (720, 1280, 3), np.uint8) for _ in range(8)]
    ramp = np.linspace(0, 200, 1280, dtype=np.uint8)
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=RATE, options={"preset": "ultrafast", "nal-hrd": "cbr"})
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 1280, 720, "yuv420p", BIT_RATE
        stream.codec_context.options |= {"minrate": "8M", "maxrate": "8M", "bufsize": "8M"}
        written = number = 0
        while written < size:
            image = np.roll(ramp, 5 * number)[None, :, None] + noise[number % len(noise)]
            frame = av.VideoFrame.from_ndarray(image.astype(np.uint8), format="rgb24")
            frame.pts, frame.time_base, number = number, Fraction(1, RATE), number + 1
            for packet in stream.encode(frame):
                written += packet.size
                container.mux(packet)
        container.mux(stream.encode(None))
    return path


def stdin(path: Path, rounds: int) -> dict[str, Any]:
    """Return the median seconds of both ways, by the clock and of a processor, and how they relate."""
    clock: dict[str, list[float]] = {"file": [], "pipe": []}
    processor: dict[str, list[float]] = {"file": [], "pipe": []}
    for _ in range(rounds):
        for way in clock:
            medium = str(path) if way == "file" else "-"
            command = [sys.executable, "-m", "llava_video_cli", "ask", medium, "What is it?", "-m", "demo", "-q"]
            start = time.perf_counter()
            source = subprocess.Popen(["cat", str(path)], stdout=subprocess.PIPE) if way == "pipe" else None
            process = subprocess.Popen(command, stdin=source.stdout if source else None, stdout=subprocess.DEVNULL)
            _, status, usage = os.wait4(process.pid, 0)
            assert status == 0
            clock[way].append(time.perf_counter() - start)
            processor[way].append(usage.ru_utime + usage.ru_stime)
            if source is not None:
                source.communicate()
    found: dict[str, Any] = {"bytes": path.stat().st_size}
    for name, seconds in (("seconds", clock), ("cpu_seconds", processor)):
        file, pipe = median(seconds["file"]), median(seconds["pipe"])
        found[name] = {"file": round(file, 2), "pipe": round(pipe, 2), "ratio": round(pipe / file, 3)}
    return found


def pictures(folder: Path, rounds: int) -> dict[str, Any]:
    """Return the milliseconds to list the pictures, and to read some of them, of a list of just those, too."""
    if not folder.exists():
        folder.mkdir()
        rng = np.random.default_rng(1)
        for number in range(PICTURES):
            small = Image.fromarray(rng.integers(0, 255, (90, 160, 3), np.uint8))
            small.resize((1280, 720)).save(folder / f"frame_{number}.jpg", quality=90)
    chosen = pictures_of(str(folder))[0][:: PICTURES // FRAMES][:FRAMES]
    ways: dict[str, Callable[[], object]] = {
        "list_ms": lambda: pictures_of(str(folder)),
        "read_32_of_1000_ms": lambda: read_frames(folder, Sampling(FRAMES)),
        "read_those_32_ms": lambda: read_frames(chosen, Sampling(FRAMES)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            seconds[name].append(time.perf_counter() - start)
    return {name: round(1000 * median(each), 1) for name, each in seconds.items()}


if __name__ == "__main__":
    main()
