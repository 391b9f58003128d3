"""Choices and prefills in requests to the server, from any client and from `--server`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from serving import QUESTION, Served, data_url, events, message, serving

from llava_video_cli import Generation, Model, Request, Sampling, Turn, join, open_model, open_remote, read_frames

pytest.importorskip("uvicorn")
SHOWS = "Does the video show a circle?"


@pytest.fixture(scope="module")
def model() -> Model:
    return open_model("demo")


@pytest.fixture(scope="module")
def served(model: Model) -> Iterator[Served]:
    with serving(model) as running:
        yield running


def content(status_and_answer: tuple[int, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    status, answer = status_and_answer
    assert status == 200, answer
    return answer["choices"][0]["message"]["content"], answer["llvid"]


@pytest.mark.parametrize("choices", [["no", "yes"], "no, yes"])
def test_a_body_has_choices_and_the_answer_their_scores(served: Served, clip: Path, choices: object) -> None:
    text, own = content(served.post({"messages": [message(SHOWS, data_url(clip))], "choices": choices}))
    assert text == "yes" and list(own["scores"]) == ["no", "yes"] and own["scores"]["yes"] > 0.9
    assert own["generation"]["choices"] == ["no", "yes"] and own["finish_reason"] == "stop"


def test_a_stream_tells_the_scores_with_its_end(served: Served, clip: Path) -> None:
    body = {"messages": [message(SHOWS, data_url(clip))], "choices": ["no", "yes"], "stream": True}
    kinds = {"Content-Type": "application/json"}
    _, _, sent = served.send("POST", "/v1/chat/completions", json.dumps(body).encode(), kinds)
    *_, text, last = events(sent)
    assert text["choices"][0]["delta"]["content"] == "yes" and last["choices"][0]["finish_reason"] == "stop"
    assert last["llvid"]["scores"]["yes"] > 0.9


def test_a_last_message_from_the_assistant_is_continued(served: Served, clip: Path) -> None:
    asked = [message(QUESTION, data_url(clip)), {"role": "assistant", "content": "It is"}]
    whole, _ = content(served.post({"messages": asked[:1], "prefill": "It is"}))
    assert whole == "It is a circle."
    rest, own = content(served.post({"messages": asked}))
    assert rest == " a circle." and own["generation"]["prefill"] == "It is"
    body = {"messages": asked, "stream": True}
    _, _, sent = served.send(
        "POST", "/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    pieces = [event["choices"][0]["delta"].get("content", "") for event in events(sent)]
    assert "".join(pieces) == " a circle."


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"choices": ["yes"]}, "from 2 to 100"),
        ({"choices": [True, False]}, "'choices' must be text or a list of texts, got [true, false]"),
        ({"choices": ["a", "b"], "temperature": 0.5}, "temperature must be 0 with choices"),
        ({"choices": ["a", "b"], "stop": ["x"]}, "'stop' can't be used with 'choices'"),
    ],
)
def test_what_makes_no_sense_is_refused(served: Served, clip: Path, more: dict[str, Any], words: str) -> None:
    status, answer = served.post({"messages": [message(SHOWS, data_url(clip))], **more})
    assert status == 400 and words in answer["error"]["message"]


def test_two_prefills_and_an_answer_to_nothing_are_refused(served: Served, clip: Path) -> None:
    begun = {"role": "assistant", "content": "It is"}
    status, answer = served.post({"messages": [message(QUESTION, data_url(clip)), begun], "prefill": "It"})
    assert status == 400 and "not both" in answer["error"]["message"]
    status, answer = served.post({"messages": [begun]})
    assert status == 400


def test_a_remote_model_has_the_scores_of_the_one_behind_it(served: Served, model: Model, clip: Path) -> None:
    remote = open_remote([served.url])
    turns = (Turn("user", SHOWS, (read_frames(clip, Sampling(frames=8)),)),)
    for values in (
        {"choices": ("Yes, it does", "No")},
        {"choices": ("Yes", "Yes.", "No"), "length_normalized": True, "prefill": "Well: "},
        {"prefill": "Well, it "},
    ):
        request = Request(turns, Generation(max_new_tokens=12, **values))
        here, there = join(model.stream(request)), join(remote.stream(request))
        assert there.text == here.text == remote.answer_all([request])[0].text
        assert (here.scores is None) == (there.scores is None) == ("choices" not in values)
        if here.scores is not None and there.scores is not None:
            assert dict(there.scores) == pytest.approx(dict(here.scores), abs=1e-4)
