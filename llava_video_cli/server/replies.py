"""What goes back to a client: a document, a stream of events, or a refusal."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from .errors import RefusedError

_SEND_SECONDS = 60.0  # a client that takes nothing for that long is gone


def refusal(error: RefusedError) -> Response:
    """Return a refusal as a response."""
    return JSONResponse(error.form, error.status, error.headers)


class Reply:
    """What is sent back: one JSON document, or a stream of server-sent events.

    Sending raises `ClientDisconnect` where the client takes nothing any more.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 200
        self._streaming = False

    async def whole(self, values: Mapping[str, Any]) -> None:
        """Send a whole answer."""
        body = _json(values)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await self._start(headers)
        await self._body(body, more=False)

    async def begin_stream(self) -> None:
        """Begin a stream."""
        self._streaming = True
        kind, cache = (b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")
        await self._start([kind, cache, (b"x-accel-buffering", b"no")])

    async def event(self, values: Mapping[str, Any]) -> None:
        """Send an event of the stream."""
        await self._body(b"data: " + _json(values) + b"\n\n", more=True)

    async def end_stream(self) -> None:
        """Send OpenAI's mark for the end."""
        await self._body(b"data: [DONE]\n\n", more=False)

    async def refuse(self, error: RefusedError, scope: Scope, receive: Receive) -> None:
        """Say what went wrong; in a stream that has begun, as its last event."""
        self.status = error.status
        if not self._streaming:
            await refusal(error)(scope, receive, self._send)
            return
        with suppress(ClientDisconnect):
            await self._body(b"data: " + _json(error.form) + b"\n\n", more=False)

    async def _start(self, headers: list[tuple[bytes, bytes]]) -> None:
        await self._send({"type": "http.response.start", "status": self.status, "headers": headers})

    async def _body(self, content: bytes, more: bool) -> None:
        message = {"type": "http.response.body", "body": content, "more_body": more}
        # not wait_for: before Python 3.12 it swallows a cancellation that comes as the sending ends
        sending = asyncio.ensure_future(self._send(message))
        try:
            await asyncio.wait({sending}, timeout=_SEND_SECONDS)
            if not sending.done():
                raise ClientDisconnect
            sending.result()
        finally:
            sending.cancel()


def _json(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
