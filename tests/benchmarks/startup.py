"""What starting costs: `llvid --help` against importing Typer and Rich, `llvid ask` against a bare script.

    python tests/benchmarks/startup.py [--runs 15]

Whole processes, interleaved, medians; the last line is JSON. The bare script imports the same two classes of
transformers, loads the same checkpoint, runs the same prompt on the same frames (stored before), and generates
the same tokens.
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
from pathlib import Path

import numpy as np

BARE = """
import sys
import numpy as np
import torch
from transformers import LlavaNextVideoForConditionalGeneration, LlavaNextVideoProcessor
folder, stored, question, tokens = sys.argv[1:]
model = LlavaNextVideoForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
processor = LlavaNextVideoProcessor.from_pretrained(folder)
turn = {"role": "user", "content": [{"type": "video"}, {"type": "text", "text": question}]}
prompt = processor.apply_chat_template([turn], add_generation_prompt=True)
inputs = processor(text=prompt, videos=[np.load(stored)], return_tensors="pt")
output = model.generate(**inputs, max_new_tokens=int(tokens), do_sample=False)
print(processor.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True).strip())
"""
QUESTION, TOKENS = "Describe the video.", "48"


def seconds(command: list[str]) -> tuple[float, str]:
    """Return a command's wall time and what it printed."""
    started = time.perf_counter()
    result = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ | {"HF_HUB_OFFLINE": "1"}
    )
    elapsed = time.perf_counter() - started
    if result.returncode:
        raise SystemExit(f"{command} failed:\n{result.stderr}")
    return elapsed, result.stdout


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=15)
    runs = parser.parse_args().runs
    from llava_video_cli import Sampling, read_frames
    from llava_video_cli.cli.demo import scene
    from llava_video_cli.demo import CHECKPOINT
    from llava_video_cli.demo.world import write_clip

    llvid = str(Path(sys.executable).with_name("llvid"))
    with tempfile.TemporaryDirectory() as folder:
        clip, stored = f"{folder}/clip.mp4", f"{folder}/frames.npy"
        write_clip(clip, scene())
        np.save(stored, read_frames(clip, Sampling(frames=8)).images)
        commands = {
            "import typer, rich.console": [sys.executable, "-c", "import typer, rich.console"],
            "llvid --help": [llvid, "--help"],
            "bare script": [sys.executable, "-c", BARE, str(CHECKPOINT), stored, QUESTION, TOKENS],
            "llvid ask": [llvid, "ask", clip, QUESTION, "-m", "demo", "-n", "8", "--max-new-tokens", TOKENS],
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        said: dict[str, str] = {}
        for name, command in commands.items():  # once for the disk cache
            said[name] = seconds(command)[1]
        if said["bare script"] != said["llvid ask"]:
            raise SystemExit(f"not the same answer: {said['bare script']!r} and {said['llvid ask']!r}")
        for _ in range(runs):
            for name, command in commands.items():
                times[name].append(seconds(command)[0])
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, median in medians.items():
        print(f"{name:<28} {median:6.3f} s  (of {runs}; {min(times[name]):.3f} to {max(times[name]):.3f})")
    help_ratio = medians["llvid --help"] / medians["import typer, rich.console"]
    ask_ratio = medians["llvid ask"] / medians["bare script"]
    print(f"llvid --help over its imports: {help_ratio:.2f} (at most 2)")
    print(f"llvid ask over the bare script: {ask_ratio:.2f} (at most 1.15)")
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    print(json.dumps({"help_ratio": help_ratio, "ask_ratio": ask_ratio, "seconds": medians, "machine": machine}))


if __name__ == "__main__":
    main()
