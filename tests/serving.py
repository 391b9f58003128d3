"""The server in this process, on a free port, in a thread of its own."""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llava_video_cli import Model
from llava_video_cli.preset import Preset, load_preset
from llava_video_cli.server.app import app
from llava_video_cli.server.auth import Auth
from llava_video_cli.server.media import MediaSources
from llava_video_cli.server.requests import BodyReader
from llava_video_cli.server.serve import Server, Service, bind, open_service

QUESTION = "What shape is it?"


@dataclass(frozen=True)
class Served:
    """A running server."""

    port: int
    service: Service

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def send(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        """Send a request; return the status, the headers and the body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, {key.lower(): value for key, value in response.getheaders()}, response.read()
        finally:
            connection.close()

    def post(self, values: Any, **headers: str) -> tuple[int, dict[str, Any]]:
        """Ask; return the status and the JSON."""
        kinds = {"Content-Type": "application/json"} | {
            name.replace("_", "-"): value for name, value in headers.items()
        }
        status, _, content = self.send("POST", "/v1/chat/completions", json.dumps(values).encode(), kinds)
        return status, json.loads(content)

    def answer(self, url: str, question: str = QUESTION, **values: Any) -> str:
        """Ask about a medium; return the answer."""
        status, answer = self.post({"messages": [message(question, url)]} | values)
        assert status == 200, answer
        text: str = answer["choices"][0]["message"]["content"]
        return text


class _Server(Server):
    """The server, which looks every 10 ms whether it is to stop."""

    async def main_loop(self) -> None:
        ticks = 0
        while not await self.on_tick(ticks):
            ticks += 1
            await asyncio.sleep(0.01)


@contextmanager
def serving(
    model: Model,
    preset: Preset | None = None,
    auth: Auth | None = None,
    body_reader: BodyReader | None = None,
    sources: MediaSources | None = None,
    head_seconds: float = 20.0,
    connections: int | None = None,
    **options: Any,
) -> Iterator[Served]:
    """Give a running server, which is stopped at the end of the block."""
    service = open_service(model, preset or load_preset("demo"), auth, body_reader, sources, **options)
    bound, ready = bind("127.0.0.1", 0), threading.Event()
    server = _Server(app(service), service, bound, ready.set, 10.0, head_seconds, connections)
    thread = threading.Thread(target=server.serve_until_stopped)
    thread.start()
    assert ready.wait(20)
    try:
        yield Served(bound.getsockname()[1], service)
    finally:
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def message(text: str, *urls: str) -> dict[str, Any]:
    """Return a user's message with media: pictures if their names say so, else videos."""
    kinds = ["image_url" if ".png" in url or "image/" in url[:20] else "video_url" for url in urls]
    parts: list[dict[str, Any]] = [{"type": kind, kind: {"url": url}} for kind, url in zip(kinds, urls, strict=True)]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def data_url(path: Path, kind: str = "video/mp4") -> str:
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def events(content: bytes) -> Sequence[dict[str, Any]]:
    """Return the events of a stream without the last one, [DONE]."""
    lines = [line.removeprefix(b"data: ") for line in content.split(b"\n\n") if line]
    assert lines[-1] == b"[DONE]"
    return [json.loads(line) for line in lines[:-1]]
