"""The demo's world: scenes, files, questions, and how answers are judged."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llava_video_cli.demo.questions import (
    BY_KIND,
    CLAIM_QUESTIONS,
    CLAIMS,
    claim,
    holds,
    is_right,
    judged,
    right_answer,
    worded,
)
from llava_video_cli.demo.world import (
    COLORS,
    DIRECTIONS,
    SHAPES,
    Scene,
    frames,
    random_scene,
    render,
    write_clip,
    write_picture,
)

av = pytest.importorskip("av")


def scene(**changed: Any) -> Scene:
    rng = np.random.default_rng(5)
    drawn = random_scene(rng, changes=False, largest_side=128, rates=(8,), longest_seconds=2.0)
    plain = replace(
        drawn,
        width=128,
        height=96,
        shape="circle",
        color_start="red",
        color_end="red",
        shade_start=(210, 40, 40),
        shade_end=(210, 40, 40),
        direction="left",
        x=0.75,
        y=0.5,
        radius=0.15,
        travel=0.5,
        noise=0.0,
    )
    return replace(plain, **changed)


def middle(image: np.ndarray) -> tuple[float, float]:
    rows, columns = np.nonzero(image.max(axis=-1) > 100)
    return float(columns.mean()), float(rows.mean())


def test_the_same_seed_gives_the_same_scene() -> None:
    assert random_scene(np.random.default_rng(3)) == random_scene(np.random.default_rng(3))


def test_the_shape_stays_within_the_central_square() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        drawn = random_scene(rng)
        for fraction in (0.0, 0.5, 1.0):
            for place in drawn.place(fraction):
                assert 1.24 * drawn.radius <= place <= 1 - 1.24 * drawn.radius


def test_the_shape_may_be_anywhere_in_the_picture() -> None:
    rng = np.random.default_rng(0)
    outside = []
    for _ in range(300):
        drawn = random_scene(rng, anywhere=True)
        side, places = min(drawn.width, drawn.height), [drawn.place(fraction) for fraction in (0.0, 0.5, 1.0)]
        for size, along in zip((drawn.width, drawn.height), zip(*places, strict=True), strict=True):
            pixels = [(place - 0.5) * side + size / 2 for place in along]
            assert 1.24 * drawn.radius * side <= min(pixels) and max(pixels) <= size - 1.24 * drawn.radius * side
        outside.append(any(not 0 <= place <= 1 for pair in places for place in pair))
    assert np.mean(outside) > 0.25


def test_scenes_show_all_there_is() -> None:
    rng = np.random.default_rng(0)
    drawn = [random_scene(rng) for _ in range(400)]
    assert {one.shape for one in drawn} == set(SHAPES)
    assert {one.color_start for one in drawn} == {one.color_end for one in drawn} == set(COLORS)
    assert {one.direction for one in drawn} == set(DIRECTIONS)
    assert 0.3 < np.mean([one.changes for one in drawn]) < 0.5


@pytest.mark.parametrize(
    ("direction", "step"), [("left", (-1, 0)), ("right", (1, 0)), ("up", (0, -1)), ("down", (0, 1))]
)
def test_the_shape_moves_as_it_is_said_to(direction: str, step: tuple[int, int]) -> None:
    clip = render(scene(direction=direction, x=0.5, y=0.5, travel=0.2))
    assert clip.dtype == np.uint8
    assert clip.shape[1:] == (96, 128, 3)
    (first_x, first_y), (last_x, last_y) = middle(clip[0]), middle(clip[-1])
    moved = np.array([last_x - first_x, last_y - first_y])
    assert moved @ np.array(step) > 10
    assert abs(moved @ np.array(step[::-1])) < 1


def test_the_color_changes_near_the_middle() -> None:
    clip = render(scene(color_end="blue", shade_end=(40, 40, 210), direction="still", change_at=0.5))
    red = [image[..., 0].max() > image[..., 2].max() for image in clip]
    half = len(clip) / 2
    assert red == [index < half for index in range(len(clip))]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm", ".avi"])
def test_a_written_clip_holds_its_frames(tmp_path: Path, suffix: str) -> None:
    shown = scene()
    path = tmp_path / f"clip{suffix}"
    write_clip(path, shown)
    with av.open(str(path)) as container:
        images = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(images) == shown.frame_count
    for image, drawn in zip(images, frames(shown), strict=True):
        assert np.hypot(*np.subtract(middle(image), middle(drawn))) < 1.5


def test_a_written_picture_is_the_first_frame(tmp_path: Path) -> None:
    from PIL import Image

    write_picture(tmp_path / "picture.png", scene())
    assert (np.asarray(Image.open(tmp_path / "picture.png")) == next(frames(scene()))).all()


@pytest.mark.parametrize("kind", BY_KIND)
def test_right_answers_are_right_and_others_are_not(kind: str) -> None:
    rng = np.random.default_rng(1)
    shown = scene(color_end="blue" if BY_KIND[kind].media == "video" else "red")
    picture = scene(shape="square", color_start="green", color_end="green")
    for _ in range(20):
        text = worded(kind, rng)
        answer = right_answer(kind, shown, text, picture)
        assert is_right(kind, shown, answer, text, picture)
        for wrong in ("", "It is.", "A purple triangle moves down.", "Yes, it is a square and a circle.", "Yes, no."):
            assert not is_right(kind, shown, wrong, text, picture)


def test_swapped_colors_are_wrong() -> None:
    shown = scene(color_end="blue")
    assert is_right("describe", shown, "A red circle moves left and turns blue.")
    assert not is_right("describe", shown, "A blue circle moves left and turns red.")
    assert not is_right("change", shown, "Yes, it changes from blue to red.")


def test_wordings_keep_their_question() -> None:
    for media in ("video", "picture", "both"):
        wordings = [text for question in BY_KIND.values() if question.media == media for text in question.wordings]
        assert len({*wordings}) >= len(wordings) - 3
        assert all("  " not in text and text[-1] in ".?" and text[0].isupper() for text in wordings)
    assert BY_KIND["describe"].wordings[0] == "Describe the video."
    rng = np.random.default_rng(0)
    texts = {worded("color_start", rng) for _ in range(300)}
    assert "What color is it at the start?" in texts
    assert any("colour" in text for text in texts)
    assert any(text[0].islower() for text in texts)
    assert any(text[-1] != "?" for text in texts)


CLAIMED = [
    ("a circle", True),
    ("a red circle", True),
    ("a blue circle", True),
    ("a green circle", False),
    ("a red square", False),
    ("something blue", True),
    ("something white", False),
    ("something that turns blue", True),
    ("a circle that turns red", False),
    ("a red circle that turns blue", True),
    ("a green circle that turns blue", False),
    ("a triangle that changes color", False),
    ("a circle that moves left", True),
    ("a blue circle that moves right", False),
    ("something that stays still", False),
    ("nothing moves", False),
    ("something moves", True),
    ("nothing changes colour", False),
    ("The shape changes color", True),
    ("the shape is red at the start", True),
    ("the shape is blue at the start", False),
    ("the shape is blue at the end", True),
    ("there is a red circle", True),
]


@pytest.mark.parametrize(("text", "true"), CLAIMED)
def test_claims_are_true_or_not(text: str, true: bool) -> None:
    assert holds(text, scene(color_end="blue")) == true


def test_a_claim_about_nothing_and_one_about_rest() -> None:
    still = scene(direction="still", travel=0.0)
    assert all(holds(text, still) for text in ("nothing moves", "nothing changes color", "a red circle stays still"))
    assert not any(holds(text, still) for text in ("something moves", "a circle turns red", "the shape moves left"))


@pytest.mark.parametrize("kind", CLAIM_QUESTIONS)
def test_half_of_the_claims_are_true_and_the_others_wrong_in_one_word(kind: str) -> None:
    rng = np.random.default_rng(0)
    verdicts = []
    for _ in range(1000):
        drawn = random_scene(rng)
        about = claim(kind, drawn, rng)
        text = worded(kind, rng, about=about)
        answer = right_answer(kind, drawn, text)
        assert holds(about, drawn) == (answer == "Yes.") and answer in ("Yes.", "No.")
        assert is_right(kind, drawn, answer, text) and not is_right(kind, drawn, "Yes, no.", text)
        wrong = {about[:end].split()[-1] for end, true in judged(about, drawn) if not true}
        assert len(wrong - {"changes", "turns", "moves"}) <= 1 or not drawn.changes, about
        verdicts.append(answer == "Yes.")
    assert 0.45 < np.mean(verdicts) < 0.55


def test_claims_can_leave_words_out() -> None:
    rng = np.random.default_rng(0)
    texts = [claim("claim", scene(), rng, without=("motion", "moves", "nothing")) for _ in range(200)]
    assert not any(word in text for text in texts for word in ("move", "still", "nothing"))
    assert {len(CLAIMS[kind]) > 9 for kind in CLAIM_QUESTIONS} == {True}
