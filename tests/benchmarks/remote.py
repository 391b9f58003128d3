"""What a warm server saves: `llvid ask --server` against `llvid ask`, as whole processes.

    python tests/benchmarks/remote.py [--runs 15]

The demo checkpoint, its clip and a 720p clip of noise that moves; interleaved, medians; the last line is JSON.
The answers are compared first, and that neither torch nor transformers is imported.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

QUESTION, WANTED = "Describe the video.", 0.25
HEAVY = "torch transformers torchvision tokenizers"
WATCHED = f"""
import sys
from llava_video_cli.cli.app import run
code = run(sys.argv[1:])
sys.exit(code or bool(set({HEAVY!r}.split()) & set(sys.modules)))
"""


def seconds(command: list[str]) -> tuple[float, str]:
    """Return a command's wall time and what it printed."""
    started = time.perf_counter()
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    elapsed = time.perf_counter() - started
    if result.returncode:
        raise SystemExit(f"{command} failed:\n{result.stderr}")
    return elapsed, result.stdout


@contextmanager
def server() -> Iterator[str]:
    """Give the address of a server with the demo checkpoint."""
    command = [sys.executable, "-m", "llava_video_cli", "serve", "-m", "demo", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        words = process.stderr.readline().split()  # "demo answers at URL/v1; ..."
        yield next(word for word in words if word.startswith("http")).rstrip(";")
    finally:
        process.terminate()
        process.wait()


def write_noise(path: str) -> None:
    """Write four seconds of 720p that compress badly."""
    import av
    import numpy as np

    random = np.random.default_rng(0)
    noise = random.integers(0, 256, (90, 160, 3), np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
        for shift in range(100):
            picture = av.VideoFrame.from_ndarray(np.roll(noise, 5 * shift, axis=1), format="rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode(None))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    from llava_video_cli.cli.demo import scene
    from llava_video_cli.demo.world import write_clip

    os.environ["HF_HUB_OFFLINE"] = "1"
    llvid = [sys.executable, "-m", "llava_video_cli"]
    ratios, medians = {}, {}
    with tempfile.TemporaryDirectory() as folder, server() as url:
        clips = {"demo clip": f"{folder}/demo.mp4", "720p": f"{folder}/720p.mp4"}
        write_clip(Path(clips["demo clip"]), scene())
        write_noise(clips["720p"])
        for name, clip in clips.items():
            question = ["ask", clip, QUESTION, "-m", "demo", "-n", "8"]
            commands = {"llvid ask": [*llvid, *question], "--server": [*llvid, *question, "--server", url]}
            said = {way: seconds(command)[1] for way, command in commands.items()}
            watched = seconds([sys.executable, "-c", WATCHED, *question, "--server", url])[1]
            if len({*said.values(), watched}) > 1:
                raise SystemExit(f"not the same answer: {said}, {watched!r}")
            times: dict[str, list[float]] = {way: [] for way in commands}
            for _ in range(runs):
                for way, command in commands.items():
                    times[way].append(seconds(command)[0])
            for way, values in times.items():
                medians[f"{name}, {way}"] = median = statistics.median(values)
                print(f"{name:<10} {way:<10} {median:6.3f} s  (of {runs}; {min(values):.3f} to {max(values):.3f})")
            ratios[name] = medians[f"{name}, --server"] / medians[f"{name}, llvid ask"]
            print(f"{name:<10} ratio      {ratios[name]:.3f} (at most {WANTED})")
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    print(json.dumps({"ratios": ratios, "seconds": medians, "machine": machine}))


if __name__ == "__main__":
    main()
