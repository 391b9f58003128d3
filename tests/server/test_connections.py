"""Connections that stay open: how many there may be, which are closed, and who is one client."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sized
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, cast

import pytest
from serving import Served, serving
from waiting_model import WaitingModel

from llava_video_cli.server.connections import Connection, Connections, client_of, log_seldom, max_connections

_FEW_DESCRIPTORS = """
import resource, signal, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (512, 512))
from serving import serving
from waiting_model import WaitingModel
with serving(WaitingModel(), log=lambda line: print(line, file=sys.stderr)) as served:
    print(served.port, flush=True)
    signal.pause()
"""


@pytest.fixture
def model() -> Iterator[WaitingModel]:
    waiting = WaitingModel()
    yield waiting
    waiting.go.set()


def idle(port: int, stack: ExitStack, address: str = "127.0.0.1") -> socket.socket:
    """Open a connection that sends nothing."""
    connection = socket.create_connection(("127.0.0.1", port), timeout=20, source_address=(address, 0))
    return stack.enter_context(connection)


def is_closed(connection: socket.socket) -> bool:
    """Whether the server closes a connection."""
    try:
        return connection.recv(1) == b""
    except ConnectionResetError:
        return True


def answers(connection: socket.socket) -> bool:
    """Whether the server answers a request on a connection: it has not closed it."""
    try:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        return connection.recv(12) == b"HTTP/1.1 200"
    except OSError:
        return False


def test_a_new_connection_closes_the_one_that_was_idle_for_the_longest_time(model: WaitingModel) -> None:
    with serving(model, connections=8) as served, ExitStack() as stack:
        first = [idle(served.port, stack, "127.0.0.2") for _ in range(4)]
        second = [idle(served.port, stack, "127.0.0.3") for _ in range(4)]
        assert served.send("GET", "/health")[0] == 200
        assert is_closed(first[0])
        assert answers(first[1]) and answers(second[0])


def test_one_address_has_half_of_the_connections(model: WaitingModel) -> None:
    with serving(model, connections=8) as served, ExitStack() as stack:
        other = idle(served.port, stack, "127.0.0.3")
        many = [idle(served.port, stack, "127.0.0.2") for _ in range(6)]
        assert answers(many[5]), "all were accepted"
        assert is_closed(many[0]) and is_closed(many[1])
        assert answers(many[2]) and answers(other)


def test_a_connection_with_a_running_request_stays(model: WaitingModel) -> None:
    with serving(model, connections=4) as served, ExitStack() as stack:
        busy = [asking(model, served, stack, number) for number in (1, 2)]
        refused = idle(served.port, stack)
        assert refused.recv(1000).startswith(b"HTTP/1.1 503") and is_closed(refused)
        model.go.set()
        assert all(connection.recv(100).startswith(b"HTTP/1.1 200") for connection in busy)


def test_a_client_that_leaves_during_its_request_makes_room(model: WaitingModel) -> None:
    with serving(model, connections=4) as served, ExitStack() as stack:
        for connection in [asking(model, served, stack, number) for number in (1, 2)]:
            connection.close()
        deadline = time.monotonic() + 20
        while not answers(idle(served.port, stack)):
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_connection_is_closed_when_no_head_comes_but_not_during_an_answer(model: WaitingModel) -> None:
    with serving(model, head_seconds=0.3) as served, ExitStack() as stack:
        answered, silent = idle(served.port, stack), idle(served.port, stack)
        answered.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        busy = asking(model, served, stack, 1, '"stream":true,')
        content = b""
        while content.count(b'"content":"."') < 40:  # of which each takes 0.01 seconds
            piece = busy.recv(65536)
            assert piece, "closed before the end of its answer"
            content += piece
        while answered.recv(65536):
            pass
        assert is_closed(silent)


def test_a_head_that_comes_byte_by_byte_has_no_more_time(model: WaitingModel) -> None:
    with serving(model, head_seconds=0.1) as served, ExitStack() as stack:
        slow, start = idle(served.port, stack), time.monotonic()
        with suppress(ConnectionError):
            for byte in b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"x" * 200:
                slow.sendall(bytes([byte]))
                time.sleep(0.02)
        assert time.monotonic() - start < 5


def asking(model: WaitingModel, served: Served, stack: ExitStack, number: int, more: str = "") -> socket.socket:
    """Open a connection whose request is the one of that number, and is being answered."""
    body = f'{{{more}"messages":[{{"role":"user","content":"wait"}}]}}'
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    connection = idle(served.port, stack)
    connection.sendall(f"{head}Content-Type: application/json\r\n\r\n{body}".encode())
    wait_for_requests(model, number, served)
    return connection


def wait_for_requests(model: WaitingModel, count: int, served: Served) -> None:
    deadline = time.monotonic() + 20
    while len(model.asked) + served.service.scheduler.waiting < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_health_answers_under_a_thousand_idle_connections_with_few_descriptors(tmp_path: Path) -> None:
    log, path = tmp_path / "log", os.pathsep.join(filter(None, sys.path))
    with log.open("w") as file, ExitStack() as stack:
        process = subprocess.Popen(
            [sys.executable, "-c", _FEW_DESCRIPTORS], stdout=subprocess.PIPE, stderr=file, text=True,
            env=os.environ | {"PYTHONPATH": path},
        )  # fmt: skip
        stack.callback(process.wait, 30)
        stack.callback(process.terminate)
        assert process.stdout is not None
        stack.enter_context(process.stdout)
        port = int(process.stdout.readline())
        served = Served(port, None)  # type: ignore[arg-type]
        for number in range(1000):
            idle(port, stack, f"127.0.0.{2 + number % 3}")
        start = time.monotonic()
        assert served.send("GET", "/health")[0] == 200
        assert time.monotonic() - start < 5
        assert len(log.read_text()) < 2000


def test_fewer_connections_than_files_may_be_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def most(files: int) -> int:
        monkeypatch.setattr(resource, "getrlimit", lambda _: (files, files))
        return max_connections()

    assert [most(64), most(256), most(1024)] == [8, 128, 768]
    assert 768 < most(2**20) == most(resource.RLIM_INFINITY)


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        (("192.0.2.1", 1), ("192.0.2.1", 2), True),
        (("192.0.2.1", 1), ("192.0.2.2", 1), False),
        (("127.0.0.1", 1), ("127.0.0.1", 2), False),  # programs of one machine, or behind one proxy
        (("2001:db8::1", 1), ("2001:db8::2:1", 2), True),
        (("2001:db8::1", 1), ("2001:db8:0:1::1", 1), False),
        (("::ffff:192.0.2.1", 1), ("192.0.2.1", 2), True),
    ],
)
def test_who_is_one_client(first: tuple[str, int], second: tuple[str, int], same: bool) -> None:
    assert (client_of(first) == client_of(second)) == same


class Peer:
    """A connection without a network."""

    def __init__(self) -> None:
        self.transport, self.is_open = self, True

    def abort(self) -> None:
        self.is_open = False


def opened(connections: Connections, host: str, *, is_idle: bool = True) -> Any:
    """A new connection; None if there is no room for it."""
    peer = cast("Connection", Peer())
    if not connections.add(peer, host):
        return None
    connections.set_idle(peer, is_idle=is_idle)
    return peer


def test_nothing_is_left_of_connections_that_are_gone() -> None:
    """Else each new address would take memory, and an old one would have no room any more."""
    connections = Connections(4)
    for number in range(10):
        for host in ("192.0.2.1", f"198.51.100.{number}"):
            both = [opened(connections, host, is_idle=False) for _ in range(2)]
            assert all(both) and opened(connections, host) is None
            for peer in both:
                connections.remove(peer)
                connections.set_idle(peer, is_idle=True)  # its last answer ends late
    assert [len(each) for each in vars(connections).values() if isinstance(each, Sized)] == [0, 0, 0]


def test_one_that_sends_a_part_of_a_head_stays_the_oldest() -> None:
    connections = Connections(4)
    first, second, third, fourth = (opened(connections, host) for host in ("a", "b", "a", "b"))
    connections.set_idle(first, is_idle=True)
    connections.set_idle(second, is_idle=False)
    assert opened(connections, "c", is_idle=False) and not first.is_open
    assert opened(connections, "b", is_idle=False) and not fourth.is_open and third.is_open
    assert opened(connections, "b") is None and second.is_open, "the others of its address are busy"


def test_a_lack_of_descriptors_is_logged_once_a_minute_and_other_errors_as_usual(
    caplog: pytest.LogCaptureFixture,
) -> None:
    usual: list[Any] = []

    class Loop:
        def default_exception_handler(self, context: dict[str, Any]) -> None:
            usual.append(context["exception"])

    handle, loop = log_seldom(), cast("asyncio.AbstractEventLoop", Loop())
    for number in (errno.EMFILE, errno.ENFILE, errno.EMFILE):
        handle(loop, {"exception": OSError(number, "too many")})
    assert [each.getMessage() for each in caplog.records] == ["no connection is accepted for now: too many"]
    others = [OSError(errno.EIO, "broken"), ValueError("a bug")]
    for error in others:
        handle(loop, {"exception": error})
    assert usual == others and len(caplog.records) == 1
