"""Who is answered when, and with whom: a desk with a model whose answers come when the test says so."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from clerk import USAGE, Clerk

from llava_video_cli.conversation import Chunk, Generation, Request, Turn
from llava_video_cli.errors import ContextError, LlvidError, ModelError
from llava_video_cli.server.metrics import Metrics
from llava_video_cli.server.responses import RefusedError
from llava_video_cli.server.scheduler import Desk, Event, Ticket

_PATIENCE_SECONDS = 20.0


@dataclass
class Client:
    """One who asked, and what was delivered."""

    ticket: Ticket
    events: queue.Queue[Event] = field(default_factory=queue.Queue)

    def answer(self) -> str:
        text = ""
        while True:
            event = self.events.get(timeout=_PATIENCE_SECONDS)
            if isinstance(event, LlvidError):
                raise event
            text += event.text
            if event.finish_reason is not None:
                return text

    def first(self) -> Event:
        return self.events.get(timeout=_PATIENCE_SECONDS)


def ask(desk: Desk, text: str, **generation: Any) -> Client:
    events: queue.Queue[Event] = queue.Queue()
    settings = Generation(**generation)
    ticket = Ticket(Request((Turn("user", text),), settings), events.put)
    desk.ask(ticket)
    return Client(ticket, events)


@pytest.fixture
def clerk() -> Clerk:
    return Clerk()


@pytest.fixture
def desk(clerk: Clerk) -> Iterator[Desk]:
    opened = Desk(clerk, Metrics(), most_inside=3)
    yield opened
    opened.close()
    clerk.go.set()


def test_those_who_wait_are_answered_together_if_they_are_of_a_kind(desk: Desk, clerk: Clerk) -> None:
    first = ask(desk, "wait")
    first.first()
    others = [ask(desk, text) for text in "abc"]
    drawn = [ask(desk, text, temperature=1.0, seed=1) for text in "de"]
    longer = ask(desk, "f", max_new_tokens=5)
    strict = ask(desk, "g", repetition_penalty=2.0)
    clerk.go.set()
    asked = [*others, *drawn, longer, strict]
    assert [client.answer() for client in asked] == [f"text: {letter}" for letter in "abcdefg"]
    assert clerk.batches == [["wait"], ["a", "b", "c", "f"], ["d"], ["e"], ["g"]]


def test_an_answer_that_is_wanted_whole_comes_at_once(desk: Desk) -> None:
    events: queue.Queue[Event] = queue.Queue()
    desk.ask(Ticket(Request((Turn("user", "a"),)), events.put, in_pieces=False))
    assert events.get(timeout=_PATIENCE_SECONDS) == Chunk("text: a", "stop", USAGE)


def test_one_that_can_t_be_answered_takes_no_other_down(desk: Desk, clerk: Clerk) -> None:
    clerk.most = 2
    first = ask(desk, "wait")
    first.first()
    others = [ask(desk, text) for text in ("a", "b", "too long", "c", "d")]
    clerk.go.set()
    with pytest.raises(ContextError):
        others[2].answer()
    assert [other.answer() for other in others[:2] + others[3:]] == ["text: a", "text: b", "text: c", "text: d"]


def test_a_bug_of_the_model_is_told_and_the_next_one_answered(desk: Desk) -> None:
    with pytest.raises(LlvidError, match="an error inside the server") as failure:
        ask(desk, "broken").answer()
    assert not isinstance(failure.value, ModelError)
    assert ask(desk, "a").answer() == "text: a"


def test_who_leaves_is_not_answered_and_not_answered_further(desk: Desk, clerk: Clerk) -> None:
    first = ask(desk, "wait")
    first.first()
    second, third = ask(desk, "never asked"), ask(desk, "a")
    desk.leave(second.ticket)
    desk.leave(first.ticket)
    assert third.answer() == "text: a"
    assert clerk.given_up == 1 and clerk.batches == [["wait"], ["a"]]


def test_one_of_a_batch_who_leaves_does_not_end_it(desk: Desk, clerk: Clerk) -> None:
    first = ask(desk, "wait")
    first.first()
    leaver, stayer = ask(desk, "wait 1"), ask(desk, "wait 2")
    desk.leave(first.ticket)
    leaver.first()
    desk.leave(leaver.ticket)
    clerk.go.set()
    assert stayer.answer().startswith("text: ") and clerk.batches[-1] == ["wait 1", "wait 2"]


def test_places_are_bounded_and_free_again(desk: Desk) -> None:
    with desk.place(), desk.place(), desk.place(), pytest.raises(RefusedError) as refusal, desk.place():
        pass
    assert refusal.value.status == 429 and int(refusal.value.headers["retry-after"]) >= 1
    with desk.place():
        pass


def test_after_the_end_who_waits_is_refused_and_who_is_answered_is_not(desk: Desk, clerk: Clerk) -> None:
    first = ask(desk, "wait")
    first.first()
    second = ask(desk, "a")
    desk.close()
    with pytest.raises(RefusedError) as refusal:
        second.answer()
    assert refusal.value.status == 503
    with pytest.raises(RefusedError):
        ask(desk, "b")
    clerk.go.set()
    assert first.answer().endswith("wait")


def test_a_short_answer_does_not_wait_for_a_long_one(clerk: Clerk) -> None:
    desk = Desk(clerk, Metrics(), express=Clerk(), turn_seconds=0.05)
    long = ask(desk, "wait")
    long.first()
    began = time.monotonic()
    assert ask(desk, "a").answer() == "text: a"
    assert time.monotonic() - began >= 0.02  # it would rather have shared the next batch
    clerk.go.set()
    assert long.answer().endswith("wait")
    desk.close()
