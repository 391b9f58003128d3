"""Measure a checkpoint on new clips and pictures, as real files and through the package's own code.

`python -m training.evaluate` prints a table: the share of right answers by kind of question and number of frames.
`--fit` says how frames become squares; with `pad` and `stretch` the clips are 16:9 or 9:16, with the shape anywhere in
the picture, and nothing is asked about pictures. The last line is one JSON document with the same values.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from llava_video_cli.conversation import Generation, Request, Turn
from llava_video_cli.demo.questions import CLAIM_QUESTIONS, claim, is_right, right_answer, worded
from llava_video_cli.demo.world import Scene, random_scene, write_clip, write_picture
from llava_video_cli.inference import open_model
from llava_video_cli.model import Loading, Model
from llava_video_cli.video import Frames, read_frames
from llava_video_cli.video.fit import Fit
from llava_video_cli.video.image import Picture, read_image
from llava_video_cli.video.sampling import Sampling

from .data import FITS

VIDEO_KINDS = ("describe", "happens", "shape", "color_start", "color_end", "direction", "change", *CLAIM_QUESTIONS)
PICTURE_KINDS = ("picture_shape", "picture_color", "picture_describe")
PAIR_KINDS = ("same_shape", "same_color")
GROUP = 20  # clips in memory at a time
BATCH = 32  # questions that are answered at a time
LATER = 0.25  # the share of questions that come after other questions with their right answers


@dataclass(frozen=True)
class PosedQuestion:
    """A question with everything that decides whether its answer is right."""

    kind: str
    text: str
    scene: Scene
    picture: Scene | None
    row: str  # the number of frames, or "picture"
    later: bool
    request: Request


@dataclass
class Score:
    """Right and wrong answers by (view, name, row).

    The view is `kind` or `turn`, the row a number of frames or `picture`.
    """

    right: dict[tuple[str, str, str], list[bool]] = field(default_factory=lambda: defaultdict(list))
    wrong: list[str] = field(default_factory=list)

    def add(self, question: PosedQuestion, answer: str) -> None:
        """Judge one answer."""
        correct = is_right(question.kind, question.scene, answer, question.text, question.picture)
        self.right["kind", question.kind, question.row].append(correct)
        self.right["turn", "later" if question.later else "first", question.row].append(correct)
        if not correct:
            expected = right_answer(question.kind, question.scene, question.text, question.picture)
            self.wrong.append(
                f"{question.kind} {question.row}: {question.text!r} -> {answer!r}, not {expected!r} ({question.scene})"
            )

    def shares(self, view: str) -> dict[str, dict[str, float]]:
        """The share of right answers: name -> row -> share."""
        table: dict[str, dict[str, float]] = {}
        for (mine, name, row), values in self.right.items():
            if mine == view:
                table.setdefault(name, {})[row] = round(float(np.mean(values)), 4)
        return table


def evaluate(
    model: Model,
    questions: int = 500,
    frame_counts: Sequence[int] = (4, 8, 16),
    seed: int = 0,
    say: Callable[[str], None] = lambda _: None,
    fit: Fit = "crop",
) -> Score:
    """Ask a model `questions` new questions of each kind, for each number of frames, which become squares by `fit`.

    A quarter of them are later turns of a conversation, and more than half do not use the main wording.
    """
    rng = np.random.default_rng((seed, 7))
    score = Score()
    start = time.monotonic()
    for number, batch in enumerate(_questions(rng, questions, frame_counts, fit), start=1):
        answers = model.answer_all([question.request for question in batch])
        for question, answer in zip(batch, answers, strict=True):
            score.add(question, answer.text)
        if number % 50 == 0:
            every = [value for values in score.right.values() for value in values]
            say(f"{len(every) // 2} questions, {100 * np.mean(every):.1f} % right, {time.monotonic() - start:.0f} s")
    return score


def table(score: Score) -> str:
    """The shares as lines of text, in percent."""
    lines = []
    for name, row in [*score.shares("kind").items(), *score.shares("turn").items()]:
        cells = "  ".join(f"{column}: {100 * share:5.1f}" for column, share in row.items())
        lines.append(f"{name:18s} {cells}")
    return "\n".join(lines)


def _questions(
    rng: np.random.Generator, questions: int, frame_counts: Sequence[int], fit: Fit
) -> Iterator[list[PosedQuestion]]:
    """Batches of questions whose media have the same size, so that they can be answered together."""
    with (
        tempfile.TemporaryDirectory() as folder,
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool,
    ):
        scenes = [random_scene(rng) if fit == "crop" else _wide_scene(rng) for _ in range(questions)]
        partners = [[_partner(rng, scene) for _ in PAIR_KINDS] for scene in scenes]
        clips = pool.map(_write, [(folder, index, scene) for index, scene in enumerate(scenes)])
        stills = [random_scene(rng, changes=False, largest_side=int(rng.choice([320, 1280]))) for _ in range(questions)]
        for first in range(0, questions, GROUP):
            here = list(range(first, min(first + GROUP, questions)))
            paths = {index: next(clips) for index in here}
            if fit == "crop":
                pictures = [_picture(folder, scene, rng) for scene in (stills[index] for index in here)]
                yield from _batches(_about_pictures(rng, pictures))
            steady = [index for index in here if not scenes[index].changes] or here[:0]
            pairs = {index: [_picture(folder, scene, rng) for scene in partners[index]] for index in here}
            for count in frame_counts:
                frames = {index: read_frames(paths[index], Sampling(frames=count, fit=fit)) for index in here}
                posed = []
                for index in here:
                    posed += _about_video(rng, scenes[index], frames[index], count)
                    if fit != "crop":
                        continue
                    posed.append(_about_pair(rng, "same_shape", scenes[index], frames[index], pairs[index][0], count))
                    if steady:
                        other = steady[index % len(steady)]
                        fresh = _picture(folder, _partner(rng, scenes[other]), rng)
                        posed.append(_about_pair(rng, "same_color", scenes[other], frames[other], fresh, count))
                yield from _batches(posed)
            for index in here:
                paths[index].unlink()


def _batches(posed: list[PosedQuestion]) -> Iterator[list[PosedQuestion]]:
    alike: dict[Any, list[PosedQuestion]] = defaultdict(list)
    for one in posed:
        alike[one.row, tuple(_length(medium) for medium in one.request.media)].append(one)
    for group in alike.values():
        for first in range(0, len(group), BATCH):
            yield group[first : first + BATCH]


def _length(medium: Frames | Picture) -> int:
    return len(medium.images) if isinstance(medium, Frames) else 0


def _about_video(rng: np.random.Generator, scene: Scene, frames: Frames, count: int) -> list[PosedQuestion]:
    posed = []
    for kind in VIDEO_KINDS:
        later = bool(rng.random() < LATER)
        before = [str(other) for other in rng.permutation(VIDEO_KINDS)[: rng.integers(1, 4)]] if later else []
        posed.append(_ask(rng, kind, before, scene, None, (frames,), str(count)))
    return posed


def _about_pictures(rng: np.random.Generator, pictures: list[tuple[Scene, Picture]]) -> list[PosedQuestion]:
    posed = []
    for scene, picture in pictures:
        for kind in PICTURE_KINDS:
            before = [str(rng.choice(PICTURE_KINDS))] if rng.random() < LATER else []
            posed.append(_ask(rng, kind, before, scene, None, (picture,), "picture"))
    return posed


def _about_pair(
    rng: np.random.Generator, kind: str, scene: Scene, frames: Frames, picture: tuple[Scene, Picture], count: int
) -> PosedQuestion:
    media = (picture[1], frames) if rng.random() < 0.5 else (frames, picture[1])
    return _ask(rng, kind, [], scene, picture[0], media, str(count))


def _ask(
    rng: np.random.Generator,
    kind: str,
    before: list[str],
    scene: Scene,
    picture: Scene | None,
    media: tuple[Frames | Picture, ...],
    row: str,
) -> PosedQuestion:
    turns = []
    for earlier in before:
        text = _text(rng, earlier, scene)
        turns += [Turn("user", text), Turn("assistant", right_answer(earlier, scene, text, picture))]
    text = _text(rng, kind, scene)
    turns.append(Turn("user", text))
    turns[0] = Turn("user", turns[0].text, media=media)
    request = Request(turns=tuple(turns), generation=Generation(max_new_tokens=40))
    return PosedQuestion(kind, text, scene, picture, row, bool(before), request)


def _text(rng: np.random.Generator, kind: str, scene: Scene) -> str:
    return worded(kind, rng, about=claim(kind, scene, rng) if kind in CLAIM_QUESTIONS else "")


def _wide_scene(rng: np.random.Generator) -> Scene:
    """A scene with its shape anywhere in a 16:9 or 9:16 picture."""
    while True:
        scene = random_scene(rng, largest_side=640, anywhere=True)
        if max(scene.width, scene.height) > 1.7 * min(scene.width, scene.height):
            return scene


def _partner(rng: np.random.Generator, scene: Scene) -> Scene:
    """A scene for a picture: half of them have the same shape, half the same colour."""
    same_shape, same_color = rng.random(2) < 0.5
    while True:
        other = random_scene(rng, changes=False, largest_side=480)
        if (other.shape == scene.shape) == same_shape and (other.color_start == scene.color_start) == same_color:
            return other


def _picture(folder: str, scene: Scene, rng: np.random.Generator) -> tuple[Scene, Picture]:
    path = Path(folder) / f"picture{rng.choice(['.png', '.jpg', '.webp'])}"
    write_picture(path, scene)
    return scene, read_image(path)


def _write(job: tuple[str, int, Scene]) -> Path:
    folder, index, scene = job
    suffix = (".mp4", ".mp4", ".mkv", ".webm", ".avi", ".mov")[scene.seed % 6]
    path = Path(folder) / f"{index}{suffix}"
    write_clip(path, scene)
    return path


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=500, help="of each kind, for each number of frames")
    parser.add_argument("--frames", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--fit", default="crop", choices=FITS, help="how frames become squares")
    parser.add_argument("--quantize", default="none", choices=["none", "4bit", "8bit"])
    parser.add_argument("--model", default="demo")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--wrong", type=int, default=0, metavar="N", help="show the first N wrong answers on stderr")
    options = parser.parse_args()
    start = time.monotonic()
    model = open_model(options.model, Loading(quantize=options.quantize))
    score = evaluate(model, options.questions, options.frames, options.seed, _say, options.fit)
    for line in score.wrong[: options.wrong]:
        _say(line)
    print(table(score))  # noqa: T201
    document = {
        "model": options.model,
        "quantize": options.quantize,
        "fit": options.fit,
        "seed": options.seed,
        "questions": options.questions,
        "accuracy": score.shares("kind"),
        "by_turn": score.shares("turn"),
        "seconds": round(time.monotonic() - start, 1),
    }
    print(json.dumps(document))  # noqa: T201


if __name__ == "__main__":
    main()
