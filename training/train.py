"""Train the demo checkpoint from scratch: `python -m training.train [--out FOLDER] [--seed N]`.

It makes the clips (`data.py`), trains the vision tower and the projector (`vision_tower.py`), then the language model
(`language.py`), stores the checkpoint, and measures it (`evaluate.py`). Progress goes to stderr. `report.json` beside
the checkpoint has the seed, the versions, the seconds, and the accuracy by kind of question. The seed determines the
clips, the batches and the first weights, but threads add numbers in varying order: two runs differ by some tenths of a
percent. A run through every stage in a few minutes, for a checkpoint that knows nothing:

    python -m training.train --out /tmp/demo --clips 220 --stills 220 --vision-steps 4 --language-steps 22 --questions 2
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import LlavaNextVideoForConditionalGeneration, LlavaNextVideoProcessor

from llava_video_cli.demo import CHECKPOINT
from llava_video_cli.inference import open_model

from .architecture import build_model, build_processor, build_tokenizer
from .data import make_clips, make_stills
from .evaluate import evaluate, table
from .language import PHASES, BatchSampler, clip_features, still_features, train_language_model
from .vision_tower import train_vision_tower

HELD_OUT_CLIPS = 200
HELD_OUT_STILLS = 100
THREADS = 2  # fixed, so that every machine adds numbers in nearly the same order
LIMIT_BYTES = 4_000_000
LANGUAGE_STEPS = sum(phase.steps for phase in PHASES)
VERSIONS = ("torch", "torchvision", "transformers", "tokenizers", "av", "numpy")


def train(
    out: Path,
    seed: int = 0,
    clips: int = 5000,
    stills: int = 1500,
    vision_steps: int = 1600,
    language_steps: int = LANGUAGE_STEPS,
) -> dict[str, Any]:
    """Train, store the checkpoint in `out`, and return the report: the recipe and the seconds of each stage."""
    torch.set_num_threads(THREADS)
    seconds: dict[str, float] = {}
    start = time.monotonic()

    def lap(name: str) -> None:
        seconds[name] = round(time.monotonic() - start - sum(seconds.values()), 1)
        say(f"{name}: {seconds[name]:.0f} s")

    pictures = list(make_stills(stills, seed * 2 + 2))
    films = list(make_clips(clips, seed * 2 + 1))
    lap("data")
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(seed)
    model = build_model(tokenizer)
    train_vision_tower(model, films[:-HELD_OUT_CLIPS], pictures[:-HELD_OUT_STILLS], vision_steps, seed + 3, say)
    lap("vision_tower")
    videos, images = clip_features(model, films), still_features(model, pictures)
    lap("features")
    sampler = BatchSampler(tokenizer, videos[:-HELD_OUT_CLIPS], images[:-HELD_OUT_STILLS])
    held_out = BatchSampler(tokenizer, videos[-HELD_OUT_CLIPS:], images[-HELD_OUT_STILLS:])
    phases = [replace(phase, steps=phase.steps * language_steps // LANGUAGE_STEPS) for phase in PHASES]
    for number, phase in enumerate(phases):
        train_language_model(model, sampler, held_out, phase, seed + 4 + number, say)
    lap("language_model")
    store(out, model, build_processor(tokenizer))
    return {
        "seed": seed,
        "recipe": {
            "clips": clips,
            "stills": stills,
            "vision_steps": vision_steps,
            "language_steps": [phase.steps for phase in phases],
        },
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "seconds": seconds,
    }


def store(out: Path, model: LlavaNextVideoForConditionalGeneration, processor: LlavaNextVideoProcessor) -> None:
    """Write the checkpoint: the weights as float16, and a config that loads them as float32."""
    out.mkdir(parents=True, exist_ok=True)
    halved: Any = model
    halved.half().save_pretrained(out)
    processor.save_pretrained(out)
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    for part in (config, config["text_config"], config["vision_config"]):
        part["dtype"] = "float32"
    (out / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for path in out.iterdir():
        path.chmod(0o644)
    stored = sum(path.stat().st_size for path in out.iterdir())
    if stored > LIMIT_BYTES:
        raise SystemExit(f"the checkpoint has {stored} bytes, expected at most {LIMIT_BYTES}")


def say(line: str) -> None:
    """Write progress to stderr."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=CHECKPOINT, metavar="FOLDER")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clips", type=int, default=5000, help=f"at least {HELD_OUT_CLIPS + 20}")
    parser.add_argument("--stills", type=int, default=1500, help=f"at least {HELD_OUT_STILLS + 120}")
    parser.add_argument("--vision-steps", type=int, default=1600)
    parser.add_argument("--language-steps", type=int, default=LANGUAGE_STEPS, help="of all phases together")
    parser.add_argument(
        "--questions", type=int, default=500, help="of each kind, for each number of frames, in the report"
    )
    options = parser.parse_args()
    start = time.monotonic()
    report = train(
        options.out, options.seed, options.clips, options.stills, options.vision_steps, options.language_steps
    )
    score = evaluate(open_model(str(options.out)), options.questions, seed=options.seed + 1000, say=say)
    say(table(score))
    report |= {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in VERSIONS}},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {THREADS} threads",
        "questions": options.questions,
        "accuracy": score.shares("kind"),
        "by_turn": score.shares("turn"),
        "total_seconds": round(time.monotonic() - start, 1),
    }
    (options.out / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
