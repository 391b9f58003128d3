"""Train the demo checkpoint from scratch: `python -m training.train [--out FOLDER] [--seed N]`.

It makes the clips (`data.py`), trains the vision tower and the projector (`vision_tower.py`), then the language model
(`language.py`), on frames whose central square is cut out. Then it does both again, from there, with padded and
stretched frames too, and with claims to affirm or deny; `--start CHECKPOINT` does this second stage only. It stores the
checkpoint, and measures it (`evaluate.py`). A killed run goes on from `--state FOLDER`. Progress goes to stderr.
`report.json` beside the checkpoint has the seed, the versions, the seconds, and the accuracy by kind of question. The
seed determines the clips, the batches and the first weights, but threads add numbers in varying order: two runs differ
by some tenths of a percent. A run through every stage in a few minutes, for a checkpoint that knows nothing:

    python -m training.train --out /tmp/x --clips 440 --stills 220 --vision-steps 50 --language-steps 93 --questions 2
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlavaNextVideoForConditionalGeneration,
    LlavaNextVideoProcessor,
    PreTrainedTokenizerFast,
)

from llava_video_cli.demo import CHECKPOINT
from llava_video_cli.inference import open_model

from .architecture import build_model, build_processor, build_tokenizer
from .data import FITS, Clip, Still, make_clips, make_stills
from .evaluate import evaluate, table
from .language import MORE_PHASES, PHASES, BatchSampler, Phase, clip_features, still_features, train_language_model
from .vision_tower import train_vision_tower

HELD_OUT_CLIPS = 192  # of each stage
HELD_OUT_STILLS = 100
THREADS = 2  # on every machine, so that all add numbers in nearly the same order; on a busy one, one is faster
LIMIT_BYTES = 4_000_000
VERSIONS = ("torch", "torchvision", "transformers", "tokenizers", "av", "numpy")


@dataclass(frozen=True)
class Stage:
    """A stage of the training: how its frames are made square, the steps of the vision tower, the phases after them."""

    name: str
    fits: tuple[str, ...]
    vision_steps: int
    rate: float
    phases: tuple[Phase, ...]


STAGES = (Stage("first", ("crop",), 1600, 1.5e-3, PHASES), Stage("second", FITS, 400, 1e-3, MORE_PHASES))
VISION_STEPS = sum(stage.vision_steps for stage in STAGES)
LANGUAGE_STEPS = sum(phase.steps for stage in STAGES for phase in stage.phases)


def train(
    out: Path,
    seed: int = 0,
    clips: int = 6400,
    stills: int = 1500,
    vision_steps: int = VISION_STEPS,
    language_steps: int = LANGUAGE_STEPS,
    start_from: Path | None = None,
    state: Path | None = None,
    threads: int = THREADS,
) -> dict[str, Any]:
    """Train, store the checkpoint in `out`, and return the report: the recipe and the seconds of each part.

    `start_from` is a checkpoint of the first stage, of which `state`, a folder, keeps what is done.
    """
    torch.set_num_threads(threads)
    seconds: dict[str, float] = {}
    start = time.monotonic()

    def lap(name: str) -> None:
        seconds[name] = round(time.monotonic() - start - sum(seconds.values()), 1)
        say(f"{name}: {seconds[name]:.0f} s")

    if state:
        state.mkdir(parents=True, exist_ok=True)
    films, pictures = _kept(
        state and state / "data.pt",
        lambda: (list(make_clips(clips, seed * 2 + 1)), list(make_stills(stills, seed * 2 + 2))),
    )
    lap("data")
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(seed)
    any_model: Any = LlavaNextVideoForConditionalGeneration
    model = build_model(tokenizer) if start_from is None else any_model.from_pretrained(start_from)
    stages = [
        replace(
            stage,
            vision_steps=stage.vision_steps * vision_steps // VISION_STEPS,
            phases=tuple(
                replace(phase, steps=phase.steps * language_steps // LANGUAGE_STEPS) for phase in stage.phases
            ),
        )
        for stage in STAGES[0 if start_from is None else 1 :]
    ]
    for stage in stages:
        mine = [film for film in films if film.fit in stage.fits]
        _train_stage(stage, model, tokenizer, mine, pictures, seed, state, lap)
    store(out, model, build_processor(tokenizer))
    return {
        "seed": seed,
        "recipe": {
            "start_from": start_from and str(start_from),
            "clips": clips,
            "stills": stills,
            "vision_steps": [stage.vision_steps for stage in stages],
            "language_steps": [[phase.steps for phase in stage.phases] for stage in stages],
        },
        "parameters": sum(weight.numel() for weight in model.parameters()),
        "seconds": seconds,
    }


def _train_stage(
    stage: Stage,
    model: LlavaNextVideoForConditionalGeneration,
    tokenizer: PreTrainedTokenizerFast,
    films: list[Clip],
    pictures: list[Still],
    seed: int,
    state: Path | None,
    lap: Callable[[str], None],
) -> None:
    is_first = stage.name == "first"

    def vision_part() -> dict[str, Any]:
        shown = films[:-HELD_OUT_CLIPS], pictures[:-HELD_OUT_STILLS]
        train_vision_tower(model, *shown, stage.vision_steps, seed + 3, say, rate=stage.rate, anchored=not is_first)
        weights: dict[str, Any] = model.state_dict()
        return weights

    model.load_state_dict(_kept(state and state / f"{stage.name}-vision.pt", vision_part))
    lap(f"{stage.name}: vision_tower")
    videos, images = _kept(
        state and state / f"{stage.name}-features.pt",
        lambda: (clip_features(model, films), still_features(model, pictures)),
    )
    lap(f"{stage.name}: features")
    sampler = BatchSampler(tokenizer, videos[:-HELD_OUT_CLIPS], images[:-HELD_OUT_STILLS])
    held_out = BatchSampler(tokenizer, videos[-HELD_OUT_CLIPS:], images[-HELD_OUT_STILLS:])
    for number, phase in enumerate(stage.phases):
        kept = state and state / f"{stage.name}-{number}.pt"
        train_language_model(model, sampler, held_out, phase, seed + 4 + number, say, kept)
    lap(f"{stage.name}: language_model")


def _kept(path: Path | None, make: Callable[[], Any]) -> Any:
    """What the file holds, if it is there; else what `make` returns, which is then stored in it."""
    if path is not None and path.exists():
        return torch.load(path, weights_only=False)
    made = make()
    if path is not None:
        torch.save(made, path.with_suffix(".new"))
        path.with_suffix(".new").replace(path)
    return made


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
    parser.add_argument("--start", type=Path, metavar="CHECKPOINT", help="of the first stage; only the second is done")
    parser.add_argument(
        "--state", type=Path, metavar="FOLDER", help="for what is done; a killed run goes on from there"
    )
    parser.add_argument("--threads", type=int, default=THREADS)
    parser.add_argument("--clips", type=int, default=6400, help=f"scenes, at least {2 * HELD_OUT_CLIPS + 50}")
    parser.add_argument("--stills", type=int, default=1500, help=f"at least {HELD_OUT_STILLS + 120}")
    parser.add_argument("--vision-steps", type=int, default=VISION_STEPS)
    parser.add_argument("--language-steps", type=int, default=LANGUAGE_STEPS, help="of all phases together")
    parser.add_argument(
        "--questions", type=int, default=500, help="of each kind, for each number of frames, in the report"
    )
    options = parser.parse_args()
    start = time.monotonic()
    report = train(
        options.out,
        options.seed,
        options.clips,
        options.stills,
        options.vision_steps,
        options.language_steps,
        options.start,
        options.state,
        options.threads,
    )
    model = open_model(str(options.out))
    scores = {}
    for fit in FITS:
        frame_counts = (4, 8, 16) if fit == "crop" else (8,)
        scores[fit] = evaluate(model, options.questions, frame_counts, options.seed + 1000, say, fit)
        say(f"{fit}\n{table(scores[fit])}")
    report |= {
        "versions": {"python": platform.python_version(), **{name: version(name) for name in VERSIONS}},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {options.threads} threads",
        "questions": options.questions,
        "accuracy": scores["crop"].shares("kind"),
        "by_turn": scores["crop"].shares("turn"),
        "by_fit": {fit: score.shares("kind") for fit, score in scores.items() if fit != "crop"},
        "total_seconds": round(time.monotonic() - start, 1),
    }
    (options.out / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
