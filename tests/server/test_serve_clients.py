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
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from serving import QUESTION, Served, data_url, message, serving
from terminal import asked, failed, llvid
from waiting_model import WaitingModel

from llava_video_cli import Chunk, Request, open_model
from llava_video_cli.preset import load_preset
from llava_video_cli.remote import announced
from llava_video_cli.server.auth import Auth
from llava_video_cli.server.responses import ResponseSender


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
        until(lambda: model.batches)
        status, headers, _ = served.send("POST", "/v1/chat/completions", b"{}", {"Content-Type": "application/json"})
        assert status == 429 and int(headers["retry-after"]) >= 1
        connection.close()
        until(lambda: model.stopped)
        until(lambda: served.post({"messages": [message("a")]})[0] == 200)


def test_waiting_requests_share_a_batch_over_http(model: WaitingModel) -> None:
    with serving(model) as served:
        first = opened(served, "wait")
        until(lambda: model.batches)
        answers: dict[str, str] = {}

        def ask(text: str) -> None:
            answers[text] = served.post({"messages": [message(text)]})[1]["choices"][0]["message"]["content"]

        threads = [threading.Thread(target=ask, args=(text,)) for text in "abc"]
        for thread in threads:
            thread.start()
        until(lambda: b"llvid_requests_inside 4.0" in served.service.metrics.text())
        until(lambda: served.service.scheduler.waiting == 3)
        model.go.set()
        for thread in threads:
            thread.join(20)
        assert answers == {text: f"text: {text}" for text in "abc"}
        assert [sorted(batch) for batch in model.batches] == [["wait"], ["a", "b", "c"]]
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
    code, _, err = asked(capsys, str(clip), QUESTION, "--max-new-tokens", "4096")
    line = err.splitlines()[0]
    assert code == 1
    with serving(open_model("demo")) as served:
        status, answer = served.post({"messages": [message(QUESTION, data_url(clip))], "max_tokens": 4096})
    assert (status, answer["error"]["code"]) == (400, "context_length_exceeded")
    assert f"error: {answer['error']['message']}" == line


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


@pytest.mark.parametrize(("end", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_the_program_says_when_it_is_ready_and_finishes_running_answers(
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
    body = json.dumps(
        {"messages": [message("Describe the video.", data_url(clip))], "max_tokens": 2000, "temperature": 9, "seed": 1}
    ).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    with socket.create_connection(("127.0.0.1", int(match[2])), timeout=60) as connection:
        connection.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body)
        metrics = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        until(lambda: "llvid_batch_size_count 1.0" in _got(int(match[2]), metrics))
        os.kill(process.pid, end)
        answer = b""
        while more := connection.recv(65536):
            answer += more
    assert answer.startswith(b"HTTP/1.1 200")
    assert process.wait(60) == code
    assert announced("demo") is None
    out, err = process.communicate()
    assert out == "" and err.splitlines() in ([], ["interrupted"])


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
        "error: llvid serve needs the extra 'serve' (uvicorn is missing)", "hint: pip install 'llava-video-cli[serve]'",
    ]  # fmt: skip


def test_wrong_options_are_reported_before_the_model_is_loaded(tmp_path: Path) -> None:
    assert "needs an API key" in failed(llvid("serve", "-m", "nowhere/nothing", "--host", "0.0.0.0"), 2)
    assert "is not a folder" in failed(llvid("serve", "-m", "demo", "--allow-media-dir", str(tmp_path / "absent")), 2)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        assert f"port {port}: Address already in use" in failed(llvid("serve", "-m", "demo", "--port", port), 1)


def test_a_cancellation_while_an_event_is_sent_is_not_lost() -> None:
    async def stream() -> None:
        async def send(message: object) -> None:  # ends in the loop iteration in which it is cancelled
            if "body" in cast("dict[str, object]", message):
                answering.cancel()

        sender = ResponseSender(send)
        answering = asyncio.ensure_future(sender.send_event({}))
        await asyncio.wait({answering})
        assert answering.cancelled()

    asyncio.run(stream())
