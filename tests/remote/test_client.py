"""The bounds of a client: how long it tries, how much it reads, and what it does not ask a proxy for."""

from __future__ import annotations

import queue
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import pytest
from openai_server import OpenAIServer, Reply, error, listed, said

from llava_video_cli import Chunk, ModelError, Request, Turn, join
from llava_video_cli.errors import ServerError
from llava_video_cli.remote import client, open_remote
from llava_video_cli.remote.client import _read_at_most

ASKED = Request((Turn("user", "Well?"),))


def test_a_server_of_this_machine_is_asked_without_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with OpenAIServer(listed(), [said("yes")]).running() as server:
        assert join(open_remote([server.url]).stream(ASKED)).text == "yes"


def test_a_server_that_stays_busy_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_BUSY_SECONDS", 0.1)
    with OpenAIServer(listed(), [error(503, "full"), said("yes")]).running() as server:
        with pytest.raises(ServerError, match="too busy: full"):
            join(open_remote([server.url]).stream(ASKED))
        assert len(server.asked) == 1


@pytest.mark.parametrize(("header", "least", "most"), [("1e9", 30, 36), ("inf", 30, 36), ("-5", 0, 1), ("nan", 0, 1)])
def test_a_pause_that_a_server_asks_for_has_a_bound(
    header: str, least: float, most: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    with OpenAIServer(listed(), [error(429, "full", **{"Retry-After": header}), said("yes")]).running() as server:
        assert join(open_remote([server.url]).stream(ASKED)).text == "yes"
    assert least <= max(pauses) <= most


def test_a_server_that_closes_each_connection_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with OpenAIServer(listed(), [*[Reply(0)] * 8, said("yes")]).running() as server:
        with pytest.raises(ServerError, match="closed the connection"):
            join(open_remote([server.url]).stream(ASKED))
        assert len(server.asked) == 3


def test_no_more_is_read_than_is_kept() -> None:
    read: list[int] = []

    class Endless:
        def iter_raw(self) -> Iterator[bytes]:
            for number in range(1000):
                read.append(number)
                yield b"abc"

    assert _read_at_most(cast("Any", Endless()), 10) == b"abcabcabca" and len(read) == 4


def test_a_server_whose_answer_has_ended_is_free_again() -> None:
    with (
        OpenAIServer(listed(), [said("yes")]).running() as first,
        OpenAIServer(listed(), [said("yes")]).running() as second,
    ):
        model = open_remote([first.url, second.url])
        for _ in range(3):
            join(model.stream(ASKED))
        assert (len(first.asked), len(second.asked)) == (3, 0)


def test_a_request_that_is_cancelled_closes_its_connection() -> None:
    slow = Reply(events=said("on " * 1000).events, pause_seconds=0.01)
    with OpenAIServer(listed(), [slow]).running() as server:
        events: queue.SimpleQueue[object] = queue.SimpleQueue()
        cancel = open_remote([server.url]).submit(ASKED, events.put)
        assert events.get(timeout=20) == Chunk("on")
        cancel()
        assert server.gone.wait(20)


@pytest.mark.parametrize("charset", ["hex", "rot13", "utf-16", "idna"])
def test_an_event_stream_is_utf_8_whatever_its_head_says(charset: str) -> None:
    reply = replace(said("größer"), headers={"Content-Type": f"text/event-stream; charset={charset}"})
    with OpenAIServer(listed(), [reply]).running() as server:
        assert join(open_remote([server.url]).stream(ASKED)).text == "größer"


def test_an_answer_that_is_not_compressed_as_its_head_says_is_an_error() -> None:
    reply = replace(said("yes"), headers={"Content-Encoding": "gzip"})
    with OpenAIServer(listed(), [reply]).running() as server, pytest.raises(ModelError, match="not send an event str"):
        join(open_remote([server.url]).stream(ASKED))


def test_what_only_begins_like_a_mark_of_thinking_is_a_part_of_the_answer() -> None:
    whole = said("a")
    first = whole.events[0].replace(b'"a "', b'"a<thi"')
    with OpenAIServer(listed(), [replace(whole, events=(first, *whole.events[1:]))]).running() as server:
        assert join(open_remote([server.url]).stream(ASKED)).text == "a<thi"
