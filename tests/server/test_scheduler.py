"""Which requests are answered when, and which together, with a model that waits until the test lets it go on."""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from waiting_model import USAGE, WaitingModel

from llava_video_cli.conversation import Chunk, Generation, Request, TokenLogprob, Turn
from llava_video_cli.errors import ContextError, LlvidError, ModelError
from llava_video_cli.model import Event as ModelEvent
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


def test_the_model_gets_so_many_at_a_time_in_their_order(model: WaitingModel) -> None:
    scheduler = Scheduler(model, Metrics(), max_batch=2)
    first = [ask(scheduler, "wait 1"), ask(scheduler, "wait 2")]
    for client in first:
        client.first()
    others = [ask(scheduler, text) for text in "abc"]
    assert scheduler.waiting == 3 and model.asked == ["wait 1", "wait 2"]
    scheduler.cancel(first[0].ticket)
    assert [client.answer() for client in others] == [f"text: {letter}" for letter in "abc"]
    assert model.asked[2:] == ["a", "b", "c"]
    model.go.set()
    assert first[1].answer().endswith("wait 2")


def test_an_answer_that_is_not_streamed_is_delivered_once(scheduler: Scheduler) -> None:
    events: queue.Queue[Event] = queue.Queue()
    scheduler.submit(Ticket(Request((Turn("user", "a"),)), events.put, streamed=False))
    assert events.get(timeout=_PATIENCE_SECONDS) == Chunk("text: a", "stop", USAGE)


def test_a_request_that_fails_takes_no_other_down(scheduler: Scheduler) -> None:
    others = [ask(scheduler, text) for text in ("a", "b", "too long", "c", "d")]
    with pytest.raises(ContextError):
        others[2].answer()
    assert [other.answer() for other in others[:2] + others[3:]] == ["text: a", "text: b", "text: c", "text: d"]


def test_a_bug_in_the_model_is_an_error_and_the_next_request_is_answered(scheduler: Scheduler) -> None:
    with pytest.raises(LlvidError, match="internal server error") as failure:
        ask(scheduler, "broken").answer()
    assert not isinstance(failure.value, ModelError)
    assert ask(scheduler, "a").answer() == "text: a"


def test_a_cancelled_request_is_not_started_and_not_finished(model: WaitingModel) -> None:
    scheduler = Scheduler(model, Metrics(), max_batch=1)
    first = ask(scheduler, "wait")
    first.first()
    second, third = ask(scheduler, "never asked"), ask(scheduler, "a")
    scheduler.cancel(second.ticket)
    scheduler.cancel(first.ticket)
    assert third.answer() == "text: a"
    assert model.asked == ["wait", "a"]
    until = time.monotonic() + _PATIENCE_SECONDS
    while not model.stopped and time.monotonic() < until:
        time.sleep(0.01)
    assert model.stopped == 1


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


def test_after_close_waiting_requests_get_an_error_and_running_ones_finish(model: WaitingModel) -> None:
    scheduler = Scheduler(model, Metrics(), max_batch=1)
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
    with pytest.raises(RequestError) as error, scheduler.admit():
        pass
    assert error.value.status == 503


class ModelByHand(WaitingModel):
    """A model whose answers the test delivers; `submitted` is called while a request is given to it."""

    def __init__(self, submitted: Callable[[], object] = bool) -> None:
        super().__init__()
        self.deliver: list[Callable[[ModelEvent], None]] = []
        self._submitted = submitted

    def submit(
        self, request: Request, deliver: Callable[[ModelEvent], None], in_pieces: bool = True
    ) -> Callable[[], None]:
        del request, in_pieces
        self.deliver.append(deliver)
        self._submitted()
        return self._stop

    def _stop(self) -> None:
        self.stopped += 1


def test_a_request_that_is_cancelled_while_the_model_gets_it_is_stopped() -> None:
    model = ModelByHand(lambda: scheduler.cancel(ticket))
    scheduler = Scheduler(model, Metrics())
    ticket = Ticket(Request((Turn("user", "a"),)), lambda _: None)
    scheduler.submit(ticket)
    assert model.stopped == 1


def test_a_cancelled_request_gets_nothing_more() -> None:
    model = ModelByHand()
    scheduler = Scheduler(model, Metrics())
    client = ask(scheduler, "a")
    scheduler.cancel(client.ticket)
    for event in (Chunk("text"), Chunk("", "stop", USAGE), ModelError("late"), ValueError("a bug")):
        model.deliver[0](event)
    assert client.events.empty()


def test_a_request_that_fails_gives_its_place_to_the_next() -> None:
    model = ModelByHand()
    scheduler = Scheduler(model, Metrics(), max_batch=1)
    first = ask(scheduler, "a")
    ask(scheduler, "b")
    model.deliver[0](ModelError("no"))
    assert isinstance(first.first(), ModelError) and len(model.deliver) == 2


def test_an_answer_that_is_not_streamed_has_the_logprobs_of_all_its_pieces() -> None:
    model, events = ModelByHand(), list[Event]()
    scheduler = Scheduler(model, Metrics())
    scheduler.submit(Ticket(Request((Turn("user", "a"),)), events.append, streamed=False))
    tokens = tuple(TokenLogprob(letter, letter.encode(), -1.0) for letter in "abc")
    for token in tokens:
        model.deliver[0](Chunk(token.token, logprobs=(token,)))
    model.deliver[0](Chunk("", "stop", USAGE))
    assert events == [Chunk("abc", "stop", USAGE, logprobs=tokens)]


def test_a_refused_client_is_told_how_long_the_last_answer_took() -> None:
    model, metrics = ModelByHand(), Metrics()
    scheduler = Scheduler(model, metrics, max_requests=1)
    ticket = Ticket(Request((Turn("user", "a"),)), lambda _: None, arrival_time=time.monotonic() - 30)
    scheduler.submit(ticket)
    model.deliver[0](Chunk("", "stop", USAGE))
    with scheduler.admit():
        assert b"llvid_requests_inside 1.0\n" in metrics.text()
        with pytest.raises(RequestError) as error, scheduler.admit():
            pass
    assert 30 <= int(error.value.headers["retry-after"]) <= 40
    assert b"llvid_requests_inside 0.0\n" in metrics.text()
