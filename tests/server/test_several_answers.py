"""What the model is asked of a request, and what becomes of the pieces of its answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from serving import Served, events, serving
from waiting_model import USAGE, WaitingModel

from llava_video_cli.conversation import Chunk, Request


class Echo(WaitingModel):
    """Says `so` three times, whatever it is asked, and notes the requests."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Request] = []

    def stream(self, request: Request) -> Iterator[Chunk]:
        self.requests.append(request)
        yield from map(Chunk, ["so", "so "])
        yield Chunk("so", "stop", USAGE)


@pytest.fixture(scope="module")
def echo() -> Echo:
    return Echo()


@pytest.fixture(scope="module")
def served(echo: Echo) -> Iterator[Served]:
    with serving(echo) as running:
        yield running


ASKED = {"messages": [{"role": "user", "content": "Well?"}]}


def test_a_drawn_seed_is_told_and_each_answer_has_its_own(served: Served, echo: Echo) -> None:
    echo.requests.clear()
    told = [served.post(ASKED | {"temperature": 1, "n": 3})[1]["llvid"]["generation"]["seed"] for _ in range(2)]
    assert told[0] != told[1]
    seeds = [each.generation.seed for each in echo.requests]
    assert sorted(map(str, seeds)) == sorted(str(seed + number) for seed in told for number in range(3))
    echo.requests.clear()
    served.post(ASKED | {"temperature": 1, "n": 2, "seed": 2**63 - 1})
    assert {each.generation.seed for each in echo.requests} == {2**63 - 1, 0}


@pytest.mark.parametrize("answers", [1, 2])
def test_of_a_continued_message_only_the_begin_is_left_out(served: Served, answers: int) -> None:
    asked: dict[str, Any] = {
        "messages": [*ASKED["messages"], {"role": "assistant", "content": "so"}], "stream": True, "n": answers,
    }  # fmt: skip
    kinds = {"Content-Type": "application/json"}
    _, _, sent = served.send("POST", "/v1/chat/completions", json.dumps(asked).encode(), kinds)
    texts = [""] * answers
    for event in events(sent):
        for choice in event["choices"]:
            texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == ["so so"] * answers


def test_an_answer_may_be_as_long_as_the_context_allows_and_that_is_told(served: Served, echo: Echo) -> None:
    echo.requests.clear()
    _, answer = served.post(ASKED | {"max_tokens": 150})
    assert echo.requests[0].generation.max_new_tokens == 99
    assert answer["llvid"]["notes"] == ["the context has room for 99 tokens of an answer, not for 150"]
    assert answer["usage"]["max_completion_tokens"] == 99
    _, answer = served.post(ASKED | {"max_tokens": 99})
    assert answer["llvid"]["notes"] == [] and answer["usage"]["max_completion_tokens"] == 99
