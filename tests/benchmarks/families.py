"""Other families: `llvid ask` against the bare documented script, and ten questions on one video against ten prompts.

    python tests/benchmarks/families.py [--runs 5] [FAMILY...]

Tiny checkpoints with random weights. Whole processes, alternating, of the same frames, with the same number of new
tokens. The questions are asked in one process, alternating too, with and without reuse of what earlier prompts have
computed, after a prompt of each kind has warmed both up. Of all, seconds by the clock and seconds of the processors:
only the latter mean something on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from family_checkpoints import TINY, make_family

from llava_video_cli import Generation, Loading, Request, Sampling, Turn, join, open_model, read_frames
from llava_video_cli.checkpoint.families import FAMILIES
from llava_video_cli.cli.demo import scene
from llava_video_cli.demo.world import write_clip

FRAMES, NEW_TOKENS, QUESTIONS = 8, 8, 10
SCRIPT = """
import sys, torch
from transformers import AutoModelForImageTextToText, AutoProcessor
import av
folder, clip, frames, tokens = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
with av.open(clip) as container:
    stream = container.streams.video[0]
    shown = [(frame.time, frame.to_ndarray(format="rgb24")) for frame in container.decode(stream)]
    seconds = float(stream.duration * stream.time_base)
chosen = [shown[index * len(shown) // frames] for index in range(frames)]
processor = AutoProcessor.from_pretrained(folder)
model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "What happens?"}]}]
text = processor.tokenizer.apply_chat_template(
    messages, chat_template=processor.chat_template, add_generation_prompt=True, tokenize=False
)
times = [round(1000 * time) for time, _ in chosen]
metadata = {"fps": 1000, "frames_indices": times, "total_num_frames": round(1000 * seconds), "duration": seconds}
import numpy
inputs = processor(
    text=[text], videos=[numpy.stack([image for _, image in chosen])], video_metadata=[metadata],
    do_sample_frames=False, return_tensors="pt",
)
output = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
print(processor.tokenizer.decode(output[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True).strip())
"""


Seconds = tuple[float, float]  # by the clock, and of the processors


def whole(command: list[str]) -> tuple[Seconds, str]:
    """Return the seconds of a whole process and its children, and what it wrote."""
    began, used = time.perf_counter(), children_seconds()
    done = subprocess.run(command, check=True, capture_output=True, env={**os.environ, "HF_HUB_OFFLINE": "1"})
    seconds = time.perf_counter() - began, children_seconds() - used
    return seconds, done.stdout.decode("utf-8", "replace").strip()


def children_seconds() -> float:
    """Return the seconds of the processors that children took which have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def medians(seconds: dict[str, list[Seconds]]) -> dict[str, object]:
    """Return the medians of two kinds of runs, by the clock and of the processors, and the ratios of the second."""
    (first, ones), (second, others) = seconds.items()
    found: dict[str, object] = {}
    for number, unit in enumerate(("clock", "processors")):
        one, other = (statistics.median(run[number] for run in runs) for runs in (ones, others))
        found[unit] = {first: round(one, 4), second: round(other, 4), "ratio": round(other / one, 2)}
    return found


def compare(folder: Path, clip: Path, runs: int) -> dict[str, object]:
    """Return the medians of the bare script and of `llvid ask`."""
    numbers = [str(FRAMES), str(NEW_TOKENS)]
    bare = [sys.executable, "-c", SCRIPT, str(folder), str(clip), *numbers]
    ours = [sys.executable, "-m", "llava_video_cli", "ask", str(clip), "What happens?", "-q", "-m", str(folder)]
    ours += ["-n", numbers[0], "--max-new-tokens", numbers[1]]
    seconds: dict[str, list[Seconds]] = {"bare": [], "llvid": []}
    texts = {}
    for _ in range(runs):
        for name, command in (("bare", bare), ("llvid", ours)):
            taken, texts[name] = whole(command)
            seconds[name].append(taken)
    # control characters are shown by llvid, not obeyed
    same = ["".join(c for c in text if c.isascii() and c.isprintable()) for text in texts.values()]
    return {**medians(seconds), "same": same[0] == same[1]}


def reuse(folder: Path, clip: Path, runs: int) -> dict[str, object]:
    """Return the medians of ten questions on one video, and of ten on videos of which nothing is remembered."""
    video = read_frames(str(clip), Sampling(frames=32))
    models = {
        "one video": open_model(str(folder)),
        "ten prompts": open_model(str(folder), Loading(prefix_reuse=False)),
    }
    seconds: dict[str, list[Seconds]] = {name: [] for name in models}
    for run in range(runs + 1):
        for name, model in models.items():
            fresh = [replace(video, images=video.images + run + number) for number in range(QUESTIONS)]
            media = fresh[:1] * QUESTIONS if name == "one video" else fresh
            began, used = time.perf_counter(), time.process_time()
            for number, medium in enumerate(media):
                turns = (Turn("user", f"Question {number}: why?", (medium,)),)
                join(model.stream(Request(turns, Generation(2))))
            if run:  # the first one warms up
                seconds[name].append((time.perf_counter() - began, time.process_time() - used))
    return medians(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", metavar="FAMILY")
    parser.add_argument("--runs", type=int, default=5)
    given = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as temporary:
        clip = Path(temporary) / "clip.mp4"
        write_clip(clip, scene())
        for name in given.families or [name for name in TINY if name in FAMILIES]:
            folder = make_family(Path(temporary) / name, name)
            found = {
                "family": name,
                "ask": compare(folder, clip, given.runs),
                "questions": reuse(folder, clip, given.runs),
            }
            print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
