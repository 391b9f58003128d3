"""What a new prompt reuses of earlier ones: it changes no answer, and takes no more memory than was asked for."""

from __future__ import annotations

import random
from collections.abc import Generator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
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
from llava_video_cli.inference import device_memory as memory
from llava_video_cli.inference.loader import load
from llava_video_cli.inference.prefix_cache import PrefixCache, Prompt, Span, common_tokens
from llava_video_cli.inference.video_model import VideoModel

GREEDY = Generation(max_new_tokens=8)


def opened(layouts: dict[str, Path], name: str = "vicuna", reuse: bool = True, conversations: int = 1) -> VideoModel:
    model = open_model(str(checkpoint(name, layouts)), Loading(prefix_reuse=reuse, conversations=conversations))
    assert isinstance(model, VideoModel)
    return model


def ask(model: Model, text: str, *media: Frames | Picture, system: str | None = None) -> tuple[str, int, int]:
    """The answer, and how many of the prompt's tokens were reused."""
    opening = (Turn("system", system),) if system else ()
    answer = join(model.stream(Request((*opening, Turn("user", text, media)), GREEDY)))
    return answer.text, answer.usage.cached_tokens, answer.usage.prompt_tokens


@pytest.mark.parametrize(
    ("name", "edits"),
    [
        ("demo", 30),
        ("vicuna", 12),
        *(pytest.param(name, 30, marks=pytest.mark.slow) for name in ("vicuna", "mistral", "yi")),
    ],
)
def test_any_edits_leave_the_answers_as_they_are(name: str, edits: int, layouts: dict[str, Path]) -> None:
    reusing, plain = opened(layouts, name), opened(layouts, name, reuse=False)
    wrong, tokens, reused = differences(reusing, plain, edits, random.Random(name))
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


def test_the_same_frames_fitted_in_another_way_are_others(layouts: dict[str, Path]) -> None:
    model = opened(layouts)
    wide = replace(VIDEO, images=np.repeat(VIDEO.images, 2, axis=2))
    padded = replace(wide, sampling=replace(wide.sampling, fit="pad"))
    cut = ask(model, "What moves?", wide)
    answer, cached, _ = ask(model, "What moves?", padded)
    assert cached < 10 and answer == ask(opened(layouts, reuse=False), "What moves?", padded)[0] != cut[0]


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

    model = VideoModel("vicuna", wrapped(load(checkpoint("vicuna", layouts), Loading()), call))
    ask(model, "What moves?", VIDEO)
    assert model.cached_bytes > 0
    is_full = True
    with pytest.raises(OutOfMemoryError):
        ask(model, "Why?", VIDEO)
    is_full = False
    assert model.cached_bytes == 0
    assert ask(model, "Why?", VIDEO)[1] == 0


def test_conversations_that_alternate_keep_their_caches(layouts: dict[str, Path]) -> None:
    model, plain = opened(layouts, conversations=2), opened(layouts, reuse=False)
    videos: list[Frames | Picture] = [VIDEO, STILL, replace(VIDEO, images=255 - VIDEO.images)]
    for _ in range(2):
        for medium in videos[:2]:
            assert ask(model, "What moves?", medium)[0] == ask(plain, "What moves?", medium)[0]
    assert all(ask(model, "Why?", medium)[1] > 144 for medium in videos[:2])
    assert ask(model, "Why?", videos[2])[1] < 10 and ask(model, "Why?", videos[1])[1] > 144
    assert ask(model, "Why?", videos[0])[1] < 10, "the oldest of two had to go"


def test_as_many_conversations_are_kept_as_memory_has_room_for(
    layouts: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = opened(layouts, conversations=8)
    room = load(checkpoint("vicuna", layouts), Loading()).answer_bytes(512)
    monkeypatch.setattr(memory, "free_bytes", lambda _: 3.5 * room - model.cached_bytes)
    videos = [replace(VIDEO, images=VIDEO.images // number) for number in range(1, 5)]
    for video in videos:
        ask(model, "What moves?", video)
    assert [ask(model, "Why?", video)[1] > 144 for video in reversed(videos)] == [True, True, True, False]


NAMES = ["demo", "vicuna", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mistral", "yi"))]


@pytest.mark.parametrize("name", NAMES)
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
    orders = [(0, 1), (1, 0), (0, 1, 2), (2, 1, 0), (2, 0, 2)]  # new; repeated; one more; all held; one twice
    reused = []
    for order in orders:
        answers = model.answer_all([asked[number] for number in order])
        assert [answer.text for answer in answers] == [wanted[number] for number in order]
        reused.append([answer.usage.cached_tokens > 0 for answer in answers])
    assert reused[:2] == [[False] * 2, [True] * 2]
    assert sum(map(sum, reused[2:])) >= 6, "of nine: which slots are overwritten depends on who comes first"
    assert model.cached_bytes > 0
    assert [answer.text for answer in model.answer_all(asked)] == wanted


@pytest.mark.parametrize("name", NAMES)
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
    assert [count > 0 for count in cached[:9]] == [False, True, True] * 2 + [True] * 3, "the still came before"
    assert not any(answer.usage.cached_tokens for answer in plain.answer_all(asked))


def test_tokens_in_common_are_counted_by_what_is_seen_there() -> None:
    half = replace(VIDEO, images=VIDEO.images[:1])
    one = Prompt([1] * 9, (Span(0, 3, half), Span(3, 6, half)))
    assert common_tokens(one, Prompt([1] * 9, (Span(0, 3, half), Span(3, 6, half)))) == 9
    assert common_tokens(one, Prompt([1] * 9, (Span(0, 3, half), Span(3, 9, VIDEO)))) == 5
    assert common_tokens(one, Prompt([1] * 9, (Span(1, 4, half),))) == 0
    assert common_tokens(one, Prompt([1, 1, 2], (Span(0, 3, half),))) == 3
    assert common_tokens(Prompt([1, 1, 2]), Prompt([1, 1, 3, 4])) == 2
    as_picture = Picture(VIDEO.images[0], "still.png")
    assert common_tokens(Prompt([1] * 3, (Span(0, 3, half),)), Prompt([1] * 3, (Span(0, 3, as_picture),))) == 0
    longer = one.extended([7, 8])
    assert list(longer.ids) == [1] * 9 + [7, 8] and common_tokens(longer, one) == 9


def test_the_slot_that_is_missed_least_is_overwritten_first() -> None:
    cache = PrefixCache()
    for slot, first in ((2, 5), (0, 6), (1, 7)):
        cache[slot] = Prompt([first] * 40)
    assert cache.oldest(range(4)) == 3 and cache.oldest(range(3)) == 2 and cache.oldest(range(2)) == 0
    cache.exchange(0, 2)
    held, count = cache.best(Prompt([6] * 50), same_media=False)
    assert (cache.slot_of(held), count) == (2, 40)
    assert cache.best(Prompt([6] * 40), same_media=False) == (held, 39), "the last token is computed in any case"
    assert cache.best(Prompt([6] * 9 + [1] * 50), same_media=False) == (None, 0), "too few"
    cache.keep_within(2, 100)
    assert 2 not in cache and 1 in cache
