"""The demo checkpoint on fresh clips, through the whole path; and what breaking that path does to its answers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llava_video_cli import (
    Frames,
    Generation,
    Loading,
    Model,
    Picture,
    Request,
    Sampling,
    Turn,
    open_model,
    read_frames,
)
from llava_video_cli.demo import CHECKPOINT
from llava_video_cli.demo.questions import CLAIM_QUESTIONS, claim, is_right, right_answer, worded
from llava_video_cli.demo.world import Scene, random_scene, write_clip, write_picture
from training.data import fitted

KINDS = ("describe", "happens", "shape", "color_start", "color_end", "direction", "change")
CLIPS, COUNTS, SEED = 12, (4, 8, 16), 20261122
WANTED = 0.95  # of all; the report has 500 questions of each kind


@dataclass(frozen=True)
class Asked:
    """A question about a scene, and the request that puts it."""

    kind: str
    text: str
    scene: Scene
    request: Request


def request(turns: Sequence[Turn]) -> Request:
    return Request(tuple(turns), Generation(max_new_tokens=40))


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> list[Asked]:
    """All kinds of questions about each of some fresh clips; every third as a later turn."""
    folder, rng, asked = tmp_path_factory.mktemp("fresh"), np.random.default_rng(SEED), []
    for number in range(CLIPS):
        scene = random_scene(rng, changes=number % 2 == 0, largest_side=480, rates=(8, 15, 25), longest_seconds=3.0)
        path = folder / f"{number}{('.mp4', '.webm', '.avi', '.mkv')[number % 4]}"
        write_clip(path, scene)
        frames = read_frames(path, Sampling(frames=COUNTS[number % len(COUNTS)]))
        for index, kind in enumerate(KINDS):
            text = worded(kind, rng)
            turns = [Turn("user", text)]
            if (number + index) % 3 == 0:
                turns = [Turn("user", "What shape is it?"), Turn("assistant", right_answer("shape", scene)), *turns]
            asked.append(Asked(kind, text, scene, request([replace(turns[0], media=(frames,)), *turns[1:]])))
    return asked


@pytest.fixture(scope="module")
def demo() -> Model:
    return open_model("demo")


def results(model: Model, asked: Sequence[Asked]) -> list[bool]:
    """Whether each answer is right; they are asked for in batches of mixed lengths."""
    right: list[bool] = []
    for first in range(0, len(asked), 28):
        batch = asked[first : first + 28]
        answers = model.answer_all([one.request for one in batch])
        right += [is_right(one.kind, one.scene, a.text, one.text) for one, a in zip(batch, answers, strict=True)]
    return right


def share(model: Model, asked: Sequence[Asked], kinds: Sequence[str] = KINDS) -> float:
    """The share of right answers to the questions of these kinds."""
    return float(np.mean(results(model, [one for one in asked if one.kind in kinds])))


def test_the_answers_are_right(demo: Model, fresh: list[Asked]) -> None:
    right = np.array(results(demo, fresh))
    for kind in KINDS:
        assert right[[one.kind == kind for one in fresh]].mean() >= 0.95, kind
    assert right.mean() >= WANTED


def about_claims(asked: Sequence[Asked], count: int) -> list[Asked]:
    """So many claims of each kind about each clip."""
    rng, claims = np.random.default_rng(SEED), []
    for one in (one for one in asked if one.kind == "shape"):
        for kind in list(CLAIM_QUESTIONS) * count:
            text = worded(kind, rng, about=claim(kind, one.scene, rng))
            frames = one.request.turns[0].media
            claims.append(Asked(kind, text, one.scene, request([Turn("user", text, frames)])))
    return claims


@pytest.mark.parametrize("quantize", ["none", "4bit"])
def test_claims_are_affirmed_or_denied(quantize: Any, fresh: list[Asked]) -> None:
    asked = about_claims(fresh, 4)
    assert share(open_model("demo", Loading(quantize=quantize)), asked, tuple(CLAIM_QUESTIONS)) >= WANTED


def test_padded_frames_are_answered_with_the_shape_anywhere(demo: Model, tmp_path: Path) -> None:
    rng, asked = np.random.default_rng(SEED), []
    for number in range(CLIPS):
        scene = random_scene(rng, largest_side=426, rates=(8, 15), longest_seconds=3.0, anywhere=True)
        path = tmp_path / f"{number}.mp4"
        write_clip(path, scene)
        frames = read_frames(path, Sampling(frames=COUNTS[number % len(COUNTS)]))
        padded = replace(frames, images=fitted(frames.images, "pad"))
        for kind in KINDS:
            text = worded(kind, rng)
            asked.append(Asked(kind, text, scene, request([Turn("user", text, (padded,))])))
    assert share(demo, asked) >= 0.93
    assert share(demo, about_claims(asked, 3), tuple(CLAIM_QUESTIONS)) >= 0.93


@pytest.mark.parametrize("quantize", ["4bit", "8bit"])
def test_the_answers_are_right_with_a_quantized_language_model(quantize: Any, fresh: list[Asked]) -> None:
    assert share(open_model("demo", Loading(quantize=quantize)), fresh) >= WANTED


def with_frames(asked: Sequence[Asked], change: Callable[[np.ndarray], np.ndarray]) -> list[Asked]:
    """The same questions about changed frames."""
    changed = []
    for one in asked:
        first = one.request.turns[0]
        (frames,) = first.media
        assert isinstance(frames, Frames)
        media = (replace(frames, images=np.ascontiguousarray(change(frames.images))),)
        changed.append(replace(one, request=request([replace(first, media=media), *one.request.turns[1:]])))
    return changed


BREAKS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], tuple[str, ...]]] = {
    "colour channels swapped": (lambda images: images[..., ::-1], ("color_start", "color_end")),
    "frames reversed": (lambda images: images[::-1], ("direction", "color_start", "color_end", "describe")),
    "first frame repeated": (lambda images: np.repeat(images[:1], len(images), axis=0), ("direction", "change")),
    "mirrored": (lambda images: images[:, :, ::-1], ("direction",)),
    "upside down": (lambda images: images[:, ::-1], ("direction",)),
}


@pytest.mark.parametrize("name", BREAKS)
def test_broken_frames_give_wrong_answers(name: str, demo: Model, fresh: list[Asked]) -> None:
    change, kinds = BREAKS[name]
    assert share(demo, with_frames(fresh, change), kinds) < 0.85 < WANTED


def test_without_its_placeholder_a_question_gets_wrong_answers(demo: Model, fresh: list[Asked]) -> None:
    blind = []
    for one in fresh:
        first, *rest = one.request.turns
        blind.append(replace(one, request=request([replace(first, media=()), *rest])))
    assert share(demo, blind) < 0.5


def test_a_template_that_loses_the_placeholder_is_noticed(tmp_path: Path, fresh: list[Asked]) -> None:
    folder = tmp_path / "demo"
    shutil.copytree(CHECKPOINT, folder)
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text().replace("<video>", ""))
    assert "<video>" not in template.read_text()
    assert share(open_model(str(folder)), fresh[: 6 * len(KINDS)]) >= 0.85


@pytest.fixture(scope="module")
def stills(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Scene, Picture]]:
    from llava_video_cli import read_image

    folder, rng, pictures = tmp_path_factory.mktemp("stills"), np.random.default_rng(SEED + 1), []
    for number in range(CLIPS):
        scene = random_scene(rng, changes=False, largest_side=640)
        path = folder / f"{number}{('.png', '.jpg', '.webp')[number % 3]}"
        write_picture(path, scene)
        pictures.append((scene, read_image(path)))
    return pictures


def test_the_answers_about_pictures_are_right(demo: Model, stills: list[tuple[Scene, Picture]]) -> None:
    asked = [
        Asked(kind, text, scene, request([Turn("user", text, (picture,))]))
        for scene, picture in stills
        for kind in ("picture_shape", "picture_color", "picture_describe")
        for text in [worded(kind, np.random.default_rng(scene.seed))]
    ]
    assert share(demo, asked, ("picture_shape", "picture_color", "picture_describe")) >= WANTED


@pytest.mark.slow
def test_comparisons_are_right(demo: Model, fresh: list[Asked], stills: list[tuple[Scene, Picture]]) -> None:
    right = total = 0
    steady = [one for one in fresh if one.kind == "shape" and not one.scene.changes]
    for one in steady:
        for scene, picture in stills[:8]:
            for kind in ("same_shape", "same_color"):
                text = worded(kind, np.random.default_rng(total))
                answer = demo.answer_all([request([Turn("user", text, (picture, *one.request.media))])])[0]
                right += is_right(kind, one.scene, answer.text, text, scene)
                total += 1
    assert right / total >= WANTED, f"{right} of {total}"


def test_the_report_is_there_and_says_what_its_page_says() -> None:
    report = json.loads((CHECKPOINT / "report.json").read_text())
    shares = [share for rows in report["accuracy"].values() for share in rows.values()]
    assert report["questions"] >= 500 and min(shares) >= 0.97
    for rows in report["by_fit"].values():
        by_fit = [share for row in rows.values() for share in row.values()]
        assert sum(by_fit) / len(by_fit) >= 0.95 and min(by_fit) >= 0.9
    page = (Path(__file__).parents[2] / "docs" / "demo.md").read_text(encoding="utf-8")
    assert f"{100 * sum(shares) / len(shares):.1f} % right in all" in page
    assert f"{report['questions']} questions of each kind" in page
    for kind in report["by_fit"]["pad"]:
        crop = np.mean([*report["accuracy"][kind].values()])
        cells = [crop, *(report["by_fit"][fit][kind]["8"] for fit in ("pad", "stretch"))]
        assert f"| {' | '.join(f'{100 * cell:.1f}' for cell in cells)} |" in page, kind
    assert sum(path.stat().st_size for path in CHECKPOINT.iterdir()) <= 4_000_000
