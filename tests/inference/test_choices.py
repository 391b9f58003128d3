"""Choices: how likely each one is, beside transformers' own logits; alone, in company, and with a prefill."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fakes import Fails
from random_requests import opened
from scenes import OTHER, STILL, VIDEO, checkpoint, moving_square
from test_engine import OTHERS, out_of_memory
from transformers import AutoModelForCausalLM, AutoProcessor, DynamicCache, LlavaNextVideoForConditionalGeneration

from llava_video_cli import Answer, Frames, Generation, Picture, Request, Turn, UsageError, join
from llava_video_cli.demo import CHECKPOINT
from llava_video_cli.errors import ModelError
from llava_video_cli.inference.choices import log_probabilities
from llava_video_cli.inference.decode_step import Decoder
from llava_video_cli.inference.prefix_cache import Prompt
from llava_video_cli.inference.video_model import VideoModel
from llava_video_cli.prompt.continuation import Choices

CHOICES = ("Yes", "No", "a blue square", "Yes, it moves", "It stays still.")  # of one token, of several, a beginning
NEAR = 1e-4


class Reference:
    """transformers' own model and processor, asked for the whole text with each choice at its end."""

    def __init__(self, folder: Path) -> None:
        self.model = LlavaNextVideoForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        self.processor: Any = AutoProcessor.from_pretrained(folder)
        self.processor.patch_size = self.model.config.vision_config.patch_size
        self.processor.vision_feature_select_strategy = self.model.config.vision_feature_select_strategy
        self.processor.num_additional_image_tokens = 1
        ends = self.model.generation_config.eos_token_id
        self.ends = sorted({*(ends if isinstance(ends, list) else [ends]), self.processor.tokenizer.eos_token_id})

    def prompt(self, turns: Sequence[Turn]) -> str:
        conversation = [
            {
                "role": turn.role,
                "content": [{"type": "video" if medium.is_video else "image"} for medium in turn.media]
                + [{"type": "text", "text": turn.text}],
            }
            for turn in turns
        ]
        text: str = self.processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
        return text

    def inputs(self, text: str, turns: Sequence[Turn]) -> Any:
        media = [medium for turn in turns for medium in turn.media]
        videos = [medium.images for medium in media if isinstance(medium, Frames)]
        images = [medium.pixels for medium in media if isinstance(medium, Picture)]
        return self.processor(text=text, videos=videos or None, images=images or None, return_tensors="pt")

    @torch.inference_mode()
    def logprobs(self, turns: Sequence[Turn], choices: Sequence[str], prefill: str = "") -> dict[str, float]:
        prompt = self.prompt(turns)
        space = "" if prompt[-1].isspace() else " "
        begun = self.inputs(prompt + (space + prefill.rstrip() if prefill else ""), turns)["input_ids"].shape[1]
        found: dict[str, float] = {}
        ids: dict[str, list[int]] = {}
        for choice in choices:
            inputs = self.inputs(prompt + space + prefill + choice, turns)
            whole = inputs["input_ids"][0]
            ids[choice] = whole[begun:].tolist()
            logits = self.model(**inputs, logits_to_keep=len(ids[choice]) + 1).logits[0]
            logprobs = logits.double().log_softmax(-1)  # after the prompt, and after each token of the choice
            found[choice] = sum(float(logprobs[at, token]) for at, token in enumerate(ids[choice]))
            found[f"end of {choice}"] = float(logprobs[-1, self.ends].logsumexp(-1))
        for choice in choices:
            if any(other[: len(ids[choice])] == ids[choice] != other for other in ids.values()):
                found[choice] += found[f"end of {choice}"]
        return {choice: found[choice] for choice in choices}


@pytest.fixture(scope="module", params=["demo", "vicuna", "mistral", "yi"])
def pair(request: pytest.FixtureRequest, layouts: dict[str, Path]) -> tuple[VideoModel, Reference]:
    folder = checkpoint(request.param, layouts)
    return opened(folder), Reference(folder)


@pytest.fixture(scope="module")
def demo() -> tuple[VideoModel, Reference]:
    return opened(CHECKPOINT), Reference(CHECKPOINT)


def asked(text: str, media: Sequence[Frames | Picture], choices: Sequence[str], **more: Any) -> Request:
    return Request((Turn("user", text, tuple(media)),), Generation(choices=tuple(choices), **more))


def check(answer: Answer, expected: dict[str, float], total: float = 1.0) -> None:
    assert answer.scores is not None
    assert list(answer.scores) == list(expected) and answer.finish_reason == "stop"
    for choice, logprob in expected.items():
        assert answer.scores.logprobs[choice] == pytest.approx(logprob, abs=NEAR), choice
    share = np.exp(list(expected.values()))
    assert list(answer.scores.values()) == pytest.approx(list(share / share.sum()), abs=1e-3)
    assert sum(answer.scores.values()) == pytest.approx(total)
    assert answer.text == max(expected, key=expected.__getitem__)


def test_each_logprob_is_that_of_transformers_logits(pair: tuple[VideoModel, Reference]) -> None:
    model, reference = pair
    request = asked("What happens in this video?", [VIDEO], CHOICES)
    check(join(model.stream(request)), reference.logprobs(request.turns, CHOICES))
    prefilled = asked("What happens in this video?", [VIDEO], ("square", "still"), prefill="It is a ")
    check(join(model.stream(prefilled)), reference.logprobs(request.turns, ("square", "still"), "It is a "))


def test_pictures_and_prompts_without_media_have_choices_too(demo: tuple[VideoModel, Reference]) -> None:
    model, reference = demo
    several: list[list[Frames | Picture]] = [[STILL], [STILL, VIDEO], []]
    for media in several:
        request = asked("What happens?", media, CHOICES)
        check(join(model.stream(request)), reference.logprobs(request.turns, CHOICES))


def test_videos_with_different_choices_are_scored_together(demo: tuple[VideoModel, Reference]) -> None:
    model, reference = demo
    media: list[list[Frames | Picture]] = [[VIDEO], [OTHER], [moving_square(3, seed=8)], [moving_square(3, seed=9)]]
    requests = [
        asked("Does it move?", each, choices)
        for each, choices in zip(media, (CHOICES, CHOICES[:2], CHOICES[2:], CHOICES[::-1]), strict=True)
    ]
    free = Request((Turn("user", "Does it move?", (moving_square(3, seed=7),)),), Generation(max_new_tokens=5))
    *answers, other = model.answer_all([*requests, free])
    for answer, request in zip(answers, requests, strict=True):
        check(answer, reference.logprobs(request.turns, request.generation.choices))
    assert other.scores is None and other.text == join(model.stream(free)).text


def test_a_choice_that_goes_on_with_a_word_of_the_prefill_is_tokenized_with_it(
    demo: tuple[VideoModel, Reference],
) -> None:
    model, _ = demo
    whole, cut = model.answer_all(
        [
            asked("Which way does it move?", [VIDEO], ("moves left", "moves right"), prefill="It "),
            asked("Which way does it move?", [VIDEO], ("es left", "es right"), prefill="It mov"),
        ]
    )
    assert whole.scores is not None and cut.scores is not None
    assert list(cut.scores.logprobs.values()) == pytest.approx(list(whole.scores.logprobs.values()), abs=NEAR)
    assert list(cut.scores.tokens.values()) == list(whole.scores.tokens.values())
    assert cut.usage.prompt_tokens == whole.usage.prompt_tokens


def test_more_choices_than_one_forward_takes(demo: tuple[VideoModel, Reference]) -> None:
    model, _ = demo
    choices = tuple(
        f"It moves {way} and turns {color}, I think so, {number} times."
        for number, way, color in (
            (n, w, c) for n in range(3) for w in ("left", "right", "up") for c in ("red", "blue", "green")
        )
    )
    videos = [moving_square(3, seed=seed) for seed in range(12)]
    together = model.answer_all([asked("What happens?", [video], choices) for video in videos])
    alone = [join(model.stream(asked("What happens?", [videos[5]], choices[at : at + 9]))) for at in (0, 9, 18)]
    found = together[5].scores
    assert found is not None
    for part in alone:
        assert part.scores is not None
        for choice, logprob in part.scores.logprobs.items():
            assert found.logprobs[choice] == pytest.approx(logprob, abs=NEAR)


def test_an_answer_begins_with_its_prefill(pair: tuple[VideoModel, Reference]) -> None:
    model, reference = pair
    turns = (Turn("user", "What happens in this video?", (VIDEO,)),)
    prompt = reference.prompt(turns)
    text = prompt + ("" if prompt[-1].isspace() else " ") + "A red circle"
    inputs = reference.inputs(text, turns)
    output = reference.model.generate(**inputs, max_new_tokens=9, do_sample=False)[0]
    tokenizer, start = reference.processor.tokenizer, inputs["input_ids"].shape[1]
    before = tokenizer.decode(output[start - 6 : start], skip_special_tokens=True)
    after = tokenizer.decode(output[start - 6 :], skip_special_tokens=True)
    wanted = "A red circle" + after[len(before) :].rstrip()
    request = Request(turns, Generation(max_new_tokens=9, prefill="A red circle "))
    streamed = [chunk.text for chunk in model.stream(request)]
    assert "".join(streamed) == wanted == model.answer_all([request])[0].text
    assert streamed[0].startswith("A red")


def test_length_normalized_scores_are_means_over_tokens(demo: tuple[VideoModel, Reference]) -> None:
    model, _ = demo
    choices = CHOICES
    plain, normalized = model.answer_all(
        [asked("Does it move?", [VIDEO], choices), asked("Does it move?", [VIDEO], choices, length_normalized=True)]
    )
    assert plain.scores is not None and normalized.scores is not None
    assert list(plain.scores.logprobs.values()) == pytest.approx(list(normalized.scores.logprobs.values()), abs=NEAR)
    means = [logprob / plain.scores.tokens[choice] for choice, logprob in plain.scores.logprobs.items()]
    share = np.exp(means)
    assert list(normalized.scores.values()) == pytest.approx(list(share / share.sum()), abs=1e-3)


@pytest.mark.parametrize("kind", OTHERS)
def test_other_kinds_of_layers_compute_each_choice_by_itself(kind: str) -> None:
    """A mask can't keep choices apart in a sliding window or in linear attention."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(OTHERS[kind]()).eval()
    prompt, texts = torch.randint(3, 99, (2, 9)), [[5, 6, 7, 8, 9, 10, 11, 12, 13], [5, 6], [40]]
    choices = Choices(tuple(map(tuple, texts)), (False, True, False))
    decoder, cache = Decoder(model), DynamicCache(config=model.config)
    assert not decoder.takes_masks
    with torch.inference_mode():
        logits = decoder.prefill(
            cache, decoder.batch([Prompt(row) for row in prompt.tolist()], [0, 0]), 0, input_ids=prompt
        )
        for _ in range(2):  # the prompt's cache stays as it is
            got = log_probabilities(decoder, cache, 9, logits, [choices, choices], (1, 2))
            for row in range(2):
                for ids, has_end, total in zip(texts, choices.has_end, got[row].tolist(), strict=True):
                    whole = torch.tensor([[*prompt[row].tolist(), *ids]])
                    all_logprobs = model(whole).logits[0].log_softmax(-1)
                    wanted = sum(float(all_logprobs[8 + at, token]) for at, token in enumerate(ids))
                    wanted += float(all_logprobs[-1, [1, 2]].logsumexp(-1)) if has_end else 0.0
                    assert total == pytest.approx(wanted, abs=NEAR)


def test_choices_take_over_the_frames_of_an_earlier_question() -> None:
    model, reference = opened(CHECKPOINT), Reference(CHECKPOINT)
    for number, text in enumerate(("Does it move?", "Is it red?", "Is it a square?")):
        request = asked(text, [VIDEO], CHOICES)
        answer = join(model.stream(request))
        check(answer, reference.logprobs(request.turns, CHOICES))
        assert (answer.usage.cached_tokens > 0) == (number > 0)


def test_choices_survive_where_memory_runs_out(demo: tuple[VideoModel, Reference]) -> None:
    model, _ = demo
    requests = [asked("Does it move?", [moving_square(3, seed=seed)], CHOICES) for seed in range(6)]
    wanted = model.answer_all(requests)
    most = 3
    fails = Fails(CHECKPOINT, lambda rows: rows > most, out_of_memory)
    for _ in range(2):
        for answer, right in zip(fails.model.answer_all(requests), wanted, strict=True):
            assert answer.scores is not None and right.scores is not None
            assert dict(answer.scores) == pytest.approx(dict(right.scores), abs=1e-4)
    assert max(fails.rows) > most


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"choices": ("Yes",)}, "from 2 to 100"),
        ({"choices": ("Yes", "Yes")}, "appears twice"),
        ({"choices": ("Yes", " ")}, "is empty"),
        ({"choices": "a,b", "temperature": 0.5}, "temperature must be 0 with choices"),
        ({"choices": "a,b", "repetition_penalty": 1.1}, "repetition_penalty must be 1 with choices"),
        ({"length_normalized": True}, "needs choices"),
    ],
)
def test_choices_that_make_no_sense_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Generation(**values)


def test_choices_that_are_the_same_tokens_are_an_error_of_that_request(demo: tuple[VideoModel, Reference]) -> None:
    model, _ = demo
    with pytest.raises(ModelError, match="the same to the tokenizer"):
        join(model.stream(asked("Does it move?", [VIDEO], ("Yes", "Yes "))))
