"""Answers on pretended cards are those of the CPU, and what they cost is bounded: alone, in batches, on two cards."""

from __future__ import annotations

import threading
import time
from collections.abc import Generator, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
from checkpoints import WORDS, make_checkpoint
from pretended_device import Card, PretendedCuda, pretend
from scenes import OTHER, STILL, VIDEO, moving_square, still

from llava_video_cli import Frames, Generation, Loading, Model, Picture, Request, Turn, join, open_model

pytestmark = pytest.mark.cuda_pretended


def asked(text: str, *media: Frames | Picture, **generation: Any) -> Request:
    settings = Generation(**({"max_new_tokens": 10} | generation))
    return Request((Turn("user", text, media or (VIDEO,)),), settings)


MIXED = [
    asked("What happens?"),
    asked("Why?", moving_square(2), max_new_tokens=14),
    asked("Who?", temperature=1.2, seed=3),
    asked("Why?", STILL, max_new_tokens=3),
    asked("Where does it go in the end?", OTHER, max_new_tokens=11),
    asked("What shape is it?", max_new_tokens=1),
    asked("What shape is it?", repetition_penalty=1.5),
    asked("What color is it?", VIDEO, STILL, temperature=0.7, top_p=0.9, seed=5),
    asked("What shape is it?", schema='{"type": "array", "items": {"enum": ["a", 1]}, "maxItems": 4}'),
    asked("What shape is it?", temperature=0.7, top_k=5, presence_penalty=0.5, regex="[a-z]{3,9}", seed=2),
    asked("Does it move?", choices=("Yes", "No", "No, it stays still.")),
    asked("What shape is it?", prefill="It is a ", max_new_tokens=5),
]


def opened(name: str, device: str = "cuda", **loading: Any) -> Model:
    return open_model(name, Loading(device=device, dtype="float32", **loading))


def alone(model: Model, requests: list[Request]) -> list[str]:
    return [join(model.stream(request)).text for request in requests]


def together(model: Model, requests: list[Request]) -> list[str]:
    return [answer.text for answer in model.answer_all(requests)]


@cache
def of_the_cpu(name: str) -> list[str]:
    return alone(opened(name, "cpu"), MIXED)


@pytest.fixture(scope="module")
def vicuna(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(make_checkpoint(tmp_path_factory.mktemp("vicuna"), "vicuna", words=WORDS))


@pytest.fixture(params=[pytest.param("demo", marks=pytest.mark.slow), "vicuna"])
def name(request: pytest.FixtureRequest, vicuna: str) -> str:
    return vicuna if request.param == "vicuna" else "demo"


@pytest.fixture
def cuda() -> Iterator[PretendedCuda]:
    with pretend(Card()) as cards:
        yield cards


def test_answers_are_those_of_the_cpu(name: str) -> None:
    """One, in company, sampled, with a penalty; after others, and again."""
    wanted = of_the_cpu(name)
    with pretend(Card()) as cuda:
        model = opened(name)
        assert model.settings["device"] == "cuda:0"
        assert alone(model, MIXED[::2]) == wanted[::2]
        assert together(model, MIXED) == wanted
        assert name == "demo" or cuda.replays > 10 * cuda.captures > 0


@pytest.mark.slow
@pytest.mark.usefixtures("cuda")
def test_requests_of_many_threads_come_and_go(vicuna: str) -> None:
    """Each thread asks one after the other; every third reader leaves after a piece."""
    wanted = of_the_cpu(vicuna)
    model = opened(vicuna)
    got: dict[int, str] = {}

    def client(first: int) -> None:
        for number in range(first, len(MIXED), 3):
            pieces = model.stream(MIXED[number])
            if number % 3 == 2:
                next(pieces)
                assert isinstance(pieces, Generator)
                pieces.close()
            else:
                got[number] = join(pieces).text

    threads = [threading.Thread(target=client, args=[first]) for first in range(3)]
    for thread in threads:
        thread.start()
        time.sleep(0.1)
    for thread in threads:
        thread.join()
    assert got == {number: text for number, text in enumerate(wanted) if number % 3 != 2}
    assert together(model, MIXED[:6]) == wanted[:6]


def test_an_answer_waits_once_for_each_token(cuda: PretendedCuda, vicuna: str) -> None:
    """Once the frames are encoded and the step is captured: no other wait, and no copy from pageable memory."""
    model, waits = opened(vicuna), []
    for tokens in (24, 14, 24):
        cuda.notes.clear()
        answer = join(model.stream(asked("What happens?", max_new_tokens=tokens)))
        assert answer.usage.generated_tokens == tokens
        waits.append(cuda.counts)
    more = waits[2] - waits[1]
    assert more == {"event wait": 10, "pinned copy": 10}, cuda.notes


def test_frames_are_copied_beside_what_is_computed(cuda: PretendedCuda, vicuna: str) -> None:
    """Pixels lie in pinned memory and travel on a stream of their own: nothing of the vision tower's is awaited."""
    model = opened(vicuna)
    requests = [asked("Why?", moving_square(2, seed)) for seed in range(6)]
    wanted = alone(opened(vicuna, "cpu"), requests[:2])
    cuda.notes.clear()
    answers = model.answer_all(requests)
    assert [answer.text for answer in answers[:2]] == wanted
    of_vision = [(kind, place) for kind, place in cuda.notes if "vision" in place]
    assert [kind for kind, _ in of_vision] == ["pinned copy"] * len(requests), of_vision


def test_what_is_captured_serves_the_next_answers(cuda: PretendedCuda, vicuna: str) -> None:
    model, captures = opened(vicuna), []
    for seed in range(4):
        alone(model, [asked("What happens?", moving_square(2, seed))])
        together(model, [asked("Why?", moving_square(2, seed + each)) for each in (10, 20)])
        captures.append(cuda.captures)
    assert 0 < captures[1] == captures[3] <= 4


def test_cudnn_plans_are_bounded_however_many_answers(
    cuda: PretendedCuda, vicuna: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLVID_CUDNN_ATTENTION", "1")
    model, plans = opened(vicuna), []
    for seed in range(4):
        alone(model, [asked("What happens?", moving_square(2, seed))])
        plans.append(cuda.planned)
    assert plans[1] == plans[3] <= 40


def test_an_answer_goes_on_where_its_step_can_not_be_captured(cuda: PretendedCuda, vicuna: str) -> None:
    wanted = alone(opened(vicuna, "cpu"), [MIXED[1], MIXED[4]])
    cuda.captures_to_fail = 1000
    model = opened(vicuna)
    assert alone(model, [MIXED[1], MIXED[4]]) == wanted == together(model, [MIXED[1], MIXED[4]])
    assert cuda.captures == 0 < 1000 - cuda.captures_to_fail < 5, "it is not tried for each answer"


@pytest.mark.slow
def test_one_failed_capture_does_not_turn_captures_off(cuda: PretendedCuda, vicuna: str) -> None:
    wanted = alone(opened(vicuna, "cpu"), [MIXED[1]])
    cuda.captures_to_fail = 1
    model = opened(vicuna)
    assert [*alone(model, [MIXED[1]]), *alone(model, [MIXED[1]])] == 2 * wanted
    alone(model, [asked("What happens?", moving_square(2, 1), max_new_tokens=40)])  # after some steps it is tried again
    assert cuda.captures > 0 == cuda.captures_to_fail


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> str:
    text = {"num_hidden_layers": 5, "intermediate_size": 6000}  # more than its embeddings, so that it can be shared
    return str(make_checkpoint(tmp_path_factory.mktemp("deep"), "mistral", text=text, words=WORDS))


@pytest.fixture
def two_cards() -> Iterator[PretendedCuda]:
    """Two that can hold a checkpoint together, but neither of them alone."""
    card = Card(used_elsewhere=Card.total_bytes - 480 * 10**6)  # the estimate has 500 MB for the libraries
    with pretend(card, replace(card)) as cards:
        yield cards


def test_two_cards_share_a_model(two_cards: PretendedCuda, deep: str) -> None:
    requests = [
        asked("Why?", moving_square(1), max_new_tokens=6),
        asked("Who?", still(height=20), max_new_tokens=3, temperature=1.2, seed=3),
    ]
    wanted = alone(opened(deep, "cpu"), requests)
    model = opened(deep, frames=3)
    assert model.notes == ("weights in float32 (0.0 GB), shared by cuda:0, cuda:1",)
    assert all(card.allocated_bytes > 10**7 for card in two_cards.cards)
    assert alone(model, requests) == wanted
    assert two_cards.counts["peer copy"] > 0
    peak = join(model.stream(requests[0])).usage.peak_memory_bytes
    assert peak > sum(card.allocated_bytes for card in two_cards.cards) > 1.5 * two_cards.cards[0].allocated_bytes


@pytest.mark.slow
@pytest.mark.usefixtures("two_cards")
def test_two_cards_share_a_batch(deep: str) -> None:
    """Answers of several lengths, about two clips: rows leave, and what they begin with is shared."""
    one, other = moving_square(1), moving_square(1, seed=3)
    requests = [
        asked(*each[:2], max_new_tokens=each[2]) for each in (("Why?", other, 5), ("Who?", one, 8), ("How?", one, 3))
    ]
    wanted = together(opened(deep, "cpu"), requests)
    assert together(opened(deep, frames=3), requests) == wanted


def test_loading_copies_each_tensor_once_and_waits_for_none(cuda: PretendedCuda, vicuna: str) -> None:
    opened(vicuna)
    assert cuda.counts["sync"] == 0 < cuda.counts["pageable copy"] < 200
