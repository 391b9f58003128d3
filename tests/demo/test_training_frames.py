"""The training's frames: how they become squares, and where the shape then is; what its dialogues say of a claim."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

from transformers import AutoTokenizer

from llava_video_cli.demo import CHECKPOINT
from llava_video_cli.demo.questions import judged
from llava_video_cli.demo.world import Scene, random_scene, render
from llava_video_cli.video.fit import Fit
from training.architecture import IMAGE_SIZE, video_processor
from training.conversations import Dialogue
from training.data import FITS, Clip, fitted


def wide(**changed: Any) -> Scene:
    rng = np.random.default_rng(3)
    drawn = random_scene(rng, changes=False, largest_side=128, rates=(8,), longest_seconds=1.2)
    red: dict[str, Any] = {"color_start": "red", "color_end": "red", "shade_start": (230, 20, 20)}
    red |= {"shade_end": (230, 20, 20), "shape": "circle", "width": 192, "height": 108, "noise": 0.0}
    return replace(drawn, **red | changed)


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", [(192, 108), (108, 192), (128, 128)])
def test_the_shape_is_where_the_clip_says(fit: Fit, size: tuple[int, int]) -> None:
    x, y = (0.3, 0.6) if fit == "crop" else (1.1 if size[0] > size[1] else 0.4, 1.1 if size[1] > size[0] else 0.4)
    scene = wide(width=size[0], height=size[1], direction="still", travel=0.0, x=x, y=y, radius=0.12)
    square = fitted(render(scene), fit)
    small = video_processor()(videos=[square], do_rescale=False, do_normalize=False, return_tensors="np")
    images = np.asarray(small["pixel_values_videos"][0])
    assert images.shape[1:] == (3, IMAGE_SIZE, IMAGE_SIZE)
    rows, columns = np.nonzero((images[0][0] > 150) & (images[0][1] < 90))
    found = ((columns.mean() + 0.5) / IMAGE_SIZE, (rows.mean() + 0.5) / IMAGE_SIZE)
    assert np.allclose(found, Clip(scene, images, fit).place(0.0), atol=0.02)


def test_padding_has_the_processors_mean_colour_on_both_sides() -> None:
    frames = np.zeros((2, 108, 192, 3), np.uint8)
    square = fitted(frames, "pad")
    assert square.shape == (2, 192, 192, 3)
    assert {tuple(pixel) for pixel in square[:, [0, 41, 150, 191], 7].reshape(-1, 3)} == {(123, 117, 104)}
    assert not square[:, 42:150].any()


def test_a_dialogue_marks_the_words_that_decide_a_claim() -> None:
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    text = "Does the video show a red square that moves left?"
    dialogue = Dialogue("shows", [], [])
    scene = wide(direction="left", travel=0.3)
    dialogue.add(tokenizer, "USER: ", text, "No.", judged(text, scene))
    words = {tokenizer.decode([dialogue.ids[place]]).strip(): true for place, true in dialogue.facts.items()}
    assert words == {"red": True, "square": False, "moves": True, "left": True}
    answer = [token for token, learned in zip(dialogue.ids, dialogue.answers, strict=True) if learned]
    assert tokenizer.convert_ids_to_tokens(answer) == ["ĠNo", ".", "</s>"]
