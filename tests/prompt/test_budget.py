"""What is known of a checkpoint before its weights are read: the same counts as with them, and what would fit."""

from __future__ import annotations

import json
import random
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from scenes import CONVERSATIONS, STILL, VIDEO, moving_square
from transformers import LlavaNextVideoProcessor

from llava_video_cli import Generation, Loading, Request, Turn, open_model
from llava_video_cli.inference.loader import token_counter
from llava_video_cli.inference.processor import load_processor
from llava_video_cli.prompt.budget import TokenCounter, too_long

TALKED = (
    Turn("system", "Be brief."),
    Turn("user", "日本 <video> </s> é?", (VIDEO, STILL)),
    Turn("assistant", "It is a square."),
    Turn("user", "  And\n\nnow?  ", (moving_square(2),)),
)


@pytest.fixture(scope="module")
def counters(layouts: dict[str, Path]) -> dict[str, TokenCounter]:
    return {name: token_counter(str(folder), Loading()) for name, folder in layouts.items()}


@pytest.mark.parametrize(
    "name", ["demo", "vicuna", pytest.param("vicuna-dpo", marks=pytest.mark.slow), "mistral", "yi", "yi-dpo"]
)
def test_a_request_takes_what_it_takes_with_the_weights(layouts: dict[str, Path], name: str) -> None:
    model = "demo" if name == "demo" else str(layouts[name])
    loaded, counter = open_model(model), token_counter(model, Loading())
    for turns in (*CONVERSATIONS.values(), TALKED):
        request = Request(turns, Generation(max_new_tokens=100))
        budget = counter.budget(request)
        assert budget == loaded.budget(request)
        assert counter.bound(request).prompt_tokens > budget.prompt_tokens
        assert counter.bound(request).media_tokens == budget.media_tokens


def test_a_picture_takes_what_the_processor_counts(layouts: dict[str, Path]) -> None:
    from transformers import LlavaNextVideoConfig

    folder = layouts["vicuna"]
    processor: Any = load_processor(folder, LlavaNextVideoConfig.from_pretrained(folder))
    assert isinstance(processor, LlavaNextVideoProcessor)
    rates, draw = token_counter(str(folder), Loading()).checkpoint.rates, random.Random(3)
    sizes = [(draw.randint(1, 3000), draw.randint(1, 3000)) for _ in range(300)] + [(1, 4000), (4000, 1), (336, 336)]
    for grids in (rates.grids, rates.grids[::-1]):  # of two that keep as much, the order must not decide
        processor.image_processor.image_grid_pinpoints = [list(grid) for grid in grids]
        # transformers has no public name for what a picture takes
        wanted = processor._get_num_multimodal_tokens(image_sizes=sizes)["num_image_tokens"]  # noqa: SLF001
        assert [replace(rates, grids=grids).picture_tokens(*size) for size in sizes] == wanted
        assert max(wanted) > 2800


@pytest.mark.parametrize("text", ["", " " * 999, "日本語" * 99, "\x00\x01" * 99, "<video>" * 99, "w1 w2 w3 " * 99])
def test_a_bound_is_one(counters: dict[str, TokenCounter], text: str) -> None:
    request = Request((Turn("user", text, (VIDEO,)),))
    for counter in counters.values():
        assert counter.bound(request).prompt_tokens >= counter.budget(request).prompt_tokens


def test_a_text_that_cannot_be_counted_counts_nothing(layouts: dict[str, Path], tmp_path: Path) -> None:
    request = Request((Turn("user", "Why?", (VIDEO,)),))
    for number, content in enumerate((None, "{", "[]", json.dumps({"model": {"type": "BPE"}}))):
        folder = tmp_path / str(number)
        shutil.copytree(layouts["yi"], folder)
        (folder / "tokenizer.json").unlink()
        if content is not None:
            (folder / "tokenizer.json").write_text(content)
        counter = token_counter(str(folder), Loading())
        assert not counter.counts_text
        assert counter.budget(request).prompt_tokens == 3 * 144


def test_a_template_that_opens_the_text_itself_opens_it_once(layouts: dict[str, Path], tmp_path: Path) -> None:
    folder, request = tmp_path / "x", Request((Turn("user", "Why?", (VIDEO,)),))
    shutil.copytree(layouts["vicuna"], folder)
    template = "{{ bos_token }}USER: <video>\n{{ messages[0]['content'][1]['text'] }} ASSISTANT:"
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
    budget = token_counter(str(folder), Loading()).budget(request)
    assert budget == open_model(str(folder)).budget(request)
    assert budget == token_counter(str(layouts["vicuna"]), Loading()).budget(request)


def test_a_token_without_a_text_writes_nothing(layouts: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(layouts["vicuna"], tmp_path / "x"))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"bos_token": {"content": None}}))
    counted = []
    for begin in ("{{ bos_token }}", ""):
        template = begin + "USER: <video>\n{{ messages[0]['content'][1]['text'] }} ASSISTANT:"
        (folder / "chat_template.json").write_text(json.dumps({"chat_template": template}))
        counter = token_counter(str(folder), Loading())
        counted.append(counter.budget(Request((Turn("user", "Why?", (VIDEO,)),))).prompt_tokens)
    assert counted[0] == counted[1]


def test_a_template_that_fails_counts_as_the_form_that_takes_its_place(
    layouts: dict[str, Path], tmp_path: Path
) -> None:
    folder, request = tmp_path / "x", Request((Turn("user", "Why?", (VIDEO,)),))
    shutil.copytree(layouts["yi"], folder)
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "{{ raise_exception('no') }}"}))
    assert token_counter(str(folder), Loading()).budget(request) == open_model(str(folder)).budget(request)


def asked(frames: int, tokens: int = 512, videos: int = 1) -> Request:
    clip = moving_square(frames, height=4, width=4) if frames < 4 else moving_square(frames, height=64, width=64)
    return Request((Turn("user", "What happens?", (clip,) * videos),), Generation(max_new_tokens=tokens))


def refused(counter: TokenCounter, request: Request) -> tuple[str, str]:
    error = too_long("34B", counter.checkpoint, counter.budget(request), request.frame_counts)
    return str(error), str(error.hint)


@pytest.mark.parametrize(("frames", "videos", "tokens"), [(32, 1, 512), (200, 1, 512), (32, 3, 100), (27, 1, 400)])
def test_each_way_of_a_hint_helps_alone_and_no_more_than_it_must(
    layouts: dict[str, Path], frames: int, videos: int, tokens: int
) -> None:
    folder = str(layouts["yi"])
    request = asked(frames, tokens, videos)
    message, hint = refused(token_counter(folder, Loading()), request)
    ways = dict(re.findall(r"--([\w-]+) ([\d.]+)", hint))
    assert f"too many frames: {frames * videos};" in message
    fewer = int(ways["frames"])
    assert f"with this question, {fewer * videos} frames" in message
    counter = token_counter(folder, Loading())
    assert (
        counter.budget(asked(fewer, tokens, videos)).left >= 0 > counter.budget(asked(fewer + 1, tokens, videos)).left
    )
    if "pool-stride" in ways:
        stride = int(ways["pool-stride"])
        smaller = max(s for s in (2, 3, 4, 6, 8) if s < stride)
        assert token_counter(folder, Loading(pool_stride=stride)).budget(request).left >= 0
        assert token_counter(folder, Loading(pool_stride=smaller)).budget(request).left < 0
    if "rope-factor" in ways:
        factor = float(ways["rope-factor"])
        assert token_counter(folder, Loading(rope_factor=factor)).budget(request).left >= 0
        assert token_counter(folder, Loading(rope_factor=factor - 1)).budget(request).left < 0
    if "max-new-tokens" in ways:
        answer = int(ways["max-new-tokens"])
        assert counter.budget(asked(frames, answer, videos)).left == 0
    assert ("rope-factor" in ways) == (frames < 200) and ("max-new-tokens" in ways) == (frames == 27)


def test_a_prompt_that_no_number_of_frames_fixes_is_refused_without_frames(layouts: dict[str, Path]) -> None:
    counter = token_counter(str(layouts["yi"]), Loading())
    message, hint = refused(counter, Request((Turn("user", "w7 " * 20000),)))
    assert message.endswith("but the context of 34B has 4,096") and hint == "ask a shorter question"
    message, hint = refused(counter, asked(3, 4000))
    assert "(3 frames)" in message and "--frames" not in hint and "--rope-factor 2" in hint


def test_auto_stretches_as_far_as_llava_next_does(layouts: dict[str, Path]) -> None:
    for layout, frames, tokens, factor in (
        ("yi", 21, 512, 1), ("yi", 22, 512, 2), ("yi", 50, 512, 3), ("yi", 21, 2000, 2), ("vicuna", 32, 512, 2.5),
        ("vicuna", 70, 512, 3), ("mistral", 70, 512, 1),
    ):  # fmt: skip
        counter = token_counter(str(layouts[layout]), Loading())
        assert counter.stretched([counter.budget(asked(frames, tokens))]).checkpoint.rope_factor == factor
