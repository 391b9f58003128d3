"""Choices on fresh questions about the demo world: `python tests/benchmarks/calibration.py`.

Makes new clips, asks the demo checkpoint five questions about each, of which the true answers are known, and compares
the likeliest choice with the truth. Questions of yes or no have the choices `yes,no`; the others the right sentence of
each possible answer. Printed are the share of right answers by kind, and the expected calibration error: the mean
distance, over 15 equal bins, between the probability of the answers and the share of them that is right. The last line
is one JSON document. Wanted: at least 97 % right, an error of at most 0.05.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from llava_video_cli import Generation, Request, Sampling, Turn, open_model, read_frames
from llava_video_cli.demo.questions import BY_KIND, CLAIM_QUESTIONS, claim, holds, right_answer
from llava_video_cli.demo.world import COLORS, DIRECTIONS, SHAPES, Scene, random_scene, write_clip

BINS = 15


def questions(scene: Scene, rng: np.random.Generator) -> Iterator[tuple[str, str, tuple[str, ...], str]]:
    """Yield the kind of a question, its text, its choices, and the right one."""
    for kind, form in CLAIM_QUESTIONS.items():
        about = claim(kind, scene, rng)
        yield kind, form.format(about), ("yes", "no"), "yes" if holds(about, scene) else "no"
    others = {
        "shape": [replace(scene, shape=shape) for shape in SHAPES],
        "direction": [replace(scene, direction=direction) for direction in DIRECTIONS],
        "color_end": [replace(scene, color_end=color) for color in COLORS],
    }
    for kind, scenes in others.items():
        choices = dict.fromkeys(right_answer(kind, each) for each in scenes)
        yield kind, BY_KIND[kind].wordings[0], tuple(choices), right_answer(kind, scene)


def calibration_error(probabilities: list[float], right: list[bool]) -> float:
    """Return the expected calibration error."""
    which = np.minimum((np.array(probabilities) * BINS).astype(int), BINS - 1)
    sums = [(np.array(probabilities)[which == one].sum(), np.array(right)[which == one].sum()) for one in range(BINS)]
    return float(sum(abs(believed - true) for believed, true in sums) / len(right))


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=100)
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--side", type=int, default=640, help="the longest side of a clip, in pixels")
    options = parser.parse_args()
    rng, model = np.random.default_rng((options.seed, 20)), open_model("demo")
    believed, right = defaultdict[str, list[float]](list), defaultdict[str, list[bool]](list)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(options.clips):
            path, scene = Path(folder) / f"{number}.mp4", random_scene(rng, largest_side=options.side)
            write_clip(path, scene)
            frames = read_frames(path, Sampling(frames=8), resize=model.shrink)
            asked = list(questions(scene, rng))
            requests = [
                Request((Turn("user", text, (frames,)),), Generation(choices=choices)) for _, text, choices, _ in asked
            ]
            for (kind, text, _, truth), answer in zip(asked, model.answer_all(requests), strict=True):
                assert answer.scores is not None
                believed[kind].append(answer.scores[answer.text])
                right[kind].append(answer.text == truth)
                if answer.text != truth:
                    print(f"{text} {answer.text} ({answer.scores[answer.text]:.3f}), not {truth}: {scene}")
            path.unlink()
    every = (
        [value for values in right.values() for value in values],
        [p for values in believed.values() for p in values],
    )
    for kind in right:
        error = calibration_error(believed[kind], right[kind])
        print(f"{kind:10s} {100 * np.mean(right[kind]):5.1f} % right, error {error:.4f}")
    result = {
        "questions": len(every[0]),
        "right": round(float(np.mean(every[0])), 4),
        "mean_probability": round(float(np.mean(every[1])), 4),
        "expected_calibration_error": round(calibration_error(every[1], every[0]), 4),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
