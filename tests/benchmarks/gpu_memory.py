"""What a large model takes of a GPU: peaks, what `auto` picks where memory is short, loading what is stored in 4 bits.

    python tests/benchmarks/gpu_memory.py                              # on a GPU: 7B with random weights
    python tests/benchmarks/gpu_memory.py --size tiny --runs 1         # does it work? Without a GPU, its CPU part

`peak` is the most that torch had allocated while 8 frames were answered in 4 bits, loading included (wanted for the 7B:
under 6 GB), `answering` that while answering alone. `auto` occupies all memory but so many GB, then opens the model as
a user would: what was picked, whether it answered, and how much it took of what was free. `stored` is the time from a
folder to a model, quantized while loading over stored in 4 bits, in processes of their own that take turns, the files
in the page cache (wanted: 2.5). The last line is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from precision_size import MAKE

from llava_video_cli.errors import LlvidError

FREE_GB = (40, 24, 16, 12, 10, 8, 6)
LOAD = """
import sys, time, torch
from llava_video_cli import Loading
from llava_video_cli.inference.loader import load
from pathlib import Path
loading = Loading(quantize="4bit")
load(Path(sys.argv[2]), loading)
began = time.perf_counter()
load(Path(sys.argv[1]), loading)
if torch.cuda.is_available():
    torch.cuda.synchronize()
print(time.perf_counter() - began)
"""
PEAK = "import sys; sys.path.insert(0, sys.argv[1]); import gpu_memory; gpu_memory.answer(*sys.argv[2:])"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="7B")
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    import torch

    results: dict[str, Any] = {"size": options.size}
    has_gpu = torch.cuda.is_available()
    results["device"] = torch.cuda.get_device_name() if has_gpu else "cpu"
    results["4bit"] = asked(options.size, "4bit", 0)
    results["auto"] = {f"{free} GB free": asked(options.size, "auto", free) for free in FREE_GB if has_gpu}
    with tempfile.TemporaryDirectory() as name:
        subprocess.run([sys.executable, "-c", MAKE, name, options.size], check=True)
        seconds: dict[str, list[float]] = {"bfloat16": [], "4bit": []}
        for _ in range(options.runs):
            for kind, taken in seconds.items():
                folders = [str(Path(name) / size / kind) for size in (options.size, "tiny")]
                done = subprocess.run(
                    [sys.executable, "-c", LOAD, *folders], check=True, capture_output=True, text=True
                )
                taken.append(float(done.stdout.split()[-1]))
    medians = {kind: statistics.median(taken) for kind, taken in seconds.items()}
    ratio = medians["bfloat16"] / medians["4bit"]
    results["stored"] = {"seconds": seconds, "ratio": round(ratio, 2)}
    print(json.dumps(results))


def asked(size: str, quantize: str, free_gb: int) -> dict[str, Any]:
    """Ask in a process of its own; return what it says."""
    command = [sys.executable, "-c", PEAK, str(Path(__file__).parent), size, quantize, str(free_gb)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"failed": (done.stderr.strip().splitlines() or ["no reason"])[-1]}
    told: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(size, quantize, free_gb or "all", told, file=sys.stderr)
    return told


def answer(size: str, quantize: Any, free_gb: str) -> None:
    """Answer 8 frames with all but so many GB occupied (0: none), and print what it took."""
    import numpy as np
    import torch

    from llava_video_cli import Frames, Generation, Loading, Request, Sampling, Turn, VideoInfo, join, open_model

    has_gpu = torch.cuda.is_available()
    ballast = None
    if has_gpu and int(free_gb):
        free, _ = torch.cuda.mem_get_info()
        ballast = torch.empty(max(0, free - int(free_gb) * 10**9), dtype=torch.uint8, device="cuda")
    occupied = torch.cuda.memory_allocated() if has_gpu else 0
    images = np.random.default_rng(0).integers(0, 255, (8, 336, 336, 3), dtype=np.uint8)
    info = VideoInfo("noise", 8.0, 336, 336, 1.0, "none", 0)
    frames = Frames(images, tuple(map(float, range(8))), info, Sampling(frames=8))
    try:
        model = open_model(f"random:{size}", Loading(quantize=quantize, frames=8))
        loading = torch.cuda.max_memory_allocated() - occupied if has_gpu else 0
        told = join(model.stream(Request((Turn("user", "What?", (frames,)),), Generation(max_new_tokens=64))))
    except LlvidError as error:
        print(json.dumps({"refused": str(error), "hint": error.hint}))
        return
    answering = told.usage.peak_memory_bytes - occupied
    print(
        json.dumps(
            {
                "quantize": model.settings["quantize"],
                "dtype": model.settings["dtype"],
                "note": list(model.notes),
                "tokens": told.usage.generated_tokens,
                "peak_gb": round(max(loading, answering) / 1e9, 2),
                "answering_gb": round(answering / 1e9, 2),
            }
        )
    )
    del ballast


if __name__ == "__main__":
    main()
