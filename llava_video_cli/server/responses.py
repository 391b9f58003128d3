"""What the server sends back: answers and errors in the form of OpenAI's chat completions, whole or streamed.

Source of the form: https://platform.openai.com/docs/api-reference/chat. The field `llvid` is ours.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from ..conversation import Chunk, Scores, TokenLogprob, Usage
from ..errors import ContextError, GrammarError, LlvidError, MediaError, MissingExtraError, OutOfMemoryError, UsageError
from ..prompt.budget import AS_ONE_VIDEO
from ..validation import InputError
from ..video.limits import RAISE_HINT

CLOSE = {"connection": "close"}  # the header for errors after which the rest of a request is not read
_SEND_SECONDS = 60.0  # a client that accepts no data for this long counts as disconnected
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}
# The field of a request for an option of the command line. Other options are for those who start the server.
_FIELDS = {"--frames": "num_frames", "--max-new-tokens": "max_tokens"}
_STATUS = (
    (UsageError, 400, None),
    (MissingExtraError, 400, "missing_extra"),  # not 501: clients try errors of servers again
    (MediaError, 400, "invalid_media"),
    (ContextError, 400, "context_length_exceeded"),
    (GrammarError, 400, None),
    (OutOfMemoryError, 503, "out_of_memory"),
)


class RequestError(LlvidError):
    """A request that gets an error instead of an answer.

    `status` is the HTTP status, `param` the field of the request that is wrong, and `code` names the error for
    programs. `headers` are sent with it.
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

    @classmethod
    def of(cls, error: LlvidError) -> RequestError:
        """Return any error of the package with its HTTP status."""
        if isinstance(error, RequestError):
            return error
        status, code = next(((status, code) for kind, status, code in _STATUS if isinstance(error, kind)), (500, None))
        param = error.field.lstrip(".") if isinstance(error, InputError) else None
        return cls(status, str(error), hint_for_clients(error.hint), param=param or None, code=code)

    @property
    def values(self) -> dict[str, Any]:
        """The JSON values, as OpenAI writes an error; `hint`, the next step, is ours."""
        kind = _TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        error = {"message": str(self), "type": kind, "param": self.param, "code": self.code}
        return {"error": error | ({"hint": self.hint} if self.hint else {})}

    def response(self) -> Response:
        """Return the whole HTTP response."""
        return Response(_json(self.values), self.status, self.headers, "application/json")


class AnswerForm(Protocol):
    """How answers to a request are written: whole, or as the events of a stream.

    `extra` is what the field `llvid` holds besides the usage. A last chunk has the reason and the usage, and in `whole`
    the whole text.
    """

    done_mark: ClassVar[bool]
    names_events: ClassVar[bool]

    def whole(self, answers: Sequence[Chunk], extra: Mapping[str, Any]) -> dict[str, Any]:
        """Return all answers, which are whole."""

    def begin(self, extra: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
        """Yield the events before the text."""

    def piece(self, index: int, chunk: Chunk) -> Iterable[dict[str, Any]]:
        """Yield the events of a piece of an answer, also of the last one."""

    def end(self, last: Sequence[Chunk], extra: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
        """Yield the events behind all text; `last` has the last chunk of each answer."""


@dataclass(frozen=True)
class ChatForm:
    """Chat completions. `id` and `created` (seconds since 1970) are the same in all chunks."""

    id: str
    created: int
    model: str
    answers: int = 1
    include_usage: bool = False
    has_logprobs: bool = False
    done_mark: ClassVar[bool] = True
    names_events: ClassVar[bool] = False

    def whole(self, answers: Sequence[Chunk], extra: Mapping[str, Any]) -> dict[str, Any]:
        """Return all answers."""
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": chunk.text, "refusal": None},
                "logprobs": self._logprobs(chunk),
                "finish_reason": _openai_reason(chunk),
            }
            for index, chunk in enumerate(answers)
        ]
        return self._head("chat.completion") | {"choices": choices} | _usage_values(answers, extra)

    def begin(self, extra: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
        """Yield the chunk before the text of each answer."""
        del extra
        for index in range(self.answers):
            yield self._chunk(index, {"role": "assistant", "content": ""})

    def piece(self, index: int, chunk: Chunk) -> Iterable[dict[str, Any]]:
        """Yield a chunk with a piece of the text, and the chunk that ends it, with the scores of choices."""
        if chunk.text or chunk.logprobs:
            yield self._chunk(index, {"content": chunk.text}, self._logprobs(chunk))
        if chunk.finish_reason is not None:
            own = score_values(chunk.scores)
            yield self._chunk(index, {}, None, _openai_reason(chunk)) | ({"llvid": own} if own else {})

    def end(self, last: Sequence[Chunk], extra: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
        """Yield the chunk with the usage, which has no choice, if it is wanted."""
        if self.include_usage:
            yield self._head("chat.completion.chunk") | {"choices": []} | _usage_values(last, extra)

    def _logprobs(self, chunk: Chunk) -> dict[str, Any] | None:
        if not self.has_logprobs:
            return None
        return {"content": [logprob_values(each) for each in chunk.logprobs], "refusal": None}

    def _chunk(
        self, index: int, delta: Mapping[str, str], logprobs: dict[str, Any] | None = None, reason: str | None = None
    ) -> dict[str, Any]:
        choice = {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}
        return self._head("chat.completion.chunk") | {"choices": [choice]}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}


def logprob_values(each: TokenLogprob) -> dict[str, Any]:
    """Return a token's probability as OpenAI writes it."""
    return _token_values(each) | {"top_logprobs": list(map(_token_values, each.top))}


def _token_values(each: TokenLogprob) -> dict[str, Any]:
    return {"token": each.token, "logprob": each.logprob, "bytes": list(each.content)}


class ResponseSender:
    """Sends one JSON document, or a stream of server-sent events.

    Its methods raise `ClientDisconnect` if the client does not accept the data.
    """

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = 200
        self.is_streaming = self._names_events = False

    async def send_json(self, values: Mapping[str, Any]) -> None:
        """Send a whole response."""
        body = _json(values)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await self._send_head(headers)
        await self._send_body(body, more=False)

    async def begin_stream(self, *, names_events: bool) -> None:
        """Begin a stream, whose events may have their `type` as their name."""
        self.is_streaming, self._names_events = True, names_events
        kind, cache = (b"content-type", b"text/event-stream; charset=utf-8"), (b"cache-control", b"no-cache")
        await self._send_head([kind, cache, (b"x-accel-buffering", b"no")])

    async def send_events(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Send events of the stream."""
        for values in events:
            await self._send_body(self._event(values), more=True)

    async def end_stream(self, *, done_mark: bool) -> None:
        """End the stream, with OpenAI's end mark if its form has one."""
        await self._send_body(b"data: [DONE]\n\n" if done_mark else b"", more=False)

    async def send_error(self, error: RequestError, scope: Scope, receive: Receive) -> None:
        """Send an error; if a stream has begun, as its last event."""
        self.status = error.status
        if not self.is_streaming:
            await error.response()(scope, receive, self._send)
            return
        values = error.values
        if self._names_events:
            values = {"type": "error", **{name: values["error"][name] for name in ("code", "message", "param")}}
        with suppress(ClientDisconnect):
            await self._send_body(self._event(values), more=False)

    def _event(self, values: Mapping[str, Any]) -> bytes:
        name = f"event: {values['type']}\n".encode() if self._names_events else b""
        return name + b"data: " + _json(values) + b"\n\n"

    async def _send_head(self, headers: list[tuple[bytes, bytes]]) -> None:
        # a client that has not read its last answer can keep a head waiting
        await self._send_in_time({"type": "http.response.start", "status": self.status, "headers": headers})

    async def _send_body(self, content: bytes, more: bool) -> None:
        await self._send_in_time({"type": "http.response.body", "body": content, "more_body": more})

    async def _send_in_time(self, message: dict[str, Any]) -> None:
        # not wait_for: before Python 3.12 it loses a cancellation that arrives when the sending ends
        sending = asyncio.ensure_future(self._send(message))
        try:
            await asyncio.wait({sending}, timeout=_SEND_SECONDS)
            if not sending.done():
                raise ClientDisconnect
            sending.result()
        finally:
            sending.cancel()


def score_values(scores: Scores | None) -> dict[str, Any]:
    """Return what the field `llvid` says of the choices: their probabilities, and what these are made of."""
    if scores is None:
        return {}
    return {"scores": dict(scores), "logprobs": dict(scores.logprobs), "choice_tokens": dict(scores.tokens)}


def hint_for_clients(hint: str | None) -> str | None:
    """Return a hint with the fields of a request in place of options, without what only the server's user can do."""
    if hint and AS_ONE_VIDEO in hint:
        others = hint.replace(AS_ONE_VIDEO, "").removesuffix("; or ")
        as_video = 'send the pictures as one video: {"type": "video", "video": [URL, ...]}'
        return "; or ".join(filter(None, (hint_for_clients(others or None), as_video)))
    if hint and RAISE_HINT in hint:
        return "; ".join(way for way in hint.split("; ") if RAISE_HINT not in way) or "send a smaller one"
    if hint is None or "--" not in hint:
        return hint
    head, colon, ways = hint.rpartition(": ")
    kept = []
    for way in re.split(", | or |; or ", ways):
        words = [_FIELDS.get(word, word) for word in way.split()]
        if not any(word.startswith("--") for word in words):
            kept.append(" ".join(words))
    return head + colon + " or ".join(kept) if kept else "send fewer media, or a shorter text"


def usage_of(answers: Sequence[Chunk]) -> Usage:
    """Return what all answers to one prompt cost together, the prompt once."""
    usages = [each.usage for each in answers if each.usage is not None]
    return replace(usages[0], generated_tokens=sum(each.generated_tokens for each in usages))


def _usage_values(answers: Sequence[Chunk], extra: Mapping[str, Any]) -> dict[str, Any]:
    usage = usage_of(answers)
    return {
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.generated_tokens,
            "total_tokens": usage.prompt_tokens + usage.generated_tokens,
            "prompt_tokens_details": {"cached_tokens": usage.cached_tokens},
            "completion_tokens_details": {"reasoning_tokens": usage.thinking_tokens},
            "max_completion_tokens": extra["generation"]["max_new_tokens"],
        },
        "llvid": {"finish_reason": answers[0].finish_reason, "usage": usage.values(), **extra},
    }


def _openai_reason(chunk: Chunk) -> str | None:
    return "stop" if chunk.finish_reason == "repetition" else chunk.finish_reason  # OpenAI has no name for a repetition


def _json(values: Mapping[str, Any]) -> bytes:
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
