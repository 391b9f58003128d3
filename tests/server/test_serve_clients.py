"""Clients that disconnect, wait, or send a key; and how the server starts and stops."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, cast

import pytest
from serving import QUESTION, Served, data_url, message, serving
from starlette.requests import ClientDisconnect
from terminal import asked, failed
from waiting_model import WaitingModel

from llava_video_cli import Chunk, Request, open_model
from llava_video_cli.cli.app import run
from llava_video_cli.errors import ContextError
from llava_video_cli.preset import load_preset
from llava_video_cli.remote import announced
from llava_video_cli.server import responses
from llava_video_cli.server.app import app
from llava_video_cli.server.auth import Auth
from llava_video_cli.server.responses import RequestError, ResponseSender
from llava_video_cli.server.serve import open_service


@pytest.fixture
def model() -> Iterator[WaitingModel]:
    waiting = WaitingModel()
    yield waiting
    waiting.go.set()


def opened(served: Served, text: str, **values: object) -> socket.socket:
    """Ask, and leave the connection open."""
    body = json.dumps({"messages": [message(text)]} | values).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    connection = socket.create_connection(("127.0.0.1", served.port), timeout=20)
    connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
    return connection


def until(holds: Callable[[], object], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_disconnects_makes_room(model: WaitingModel, stream: bool) -> None:
    with serving(model, max_requests=1) as served:
        connection = opened(served, "wait", stream=stream)
        until(lambda: model.asked)
        status, headers, _ = served.send("POST", "/v1/chat/completions", b"{}", {"Content-Type": "application/json"})
        assert status == 429 and int(headers["retry-after"]) >= 1
        connection.close()
        until(lambda: model.stopped)
        until(lambda: served.post({"messages": [message("a")]})[0] == 200)


def test_requests_are_answered_beside_each_other_over_http(model: WaitingModel) -> None:
    with serving(model) as served:
        first = opened(served, "wait")
        until(lambda: model.asked)
        for text in "abc":
            answer = served.post({"messages": [message(text)]})[1]["choices"][0]["message"]["content"]
            assert answer == f"text: {text}"
        until(lambda: b"llvid_requests_inside 1.0" in served.service.metrics.text())
        model.go.set()
        first.close()


def test_an_error_in_a_stream_is_its_last_event(model: WaitingModel) -> None:
    with serving(model) as served:
        status, answer = served.post({"messages": [message("too long")], "stream": True})
        assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
        status, answer = served.post({"messages": [message("broken")]})
        assert (status, answer["error"]["type"]) == (500, "server_error")
        assert served.post({"messages": [message("a")]})[0] == 200


def test_a_prompt_that_is_too_long_gets_the_message_of_the_command_line(
    clip: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    question = f"{QUESTION} " * 1000
    code, _, err = asked(capsys, str(clip), question, "--max-new-tokens", "64")
    line = err.splitlines()[0]
    assert code == 1
    with serving(open_model("demo")) as served:
        status, answer = served.post({"messages": [message(question, data_url(clip))], "max_tokens": 64})
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    assert f"error: {answer['error']['message']}" == line
    assert "--" not in answer["error"]["hint"]


def test_a_limit_that_exceeds_the_context_is_an_upper_bound(model: WaitingModel) -> None:
    with serving(model) as served:  # its context has 100 tokens, and each prompt takes one
        for asked_for, allowed in ((50, 50), (99, 99), (4096, 99)):
            status, answer = served.post({"messages": [message("a")], "max_tokens": asked_for})
            assert status == 200 and answer["usage"]["max_completion_tokens"] == allowed
            assert answer["llvid"]["generation"]["max_new_tokens"] == allowed
            notes = answer["llvid"]["notes"]
            assert notes == ([] if asked_for == allowed else [
                "the context has room for 99 tokens of an answer, not for 4096"
            ])  # fmt: skip


@pytest.mark.parametrize(
    ("hint", "expected"),
    [
        (None, None),
        ("take a shorter part of it", "take a shorter part of it"),
        (
            "what fits: --frames 9 or --pool-stride 3 or --max-new-tokens 64",
            "what fits: num_frames 9 or max_tokens 64",
        ),
        ("what fits: --rope-factor 2", "send fewer media, or a shorter text"),
        (
            "fewer --frames, a smaller --max-new-tokens or --quantize 4bit; or close what else takes memory",
            "fewer num_frames or a smaller max_tokens or close what else takes memory",
        ),
    ],
)
def test_hints_have_the_words_of_the_api(hint: str | None, expected: str | None) -> None:
    assert RequestError.of(ContextError("too long", hint)).hint == expected


@pytest.mark.parametrize(
    "values",
    [
        {"seed": 10**400}, {"seed": -(10**400)}, {"max_tokens": 10**400}, {"max_completion_tokens": 2**31},
        {"temperature": 10**400}, {"temperature": 1e-320}, {"temperature": 1e-9, "seed": 1},
        {"sampling": {"fps": 10**400}}, {"sampling": {"start_seconds": 10**400}}, {"sampling": {"frames": 10**400}},
        {"media_io_kwargs": {"video": {"fps": 10**400}}}, {"media_io_kwargs": {"video": {"num_frames": 10**400}}},
        {"repetition_penalty": 1e-320}, {"repetition_penalty": 1e308}, {"top_p": 10**400}, {"top_p": -1e-320},
        {"\ud800": 1}, {"user": 1, "\ud800\udfff\ud800": 1}, {"sampling": {"\ud800": 1}},
        {"model": "\ud800"}, {"stop": ["\ud800"]}, {"tools": ["\ud800"]}, {"media_io_kwargs": {"\ud800": {}}},
    ],
)  # fmt: skip
def test_an_odd_value_is_an_error_of_the_client(demo: Served, values: dict[str, object]) -> None:
    status, answer = demo.post({"messages": [message("hi")]} | values)
    assert status in (400, 404) and answer["error"]["message"]


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": 1e-6}, {"temperature": 1e308}, {"temperature": 1, "top_p": 1e-320}, {"seed": 2**63 - 1},
        {"repetition_penalty": 0.01}, {"repetition_penalty": 100}, {"max_tokens": 2**31 - 1}, {"user": "\ud800"},
        {"temperature": 1, "repetition_penalty": 0.01}, {"temperature": 1e-6, "repetition_penalty": 100},
    ],
)  # fmt: skip
def test_an_extreme_value_is_used(demo: Served, values: dict[str, object]) -> None:
    status, answer = demo.post({"messages": [message("hi")], "max_tokens": 4} | values)
    assert status == 200, answer


@pytest.fixture(scope="module")
def demo() -> Iterator[Served]:
    with serving(open_model("demo")) as served:
        yield served


def test_a_bug_is_counted_and_logged_with_its_traceback(model: WaitingModel, caplog: pytest.LogCaptureFixture) -> None:
    def broken(_: object) -> NoReturn:
        raise ZeroDivisionError("a bug")

    lines: list[str] = []
    with serving(model, log=lines.append) as served:
        object.__setattr__(served.service.scheduler, "submit", broken)
        object.__setattr__(served.service, "model_values", object())
        status, answer = served.post({"messages": [message("a")]})
        assert (status, answer["error"]["type"]) == (500, "server_error")
        assert served.send("GET", "/v1/models")[0] == 500
        counted = served.service.metrics.text().decode()
    assert 'llvid_requests_total{path="/v1/chat/completions",status="500"} 1.0' in counted
    assert 'llvid_requests_total{path="/v1/models",status="500"} 1.0' in counted
    assert [" 500 " in line for line in lines] == [True, True]
    assert "ZeroDivisionError: a bug" in caplog.text and "Traceback" in caplog.text


def test_a_line_of_the_log_is_one_line(model: WaitingModel) -> None:
    lines: list[str] = []
    with serving(model, log=lines.append) as served:
        served.send("GET", "/nothing%0a127.0.0.1%20GET%20/health%20200")
    assert len(lines) == 1 and "\n" not in lines[0] and "%0a" in lines[0]


def test_requests_need_the_api_key(model: WaitingModel) -> None:
    with serving(model, auth=Auth("secret")) as served:
        assert served.post({"messages": [message("a")]}, Authorization="Bearer secret")[0] == 200
        assert served.post({"messages": [message("a")]}, Authorization="Bearer secret", Host="evil.example")[0] == 200
        assert served.post({"messages": [message("a")]})[0] == 401
        assert served.send("GET", "/health")[0] == 200 and served.send("GET", "/metrics")[0] == 401


def test_the_preset_has_the_system_text_unless_a_request_has_one() -> None:
    preset = replace(load_preset("demo"), system="Be brief.")
    seen: list[list[str]] = []

    class Recorder(WaitingModel):
        def stream(self, request: Request) -> Iterator[Chunk]:
            seen.append([turn.text for turn in request.turns])
            return super().stream(request)

    with serving(Recorder(), preset) as served:
        for system in ([], [{"role": "system", "content": "Be kind."}], [{"role": "developer", "content": ""}]):
            assert served.post({"messages": [*system, message("a")]})[0] == 200
    assert seen == [["Be brief.", "a"], ["Be kind.", "a"], ["a"]]


@pytest.mark.parametrize(
    ("end", "code"), [(signal.SIGTERM, 143), pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow)]
)
def test_the_program_says_when_it_is_ready_keeps_16_conversations_and_finishes_running_answers(
    end: signal.Signals, code: int, clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    command = [sys.executable, "-m", "llava_video_cli", "serve", "-m", "demo", "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stderr is not None
    line = process.stderr.readline()
    match = re.search(r"demo answers at (http://127\.0\.0\.1:(\d+))/v1", line)
    assert match, line
    assert announced("demo") == match[1]
    texts = [f"{number}: {QUESTION * 4}" for number in range(16)]
    requests = [{"messages": [message(text)], "max_tokens": 1} for text in texts]
    usages = [_usage(match[1], values) for values in (*requests, *requests)]
    computed = [usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"] for usage in usages[16:]]
    assert computed == [1] * 16, "of each conversation (docs/server.md), only the last token"
    body = json.dumps(
        {"messages": [message("Describe the video.", data_url(clip))], "max_tokens": 2000, "temperature": 9, "seed": 1}
    ).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    with socket.create_connection(("127.0.0.1", int(match[2])), timeout=60) as connection:
        connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        metrics = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        until(lambda: "llvid_batch_size_count 33.0" in _got(int(match[2]), metrics))
        os.kill(process.pid, end)
        answer = b""
        while more := connection.recv(65536):
            answer += more
    assert answer.startswith(b"HTTP/1.1 200")
    assert process.wait(60) == code
    assert announced("demo") is None
    out, err = process.communicate()
    assert out == "" and err.splitlines() in ([], ["interrupted"])


def _usage(url: str, values: object) -> dict[str, Any]:
    asked = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(values).encode())
    asked.add_header("Content-Type", "application/json")
    with urllib.request.urlopen(asked, timeout=60) as response:
        usage: dict[str, Any] = json.load(response)["usage"]
    return usage


def _got(port: int, request: str) -> str:
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall(request.encode())
        answer = b""
        while more := connection.recv(65536):
            answer += more
    return answer.decode()


def test_without_the_extra_it_says_how_to_install_it() -> None:
    code = "import sys; sys.modules['uvicorn'] = None; from llava_video_cli.cli.app import run; run(['serve'])"
    stderr = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False).stderr
    assert stderr.splitlines() == [
        "error: llvid serve needs the extra 'serve' (uvicorn is missing)",
        "hint: pip install '.[serve]' in your clone of llvid",
    ]  # fmt: skip


def test_wrong_options_are_reported_before_the_model_is_loaded(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def serve(*arguments: str) -> subprocess.CompletedProcess[str]:
        code = run(["serve", *arguments])
        return subprocess.CompletedProcess(arguments, code, *capsys.readouterr())

    result = serve("-m", "nowhere/nothing", "--host", "0.0.0.0", "--port", "80")
    assert "needs an API key" in failed(result, 2)
    assert re.search(r"`LLVID_API_KEY=\w{32} llvid serve --host 0\.0\.0\.0`", result.stderr)
    assert re.search(r"docker run -e LLVID_API_KEY=\w{32} -p 80:80 IMAGE serve --host 0\.0\.0\.0`", result.stderr)
    nowhere = ("-m", "nowhere/nothing")
    assert "--allow-origin http://a.example" in serve(*nowhere, "--allow-origin", "http://a.example/").stderr
    assert "is not a folder" in failed(serve(*nowhere, "--allow-media-dir", str(tmp_path / "absent")), 2)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"port {port}: Address already in use" in failed(serve(*nowhere, "--port", port), 1)


def test_a_client_that_leaves_is_logged_as_such() -> None:
    model, lines = WaitingModel(), list[str]()
    with serving(model, log=lines.append) as served:
        body = b'{"messages": [{"role": "user", "content": "wait"}]}'
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        with socket.create_connection(("127.0.0.1", served.port)) as connection:
            connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
            until = time.monotonic() + 20
            while not model.asked and time.monotonic() < until:
                time.sleep(0.01)
        while not lines and time.monotonic() < until:
            time.sleep(0.01)
    assert re.fullmatch(r"127\.0\.0\.1 POST /v1/chat/completions 499 \d+\.\d\ds", "".join(lines))


def test_an_answer_that_is_cut_when_the_server_stops_is_logged_as_such() -> None:
    """uvicorn cancels what is not finished at the end of the grace."""
    model, lines = WaitingModel(), list[str]()
    service = open_service(model, load_preset("demo"), log=lines.append)
    body = json.dumps({"messages": [{"role": "user", "content": "wait"}]}).encode()
    parts = [{"type": "http.request", "body": body}]

    async def receive() -> Any:
        return parts.pop() if parts else await asyncio.sleep(60)

    async def send(_: object) -> None:
        """Take it."""

    async def cut() -> None:
        headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
        path = "/v1/chat/completions"
        scope = {"type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "headers": headers}
        answering = asyncio.ensure_future(app(service)(scope | {"client": ("127.0.0.1", 5)}, receive, send))
        while not model.asked:
            await asyncio.sleep(0.01)
        answering.cancel()
        await asyncio.wait({answering})

    asyncio.run(asyncio.wait_for(cut(), 20))
    service.media_cache.close()
    assert re.fullmatch(r"127\.0\.0\.1 POST /v1/chat/completions 503 \d+\.\d\ds", "".join(lines))


def test_a_client_that_takes_no_data_holds_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """A head waits, too, for a client that has not read its last answer."""
    monkeypatch.setattr(responses, "_SEND_SECONDS", 0.01)

    async def refused(kind: str) -> None:
        async def send(message: Mapping[str, Any]) -> None:
            if message["type"] == kind:
                await asyncio.sleep(60)

        with pytest.raises(ClientDisconnect):
            await asyncio.wait_for(ResponseSender(send).send_json({}), 20)

    for kind in ("http.response.start", "http.response.body"):
        asyncio.run(refused(kind))


def test_a_cancellation_while_an_event_is_sent_is_not_lost() -> None:
    async def stream() -> None:
        async def send(message: object) -> None:  # ends in the loop iteration in which it is cancelled
            if "body" in cast("dict[str, object]", message):
                answering.cancel()

        sender = ResponseSender(send)
        answering = asyncio.ensure_future(sender.send_events([{}]))
        await asyncio.wait({answering})
        assert answering.cancelled()

    asyncio.run(stream())
