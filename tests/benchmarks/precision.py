"""How often an answer changes with the size of its batch, by precision: float32 never should.

    python tests/benchmarks/precision.py [--clips 200]

Greedy answers of up to 32 tokens about random clips of the demo's world, by the demo checkpoint (trained, sure of its
words) and by a random one in the layout of the 7B (unsure: the worst case), one by one and in batches of 8 and 32. The
last line is one JSON document: the share of answers that differ from those one by one.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import numpy as np
from checkpoints import make_checkpoint
from scenes import moving_square

from llava_video_cli import Frames, Generation, Loading, Request, Sampling, Turn, open_model, read_frames
from llava_video_cli.demo import CHECKPOINT
from llava_video_cli.demo.world import random_scene, write_clip
from llava_video_cli.model import DType

BATCHES = (8, 32)
DTYPES: tuple[DType, ...] = ("float32", "bfloat16")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=200)
    options = parser.parse_args()
    draw, results = np.random.default_rng(1), dict[str, dict[str, float]]()
    with tempfile.TemporaryDirectory() as name:
        clips = []
        for _ in range(options.clips):
            write_clip(Path(name) / "clip.mp4", random_scene(draw, largest_side=240, longest_seconds=2.0))
            clips.append(read_frames(Path(name) / "clip.mp4", Sampling(frames=8)))
        squares = [moving_square(2, seed=number) for number in range(options.clips)]
        layouts = {"demo": (CHECKPOINT, clips), "random": (make_checkpoint(Path(name) / "r", "vicuna"), squares)}
        for layout, (folder, media) in layouts.items():
            for dtype in DTYPES:
                results[f"{layout} {dtype}"] = shares(folder, dtype, media)
    print(json.dumps(results))


def shares(folder: Path, dtype: DType, media: list[Frames]) -> dict[str, float]:
    """The share of answers that differ from those one by one, for each size of batch."""
    model = open_model(str(folder), Loading(dtype=dtype, prefix_reuse=False))
    words = ("Describe the video.", "What happens in this video?", "Which way does it move?")
    asked = [
        Request((Turn("user", words[number % 3], (medium,)),), Generation(max_new_tokens=32))
        for number, medium in enumerate(media)
    ]
    alone = [model.answer_all([request])[0].text for request in asked]
    found = {}
    for size in BATCHES:
        parts = [model.answer_all(asked[start : start + size]) for start in range(0, len(asked), size)]
        together = [answer.text for part in parts for answer in part]
        found[str(size)] = sum(a != b for a, b in zip(alone, together, strict=True)) / len(asked)
    return found


if __name__ == "__main__":
    main()
