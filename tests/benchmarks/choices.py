"""Choices over a folder, beside captions of one token: `python tests/benchmarks/choices.py`.

Makes 200 clips of the demo world (40 different ones), and runs the library's folder run over them in this process, with
the demo checkpoint: captions of one token, two choices of one token, two choices of several tokens, ten of these. The
runs alternate; of each kind the median counts, by the clock and by the processors' time. The last line is one JSON
document. Wanted: two choices at least 0.9 of the clips a second of the captions, ten at most 1.3 times two.

`--model` takes another checkpoint, such as `random:1B`; `--frames` and `--clips` set how much there is to do.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as `llvid caption` does, before torch is imported
import numpy as np

from llava_video_cli import Generation, Loading, Model, Preset, Record, load_preset, open_model
from llava_video_cli.demo.world import random_scene, write_clip
from llava_video_cli.runs.answers import run
from llava_video_cli.runs.caption import CaptionJob, Task
from llava_video_cli.runs.ledger import Ledger
from llava_video_cli.runs.record import settings_values

DISTINCT = 40
PROMPT = "Which way does it move?"
TEN = tuple(
    f"{verb} {way}." for verb in ("It moves", "The shape moves") for way in ("left", "right", "up", "down", "away")
)
KINDS = {
    "caption of one token": Generation(max_new_tokens=1),
    "two choices of one token": Generation(choices=("yes", "no")),
    "two choices": Generation(choices=TEN[:2]),
    "ten choices": Generation(choices=TEN),
}


def clips(folder: Path, count: int, side: int) -> list[Path]:
    """Write the clips, `DISTINCT` different ones, and repeat them under other names."""
    rng, paths = np.random.default_rng(0), [folder / f"clip{number:04d}.mp4" for number in range(count)]
    for number, path in enumerate(paths):
        if number < DISTINCT:
            write_clip(path, random_scene(rng, largest_side=side, longest_seconds=4.0))
        else:
            shutil.copyfile(paths[number % DISTINCT], path)
    return paths


def seconds(model: Model, preset: Preset, paths: list[Path], generation: Generation) -> tuple[float, float]:
    """Return how long a run takes by the clock, and of the processors."""
    preset = replace(preset, prompt=PROMPT, generation=generation)
    task, settings = Task(preset, allow_empty=True), settings_values(model, preset)
    jobs = [CaptionJob(str(path), task.key(path.name, path.stat()), task, settings, model.budget) for path in paths]
    clock, processors = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder, Ledger(Path(folder) / "out.jsonl") as ledger:
        for outcome in run(jobs, model):
            assert isinstance(outcome, Record), outcome
            assert bool(outcome.scores) == bool(generation.choices)
            ledger.append(outcome)
        assert len(ledger.done) == len(paths)
    return time.perf_counter() - clock, time.process_time() - processors


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--clips", type=int, default=200)
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--side", type=int, default=320, help="the longest side of a clip, in pixels")
    parser.add_argument("--runs", type=int, default=5)
    options = parser.parse_args()
    model, preset = open_model(options.model, Loading(device=options.device)), load_preset("demo")
    preset = replace(preset, sampling=replace(preset.sampling, frames=options.frames))
    taken: dict[str, list[tuple[float, float]]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory() as folder:
        paths = clips(Path(folder), options.clips, options.side)
        for generation in KINDS.values():
            seconds(model, preset, paths[:20], generation)  # whatever is done only once
        for _ in range(options.runs):
            for kind, generation in KINDS.items():
                taken[kind].append(seconds(model, preset, paths, generation))
    clock, processors = (
        {kind: statistics.median(each[place] for each in pairs) for kind, pairs in taken.items()} for place in (0, 1)
    )
    for kind in KINDS:
        rate = len(paths) / clock[kind]
        print(f"{kind:26s} {clock[kind]:7.2f} s, {rate:7.2f} clips/s, {processors[kind]:7.2f} s of the processors")
    result = {"model": options.model, "clips": len(paths), "frames": options.frames, "runs": options.runs}
    one, two, several, ten = KINDS
    for name, times in (("clock", clock), ("processors", processors)):
        result[name] = {
            "seconds": {kind: round(value, 3) for kind, value in times.items()},
            "rate_of_two_over_caption": round(times[one] / times[two], 3),
            "rate_of_two_longer_over_caption": round(times[one] / times[several], 3),
            "ten_over_two": round(times[ten] / times[several], 3),
        }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
