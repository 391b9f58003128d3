"""A stand-in for an OpenAI-compatible server: it notes what it is asked, and answers in the words of an engine."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

EXCHANGES = Path(__file__).parent / "exchanges"


@dataclass
class Reply:
    """What a request gets: a status with a body, or events; `cut` ends the connection behind them without an end."""

    status: int = 200
    body: bytes = b""
    events: tuple[bytes, ...] = ()
    headers: dict[str, str] = field(default_factory=dict)
    cut: bool = False
    pause_seconds: float = 0.0


@dataclass
class OpenAIServer:
    """`replies` are played one for each question, the last one for ever; `asked` has the bodies that came."""

    models: dict[str, Any]
    replies: list[Reply]
    model_headers: dict[str, str] = field(default_factory=dict)
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    look: Callable[[dict[str, Any]], None] = lambda _: None
    at_once: int = 0
    most_at_once: int = 0
    gone: threading.Event = field(default_factory=threading.Event)
    url: str = ""
    up: bool = True
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def running(self, port: int = 0) -> Iterator[OpenAIServer]:
        server = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        server.daemon_threads = True
        self.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.up = False
            server.shutdown()
            server.server_close()
            thread.join()

    def reply(self, body: dict[str, Any]) -> Reply:
        with self._lock:
            if self.up:
                self.asked.append(body)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            reply = self.replies[max(0, min(len(self.asked), len(self.replies)) - 1)]
        self.look(body)
        return reply

    def end(self) -> None:
        with self._lock:
            self.at_once -= 1


def exchange(name: str, **changes: Any) -> OpenAIServer:
    """Return a server that plays an engine's exchange from a file."""
    played = json.loads((EXCHANGES / f"{name}.json").read_text(encoding="utf-8"))
    events = tuple(event.encode() for event in played["events"])
    reply = Reply(events=events, headers=played.get("headers", {}))
    return OpenAIServer(**{"models": played["models"], "replies": [reply], "model_headers": reply.headers, **changes})


def said(text: str, finish: str = "stop", **last: Any) -> Reply:
    """Return an answer in OpenAI's form, a word an event."""
    words = [f"{word} " for word in text.split(" ")]
    deltas = [{"choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]} for word in words]
    end = {"choices": [{"index": 0, "delta": {}, "finish_reason": finish}]}
    usage = {"choices": [], "usage": {"prompt_tokens": 50, "completion_tokens": len(words), "total_tokens": 99}, **last}
    return Reply(events=tuple(f"data: {json.dumps(value)}\n\n".encode() for value in [*deltas, end, usage]))


def listed(model: str = "a/model", owner: str = "vllm", **more: Any) -> dict[str, Any]:
    """Return the list of a server's models."""
    return {"object": "list", "data": [{"id": model, "object": "model", "created": 0, "owned_by": owner, **more}]}


def error(status: int, message: str, **headers: str) -> Reply:
    body = json.dumps({"error": {"message": message, "type": "invalid_request_error", "code": None}}).encode()
    return Reply(status, body, headers=headers)


def _handler(server: OpenAIServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            server.keys.append(self.headers.get("Authorization"))
            if self.path != "/v1/models":
                self.send_error(404)
                return
            self._whole(Reply(body=json.dumps(server.models).encode(), headers=server.model_headers))

        def do_POST(self) -> None:
            server.keys.append(self.headers.get("Authorization"))
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            reply = server.reply(body)
            try:
                time.sleep(reply.pause_seconds)
                if reply.status == 0 or not server.up:  # nothing at all
                    self.close_connection = True
                elif reply.events or reply.cut:
                    self._streamed(reply)
                else:
                    self._whole(reply)
            except OSError:
                server.gone.set()
            finally:
                server.end()

        def _whole(self, reply: Reply) -> None:
            self.send_response(reply.status)
            for name, value in {"Content-Type": "application/json", **reply.headers}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            self.wfile.write(reply.body)

        def _streamed(self, reply: Reply) -> None:
            self.send_response(200)
            for name, value in {"Content-Type": "text/event-stream; charset=utf-8", **reply.headers}.items():
                self.send_header(name, value)
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for event in reply.events:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
                self.wfile.flush()
                time.sleep(reply.pause_seconds)
            if reply.cut:
                self.close_connection = True
                return
            end = b"data: [DONE]\n\n"
            self.wfile.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(end), end))

        def log_message(self, format: str, *arguments: Any) -> None:
            """Write nothing."""

    return Handler
