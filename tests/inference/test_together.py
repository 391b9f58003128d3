"""Many answers at a time, each streamed: its own text, its own end, its own cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import events, joined
from scenes import OTHER, STILL, VIDEO, checkpoint, moving_square

from llava_video_cli import Frames, Generation, Loading, Picture, Request, Turn, join, open_model
from llava_video_cli.inference import prefix_cache
from llava_video_cli.inference.decode_step import Decoder, PromptBatch
from llava_video_cli.inference.video_model import VideoModel


def asked(text: str, *media: Frames | Picture, **generation: Any) -> Request:
    settings = Generation(**({"max_new_tokens": 12} | generation))
    return Request((Turn("user", text, media or (VIDEO,)),), settings)


@pytest.fixture(scope="module", params=["demo", "vicuna", "mistral", pytest.param("yi", marks=pytest.mark.slow)])
def model(request: pytest.FixtureRequest, layouts: dict[str, Path]) -> VideoModel:
    opened = open_model(str(checkpoint(request.param, layouts)))
    assert isinstance(opened, VideoModel)
    return opened


@pytest.fixture(scope="module")
def vicuna(layouts: dict[str, Path]) -> VideoModel:
    opened = open_model(str(layouts["vicuna"]))
    assert isinstance(opened, VideoModel)
    return opened


MIXED = [
    asked("What happens?"),
    asked("Why?", moving_square(2), max_new_tokens=24),
    asked("Who?", temperature=1.2, seed=3),
    asked("Why?", STILL, max_new_tokens=3),
    asked("Where does it go in the end?", OTHER, max_new_tokens=16),
    asked("What shape is it?", max_new_tokens=1),
    asked("What shape is it?", repetition_penalty=1.5),
    asked("What color is it?", repetition_penalty=1.5),
]


def test_every_answer_is_the_same_as_alone(model: VideoModel) -> None:
    alone = [join(model.stream(request)) for request in MIXED]
    together = joined(events(model, MIXED))
    assert sorted(together) == list(range(len(MIXED)))
    for number, answer in enumerate(alone):
        got = together[number]
        assert (got.text, got.finish_reason) == (answer.text, answer.finish_reason)
        assert got.usage.generated_tokens == answer.usage.generated_tokens <= MIXED[number].generation.max_new_tokens
    assert [answer.text for answer in model.answer_all(MIXED)] == [answer.text for answer in alone]


def test_frames_are_hashed_only_to_be_found_again(monkeypatch: pytest.MonkeyPatch) -> None:
    hashed: list[str] = []
    number_of = prefix_cache.number_of

    def noted(image: Any, kind: str) -> int:
        hashed.append(kind)
        return number_of(image, kind)

    monkeypatch.setattr(prefix_cache, "number_of", noted)
    requests = [asked(text, video) for video in (moving_square(2), moving_square(3)) for text in ("Why?", "Who?")]
    open_model("demo", Loading(prefix_reuse=False)).answer_all(requests)
    assert not hashed
    open_model("demo").answer_all(requests)
    assert hashed == ["frame auto"] * 5, "of each video once"


def test_questions_of_unequal_length_are_computed_together(vicuna: VideoModel, monkeypatch: pytest.MonkeyPatch) -> None:
    videos = [VIDEO, OTHER, moving_square(2)]
    texts = ["Why?", "Where does it go in the end?", "What color is it?"]
    rounds = [[asked(text, video) for text, video in zip(order, videos, strict=True)] for order in (texts, texts[::-1])]
    alone = [join(vicuna.stream(request)).text for requests in rounds for request in requests]
    model = open_model(str(vicuna.name), Loading(conversations=3))
    assert isinstance(model, VideoModel)
    computed: list[list[int]] = []
    prefill = Decoder.prefill

    def counted(decoder: Decoder, cache: Any, batch: PromptBatch, begin: int, **inputs: Any) -> Any:
        computed.append(list(batch.new))
        return prefill(decoder, cache, batch, begin, **inputs)

    monkeypatch.setattr(Decoder, "prefill", counted)
    for _ in range(5):  # a first one may have begun before the others came
        answers = [model.answer_all(requests) for requests in rounds]
        assert [answer.text for each in answers for answer in each] == alone
        assert all(answer.usage.cached_tokens for answer in answers[1]), "of beginnings of unequal length, too"
        if any(len({*new}) == 3 for new in computed):
            return
    raise AssertionError(f"new tokens of those that were computed together: {computed}")


def test_each_answer_has_its_own_end_and_usage(vicuna: VideoModel) -> None:
    requests = [asked(f"{tokens} words?", max_new_tokens=tokens) for tokens in (150, 4, 300, 8)]
    pieces = list(events(vicuna, requests))
    assert [number for number, chunk in pieces if chunk.usage] == [1, 3, 0, 2], "in the order of their ends"
    for number in range(4):
        mine = [chunk for at, chunk in pieces if at == number]
        assert all(chunk.usage is None and chunk.finish_reason is None for chunk in mine[:-1]) and len(mine) > 1
    usages = [joined(pieces)[number].usage for number in (1, 3, 0, 2)]
    assert [usage.generated_tokens for usage in usages] == [4, 8, 150, 300]
    assert all(0 < usage.first_token_seconds < usage.total_seconds for usage in usages)


def test_a_cancelled_answer_ends_without_a_last_chunk(vicuna: VideoModel) -> None:
    limits = {"Why?": 4000, "Who?": 20, "How?": 4000}
    requests = [asked(text, max_new_tokens=limit) for text, limit in limits.items()]
    cancels: list[Callable[[], None]] = []
    pieces: Iterator[tuple[int, Any]] = events(vicuna, requests, cancels)
    chunks = []
    for number, chunk in pieces:
        if number == 1:
            chunks.append(chunk)
            if chunk.usage:
                break
    cancels[0]()
    cancels[2]()
    assert join(chunks).text == join(vicuna.stream(requests[1])).text
    began = time.monotonic()
    assert join(vicuna.stream(asked("Why?"))).usage.generated_tokens == 12
    assert time.monotonic() - began < 5, "nothing else runs"


def test_an_answer_that_comes_while_others_run_does_not_wait_for_them(vicuna: VideoModel) -> None:
    cancels: list[Callable[[], None]] = []
    long = events(vicuna, [asked(text, max_new_tokens=8000) for text in ("Why?", "Who?", "How?")], cancels)
    next(long)
    short = join(vicuna.stream(asked("What color is it?")))
    for cancel in cancels:
        cancel()
    assert short.usage.generated_tokens == 12
    assert all(number in (0, 1, 2) for number, _ in [next(long)])


def test_a_row_that_repeats_itself_ends_without_the_others(vicuna: VideoModel) -> None:
    """A penalty below 1 makes a token likelier each time it comes."""
    repeating = [asked(text, max_new_tokens=200, repetition_penalty=0.3) for text in ("Why?", "Who is it there?")]
    answers = vicuna.answer_all([*repeating, asked("How?")])
    assert [answer.finish_reason for answer in answers] == ["repetition", "repetition", "length"]
    assert all(answer.usage.generated_tokens < 200 for answer in answers)
    for request, answer in zip(repeating, answers, strict=False):
        alone = join(vicuna.stream(request))
        assert (alone.text, alone.finish_reason) == (answer.text, "repetition"), "padding counts as no token"
