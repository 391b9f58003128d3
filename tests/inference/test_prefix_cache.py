"""What a new prompt reuses of earlier ones: it changes no answer, and takes no more memory than was asked for."""

from __future__ import annotations

import math
import random
import threading
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from edits import differences
from fakes import wrapped
from scenes import CONVERSATIONS, STILL, VIDEO, checkpoint

from llava_video_cli import (
    Frames,
    Generation,
    Loading,
    Model,
    Picture,
    Request,
    Turn,
    join,
    open_model,
)
from llava_video_cli.errors import OutOfMemoryError
from llava_video_cli.inference.families.llava_next_video import LlavaVideo
from llava_video_cli.inference.kv_cache import KVCache
from llava_video_cli.inference.loader import load
from llava_video_cli.inference.prefix_cache import Prompt, SharedPrefixes, Span, common_tokens

GREEDY = Generation(max_new_tokens=8)


def opened(layouts: dict[str, Path], name: str = "vicuna", reuse: bool = True, conversations: int = 1) -> LlavaVideo:
    model = open_model(str(checkpoint(name, layouts)), Loading(prefix_reuse=reuse, conversations=conversations))
    assert isinstance(model, LlavaVideo)
    return model


def ask(model: Model, text: str, *media: Frames | Picture, system: str | None = None) -> tuple[str, int, int]:
    """The answer, and how many of the prompt's tokens were reused."""
    opening = (Turn("system", system),) if system else ()
    answer = join(model.stream(Request((*opening, Turn("user", text, media)), GREEDY)))
    return answer.text, answer.usage.cached_tokens, answer.usage.prompt_tokens


@pytest.mark.parametrize("name", ["demo", "vicuna", "mistral", "yi"])
def test_any_edits_leave_the_answers_as_they_are(name: str, layouts: dict[str, Path]) -> None:
    reusing, plain = opened(layouts, name), opened(layouts, name, reuse=False)
    wrong, tokens, reused = differences(reusing, plain, 60, random.Random(name))
    assert not wrong
    assert reused > 0.4 * tokens


def test_a_second_question_costs_its_own_tokens(layouts: dict[str, Path]) -> None:
    model = opened(layouts)
    first, cached, tokens = ask(model, "What moves?", VIDEO)
    assert cached == 0
    other, cached, _ = ask(model, "Why?", VIDEO)
    assert 3 * 144 <= cached < tokens
    assert other == ask(opened(layouts, reuse=False), "Why?", VIDEO)[0]
    again, cached, tokens = ask(model, "What moves?", replace(VIDEO, images=VIDEO.images.copy()))
    assert again == first, "other frames of the same content"
    assert 3 * 144 <= cached < tokens
    assert ask(model, "What moves?", VIDEO) == (first, tokens - 1, tokens), "the last token is computed in any case"
    assert ask(model, "What moves?", VIDEO, system="Be kind.")[1] < 10


def test_frames_count_as_far_as_they_are_the_same(layouts: dict[str, Path]) -> None:
    model = opened(layouts)
    before = ask(model, "What moves?", VIDEO)
    changed = VIDEO.images.copy()
    changed[2] = 255 - changed[2]
    _, cached, _ = ask(model, "What moves?", replace(VIDEO, images=changed))
    assert 2 * 144 <= cached < 3 * 144
    assert ask(model, "What moves?", VIDEO)[0] == before[0]


def test_the_switch_turns_it_off(layouts: dict[str, Path]) -> None:
    model = opened(layouts, reuse=False)
    assert [ask(model, "Why?", VIDEO)[1] for _ in range(2)] == [0, 0]
    assert model.cached_bytes == 0


def test_a_reader_that_leaves_leaves_a_cache_that_fits_its_tokens(layouts: dict[str, Path]) -> None:
    model = opened(layouts)
    stream = model.stream(Request((Turn("user", "What moves?", (VIDEO,)),), Generation(max_new_tokens=500)))
    next(stream)
    assert isinstance(stream, Generator)
    stream.close()
    answer, cached, _ = ask(model, "What moves?", VIDEO)
    assert cached > 3 * 144
    assert answer == ask(opened(layouts, reuse=False), "What moves?", VIDEO)[0]


def test_a_run_that_failed_leaves_nothing(layouts: dict[str, Path]) -> None:
    is_full = False

    def call(real: Any, **inputs: Any) -> Any:
        if is_full:
            raise MemoryError
        return real(**inputs)

    model = LlavaVideo("vicuna", wrapped(load(checkpoint("vicuna", layouts), Loading()), call))
    ask(model, "What moves?", VIDEO)
    assert model.cached_bytes > 0
    is_full = True
    with pytest.raises(OutOfMemoryError):
        ask(model, "Why?", VIDEO)
    is_full = False
    assert model.cached_bytes == 0
    assert ask(model, "Why?", VIDEO)[1] == 0


def test_a_batch_gets_the_memory_back(layouts: dict[str, Path]) -> None:
    model = opened(layouts)
    ask(model, "What moves?", VIDEO)
    assert model.cached_bytes > 0
    model.answer_all([Request((Turn("user", text, (VIDEO,)),), GREEDY) for text in ("Why?", "Who?")])
    assert model.cached_bytes == 0


def test_conversations_that_alternate_keep_their_caches(layouts: dict[str, Path]) -> None:
    model, plain = opened(layouts, conversations=2), opened(layouts, reuse=False)
    videos: list[Frames | Picture] = [VIDEO, STILL, replace(VIDEO, images=255 - VIDEO.images)]
    for _ in range(2):
        for medium in videos[:2]:
            assert ask(model, "What moves?", medium)[0] == ask(plain, "What moves?", medium)[0]
    assert all(ask(model, "Why?", medium)[1] > 144 for medium in videos[:2])
    assert ask(model, "Why?", videos[2])[1] < 10 and ask(model, "Why?", videos[1])[1] > 144
    assert ask(model, "Why?", videos[0])[1] < 10, "the oldest of two had to go"
    model.answer_all([Request((Turn("user", text, (VIDEO,)),), GREEDY) for text in ("Why?", "Who?")])
    assert ask(model, "Why?", videos[0])[1] > 144, "a batch leaves them where the memory suffices"


@pytest.mark.parametrize("name", ["demo", "vicuna", "mistral", "yi"])
def test_batches_that_repeat_media_compute_them_once(name: str, layouts: dict[str, Path]) -> None:
    model, plain = opened(layouts, name, conversations=2), opened(layouts, name, reuse=False)
    asked = [
        Request((Turn("user", text, media),), GREEDY)
        for text, media in (
            ("Why?", (VIDEO,)),
            ("Which way does it move in the end?", (STILL, VIDEO)),
            ("Who?", (STILL,)),
        )
    ]
    wanted = [join(plain.stream(one)).text for one in asked]
    orders = [(0, 1), (1, 0), (0, 1, 2), (2, 1, 0), (2, 0, 2, 1)]  # new; repeated; some new; all held; one twice
    reused = []
    for order in orders:
        answers = model.answer_all([asked[number] for number in order])
        assert [answer.text for answer in answers] == [wanted[number] for number in order]
        reused.append([answer.usage.cached_tokens > 0 for answer in answers])
    assert reused == [[False] * 2, [False] * 2, [True, True, False], [True] * 3, [True] * 4]
    assert model.cached_bytes > 0 and model.fits(asked[0]) >= 1
    assert [answer.text for answer in model.answer_all(asked)] == wanted


def test_shared_prefixes_take_a_share_of_the_memory_at_most() -> None:
    shared, cache = SharedPrefixes(3), KVCache(2, 8)
    for layer in cache.layers:
        layer.update(torch.ones(4, 1, 8, 2), torch.ones(4, 1, 8, 2))
    prompts = [Prompt([number] * 8) for number in range(4)]
    shared.keep(prompts, cache, math.inf)
    assert [shared.get(prompt) is not None for prompt in prompts] == [False, True, True, True]
    each = shared.cached_bytes // 3
    assert each == 2 * 2 * 8 * 2 * 4
    shared.keep(prompts, cache, 8 * each)
    assert shared.cached_bytes == 2 * each
    assert len(shared.keep(prompts[:1], cache, each)) == 1
    assert shared.cached_bytes == 2 * each, "one is larger than the share"
    assert shared.keep([], None, 0.0) == [] and shared.cached_bytes == 2 * each, "a cache of another kind"
    shared.clear()
    assert shared.cached_bytes == 0 and not any(shared.get(prompt) for prompt in prompts)


def test_a_second_model_on_the_same_weights_answers_the_same_at_the_same_time(layouts: dict[str, Path]) -> None:
    model = opened(layouts)
    twin = model.with_shared_weights()
    request = Request((Turn("user", "What moves?", (VIDEO,)),), Generation(max_new_tokens=60))
    alone = join(model.stream(request)).text
    pairs = zip(model.stream(request), twin.stream(request), strict=True)  # neither waits for the other's end
    ours, theirs = zip(*pairs, strict=True)
    assert join(ours).text == join(theirs).text == alone
    answers: list[str] = []
    threads = [
        threading.Thread(target=lambda one=one: answers.append(join(one.stream(request)).text)) for one in (model, twin)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert answers == [alone, alone]


@pytest.mark.parametrize("name", ["demo", "vicuna", "mistral", "yi"])
def test_a_batch_on_few_videos_computes_each_once(name: str, layouts: dict[str, Path]) -> None:
    model, plain = opened(layouts, name), opened(layouts, name, reuse=False)
    asked = [
        Request((Turn("user", text, media),), GREEDY)
        for media in ((VIDEO,), (STILL, VIDEO), (STILL,))
        for text in ("What shape is it?", "Which way does it move in the end?", "Why?")
    ] + [Request(turns, GREEDY) for turns in CONVERSATIONS.values()]
    answers = model.answer_all(asked)
    assert [answer.text for answer in answers] == [join(plain.stream(one)).text for one in asked]
    cached = [answer.usage.cached_tokens for answer in answers]
    assert [count > 0 for count in cached[:9]] == [False, True, True] * 3
    assert not any(answer.usage.cached_tokens for answer in plain.answer_all(asked))


def test_adjacent_media_are_distinguished_by_where_they_begin() -> None:
    half = replace(VIDEO, images=VIDEO.images[:1])
    one = Prompt([1] * 9, (Span(0, 3, half), Span(3, 6, half)))
    assert common_tokens(one, Prompt([1] * 9, (Span(0, 3, half), Span(3, 6, half)))) == 9
    assert common_tokens(one, Prompt([1] * 9, (Span(0, 3, half), Span(3, 9, VIDEO)))) == 6
    assert common_tokens(one, Prompt([1] * 9, (Span(0, 9, VIDEO),))) == 3
    assert common_tokens(one, Prompt([1] * 9, (Span(1, 4, half),))) == 0
    assert common_tokens(one, Prompt([1, 1, 2], (Span(0, 3, half),))) == 2
