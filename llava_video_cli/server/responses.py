"""What goes back to a client: an answer or an error in the form of OpenAI's chat completions, whole or streamed.

Source of the form: https://platform.openai.com/docs/api-reference/chat. What stands under `llvid` is ours.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from ..conversation import FinishReason, Usage
from ..errors import ContextError, LlvidError, MediaError, OutOfMemoryError, UsageError
from ..validation import InputError

_SEND_SECONDS = 60.0  # a client that takes nothing for that long is gone
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
_STATUS = (
    (UsageError, 400, None),
    (MediaError, 400, "invalid_media"),
    (ContextError, 400, "context_length_exceeded"),
    (OutOfMemoryError, 503, "out_of_memory"),
)


class RefusedError(LlvidError):
    """A request that is not answered.

    `status` is the HTTP status, `param` the field that it is about, `code` a word for programs, and `headers` go with
    the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        hint: str | None = None,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message, hint)
        self.status, self.param, self.code, self.headers = status, param, code, headers or {}

    @property
    def form(self) -> dict[str, Any]:
        """The error as OpenAI writes it; `hint`, the next step, is ours."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": error | ({"hint": self.hint} if self.hint else {})}


def refused(error: LlvidError) -> RefusedError:
    """Return any error of ours as a refusal."""
    if isinstance(error, RefusedError):
        return error
    status, code = next(((status, code) for kind, status, code in _STATUS if isinstance(error, kind)), (500, None))
    param = error.field.lstrip(".") if isinstance(error, InputError) else None
    return RefusedError(status, str(error), error.hint, param=param or None, code=code)


@dataclass(frozen=True)
class Form:
    """How the answer to one request is written. `id` and `created` (seconds since 1970) are the same in all parts."""

    id: str
    created: int
    model: str

    def whole(self, text: str, reason: FinishReason, usage: Usage, ours: Mapping[str, Any]) -> dict[str, Any]:
        """Return a whole answer; `ours` is what `llvid` holds besides the usage."""
        choice = {
            "index": 0,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None,
            "finish_reason": _reason(reason),
        }
        return self._head("chat.completion") | {"choices": [choice]} | _costs(reason, usage, ours)

    def piece(self, text: str) -> dict[str, Any]:
        """Return a chunk with a piece of the text."""
        return self._chunk({"content": text})

    def first(self) -> dict[str, Any]:
        """Return the chunk that stands before all text."""
        return self._chunk({"role": "assistant", "content": ""})

    def last(self, reason: FinishReason) -> dict[str, Any]:
        """Return the chunk that ends the text."""
        return self._chunk({}, _reason(reason))

    def costs(self, reason: FinishReason, usage: Usage, ours: Mapping[str, Any]) -> dict[str, Any]:
        """Return the chunk that stands behind all others, without a choice."""
        return self._head("chat.completion.chunk") | {"choices": []} | _costs(reason, usage, ours)

    def _chunk(self, delta: Mapping[str, str], reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return self._head("chat.completion.chunk") | {"choices": [choice]}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def _costs(reason: FinishReason, usage: Usage, ours: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.generated_tokens,
            "total_tokens": usage.prompt_tokens + usage.generated_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
        },
        "llvid": {"finish_reason": reason, "usage": asdict(usage), **ours},
    }


def _reason(reason: FinishReason) -> str:
    return "stop" if reason == "repetition" else reason  # OpenAI has no word for it


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
