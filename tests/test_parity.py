"""The same greedy tokens as the way that transformers documents, on the same frames, for every path."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, LlavaNextVideoForConditionalGeneration

from llava_video_cli import Answer, Frames, Generation, Model, Picture, Request, Sampling, Turn, VideoInfo, open_model
from llava_video_cli.demo import CHECKPOINT

NEW_TOKENS = 16
GREEDY = Generation(max_new_tokens=NEW_TOKENS)


def moving_square(count: int, seed: int = 0, height: int = 96, width: int = 128) -> Frames:
    """A clip as read from a file: a bright square that moves over noise."""
    noise = np.random.default_rng(seed)
    images = noise.integers(0, 80, (count, height, width, 3), dtype=np.uint8)
    for index in range(count):
        left = 10 + index * (width - 50) // max(1, count)
        images[index, 30:60, left : left + 30] = noise.integers(120, 255, 3)
    info = VideoInfo("clip.mp4", float(count), width, height, 1.0, "h264", 0)
    return Frames(images, tuple(float(index) for index in range(count)), info, Sampling(frames=count))


def still(seed: int = 5, height: int = 120, width: int = 200) -> Picture:
    return Picture(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8), "still.png")


VIDEO, OTHER, STILL = moving_square(3), moving_square(3, seed=3), still()
CONVERSATIONS: dict[str, tuple[Turn, ...]] = {
    "video": (Turn("user", "What happens in this video?", (VIDEO,)),),
    "picture": (Turn("user", "What shape is it?", (STILL,)),),
    "both": (Turn("user", "Is it the same shape?", (STILL, VIDEO)),),
    "two videos": (Turn("user", "Which is longer?", (VIDEO, OTHER)),),
    "two turns": (
        Turn("user", "What shape is it?", (VIDEO,)),
        Turn("assistant", "It is a square."),
        Turn("user", "Which way does it move?"),
    ),
}


def checkpoint(name: str, layouts: dict[str, Path]) -> Path:
    return CHECKPOINT if name == "demo" else layouts[name]


@pytest.fixture(scope="module", params=["demo", "vicuna", "mistral", "yi"])
def pair(request: pytest.FixtureRequest, layouts: dict[str, Path]) -> tuple[Model, Any, Any]:
    """Our model of a checkpoint, and transformers' model and processor of the same."""
    folder = checkpoint(request.param, layouts)
    theirs = LlavaNextVideoForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    processor = AutoProcessor.from_pretrained(folder)
    # The documentation says to fill these in where an old checkpoint lacks them.
    processor.patch_size = theirs.config.vision_config.patch_size
    processor.vision_feature_select_strategy = theirs.config.vision_feature_select_strategy
    processor.num_additional_image_tokens = 1
    return open_model(str(folder)), theirs, processor


@cache
def documented_ids(theirs: Any, processor: Any, turns: tuple[Turn, ...]) -> tuple[int, list[int]]:
    """The documented way: chat template, processor, generate. Returns prompt length and new ids."""
    conversation = [
        {
            "role": turn.role,
            "content": [{"type": "image" if isinstance(medium, Picture) else "video"} for medium in turn.media]
            + [{"type": "text", "text": turn.text}],
        }
        for turn in turns
    ]
    text = processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
    media = [medium for turn in turns for medium in turn.media]
    videos = [medium.images for medium in media if isinstance(medium, Frames)]
    images = [medium.pixels for medium in media if isinstance(medium, Picture)]
    inputs = processor(text=text, videos=videos or None, images=images or None, return_tensors="pt")
    output = theirs.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, use_cache=True)
    length = inputs["input_ids"].shape[1]
    return length, output[0, length:].tolist()


def same(answer: Answer, length: int, ids: list[int], tokenizer: Any) -> None:
    assert answer.usage.prompt_tokens == length
    assert answer.usage.generated_tokens == len(ids)
    assert answer.text == tokenizer.decode(ids, skip_special_tokens=True).strip()


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_streamed_answer_equals_the_documented_way(pair: tuple[Model, Any, Any], name: str) -> None:
    from llava_video_cli import join

    model, theirs, processor = pair
    turns = CONVERSATIONS[name]
    length, ids = documented_ids(theirs, processor, turns)
    same(join(model.stream(Request(turns, GREEDY))), length, ids, processor.tokenizer)


def test_batched_answers_equal_the_documented_way(pair: tuple[Model, Any, Any]) -> None:
    model, theirs, processor = pair
    answers = model.answer_all([Request(turns, GREEDY) for turns in CONVERSATIONS.values()])
    for answer, turns in zip(answers, CONVERSATIONS.values(), strict=True):
        same(answer, *documented_ids(theirs, processor, turns), processor.tokenizer)


def test_answers_hang_on_what_is_seen(pair: tuple[Model, Any, Any]) -> None:
    """Parity would mean little if a checkpoint said the same to everything."""
    _, theirs, processor = pair
    seen = {
        tuple(documented_ids(theirs, processor, (Turn("user", "What is it?", (moving_square(1, seed),)),))[1])
        for seed in range(8)
    }
    assert len(seen) > 1


def test_videos_of_different_lengths_share_a_prompt(pair: tuple[Model, Any, Any]) -> None:
    """transformers can't stack them into one tensor; here each is encoded by itself."""
    model = pair[0]
    both = model.answer_all([Request((Turn("user", "Which is longer?", (VIDEO, moving_square(7))),), GREEDY)])[0]
    alone = model.answer_all([Request((Turn("user", "Which is longer?", (VIDEO,)),), GREEDY)])[0]
    frame = (both.usage.prompt_tokens - alone.usage.prompt_tokens) / 7
    assert frame == pytest.approx(144 if alone.usage.prompt_tokens > 300 else 9, abs=1)
