"""The same greedy tokens as the way that transformers documents, on the same frames, for every path."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from scenes import CONVERSATIONS, VIDEO, checkpoint, moving_square
from transformers import AutoProcessor, LlavaNextVideoForConditionalGeneration

from llava_video_cli import Answer, Frames, Generation, Model, Picture, Request, Turn, open_model

NEW_TOKENS = 16
GREEDY = Generation(max_new_tokens=NEW_TOKENS)


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


def test_answers_depend_on_the_frames(pair: tuple[Model, Any, Any]) -> None:
    """Parity would mean little if a checkpoint said the same to everything."""
    _, theirs, processor = pair
    answers = (
        documented_ids(theirs, processor, (Turn("user", "What is it?", (moving_square(1, seed),)),))
        for seed in range(8)
    )
    first = next(answers)
    assert any(answer != first for answer in answers)


def test_videos_of_different_lengths_share_a_prompt(pair: tuple[Model, Any, Any]) -> None:
    """transformers can't stack them into one tensor; here each is encoded by itself."""
    model = pair[0]
    both = model.answer_all([Request((Turn("user", "Which is longer?", (VIDEO, moving_square(7))),), GREEDY)])[0]
    alone = model.answer_all([Request((Turn("user", "Which is longer?", (VIDEO,)),), GREEDY)])[0]
    frame = (both.usage.prompt_tokens - alone.usage.prompt_tokens) / 7
    assert frame == pytest.approx(144 if alone.usage.prompt_tokens > 300 else 9, abs=1)
