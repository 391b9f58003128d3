"""Which requests are answered when, and which together, with a model that waits until the test lets it go on."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from waiting_model import USAGE, WaitingModel

from llava_video_cli.conversation import Chunk, Generation, Request, Turn
from llava_video_cli.errors import ContextError, LlvidError, ModelError
from llava_video_cli.server.metrics import Metrics
from llava_video_cli.server.responses import RequestError
from llava_video_cli.server.scheduler import Event, Scheduler, Ticket

_PATIENCE_SECONDS = 20.0


@dataclass
class Client:
    """A client: its request, and the events delivered to it."""

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


def ask(scheduler: Scheduler, text: str, **generation: Any) -> Client:
    events: queue.Queue[Event] = queue.Queue()
    settings = Generation(**generation)
    ticket = Ticket(Request((Turn("user", text),), settings), events.put)
    scheduler.submit(ticket)
    return Client(ticket, events)


@pytest.fixture
def model() -> WaitingModel:
    return WaitingModel()


@pytest.fixture
def scheduler(model: WaitingModel) -> Iterator[Scheduler]:
    opened = Scheduler(model, Metrics(), max_requests=3)
    yield opened
    opened.close()
    model.go.set()


def test_waiting_requests_of_one_kind_share_a_batch(scheduler: Scheduler, model: WaitingModel) -> None:
    first = ask(scheduler, "wait")
    first.first()
    others = [ask(scheduler, text) for text in "abc"]
    sampled = [ask(scheduler, text, temperature=1.0, seed=1) for text in "de"]
    longer = ask(scheduler, "f", max_new_tokens=5)
    strict = ask(scheduler, "g", repetition_penalty=2.0)
    model.go.set()
    asked = [*others, *sampled, longer, strict]
    assert [client.answer() for client in asked] == [f"text: {letter}" for letter in "abcdefg"]
    assert model.batches == [["wait"], ["a", "b", "c", "f"], ["d"], ["e"], ["g"]]


def test_an_answer_that_is_not_streamed_is_delivered_once(scheduler: Scheduler) -> None:
    events: queue.Queue[Event] = queue.Queue()
    scheduler.submit(Ticket(Request((Turn("user", "a"),)), events.put, streamed=False))
    assert events.get(timeout=_PATIENCE_SECONDS) == Chunk("text: a", "stop", USAGE)


def test_a_request_that_fails_does_not_fail_its_batch(scheduler: Scheduler, model: WaitingModel) -> None:
    model.max_batch = 2
    first = ask(scheduler, "wait")
    first.first()
    others = [ask(scheduler, text) for text in ("a", "b", "too long", "c", "d")]
    model.go.set()
    with pytest.raises(ContextError):
        others[2].answer()
    assert [other.answer() for other in others[:2] + others[3:]] == ["text: a", "text: b", "text: c", "text: d"]


def test_a_bug_in_the_model_is_an_error_and_the_next_request_is_answered(scheduler: Scheduler) -> None:
    with pytest.raises(LlvidError, match="internal server error") as failure:
        ask(scheduler, "broken").answer()
    assert not isinstance(failure.value, ModelError)
    assert ask(scheduler, "a").answer() == "text: a"


def test_a_cancelled_request_is_not_started_and_not_finished(scheduler: Scheduler, model: WaitingModel) -> None:
    first = ask(scheduler, "wait")
    first.first()
    second, third = ask(scheduler, "never asked"), ask(scheduler, "a")
    scheduler.cancel(second.ticket)
    scheduler.cancel(first.ticket)
    assert third.answer() == "text: a"
    assert model.stopped == 1 and model.batches == [["wait"], ["a"]]


def test_a_batch_goes_on_if_one_of_its_requests_is_cancelled(scheduler: Scheduler, model: WaitingModel) -> None:
    first = ask(scheduler, "wait")
    first.first()
    cancelled, other = ask(scheduler, "wait 1"), ask(scheduler, "wait 2")
    scheduler.cancel(first.ticket)
    cancelled.first()
    scheduler.cancel(cancelled.ticket)
    model.go.set()
    assert other.answer().startswith("text: ") and model.batches[-1] == ["wait 1", "wait 2"]


def test_active_requests_are_bounded(scheduler: Scheduler) -> None:
    with (
        scheduler.admit(),
        scheduler.admit(),
        scheduler.admit(),
        pytest.raises(RequestError) as error,
        scheduler.admit(),
    ):
        pass
    assert error.value.status == 429 and int(error.value.headers["retry-after"]) >= 1
    with scheduler.admit():
        pass


def test_after_close_waiting_requests_get_an_error_and_running_ones_finish(
    scheduler: Scheduler, model: WaitingModel
) -> None:
    first = ask(scheduler, "wait")
    first.first()
    second = ask(scheduler, "a")
    scheduler.close()
    with pytest.raises(RequestError) as error:
        second.answer()
    assert error.value.status == 503
    with pytest.raises(RequestError):
        ask(scheduler, "b")
    model.go.set()
    assert first.answer().endswith("wait")


def test_a_short_answer_does_not_wait_for_a_long_one(model: WaitingModel) -> None:
    scheduler = Scheduler(model, Metrics(), second_model=WaitingModel(), long_batch_seconds=0.05)
    long = ask(scheduler, "wait")
    long.first()
    start = time.monotonic()
    assert ask(scheduler, "a").answer() == "text: a"
    assert time.monotonic() - start >= 0.02  # only after long_batch_seconds
    model.go.set()
    assert long.answer().endswith("wait")
    scheduler.close()
