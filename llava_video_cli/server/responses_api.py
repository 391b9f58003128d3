"""OpenAI's Responses API in its plain form: one answer of text, whole or streamed, and nothing is stored.

Source of the form: https://platform.openai.com/docs/api-reference/responses. A request is read as one for a chat
completion, so the same fields, bounds and messages hold; videos are written as there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from ..conversation import Chunk
from ..errors import UsageError
from ..validation import InputError, brief, placed, read_fields
from .responses import RequestError, logprob_values, usage_of

_RENAMED = {"max_output_tokens": "max_tokens"}
# How errors name the fields of a chat completion, and what those are called here.
_OWN_NAMES = (
    (r"^messages\b|(?<=')messages(?=')", "input"), (r"\bresponse_format(\.json_schema)?\b", "text.format"),
    (r"(?<=')json_schema(?=')", "text.format"), (r"\bmax_tokens\b", "max_output_tokens"),
)  # fmt: skip
# Fields with the values that mean "not used": what they ask for else is not there.
_UNUSED: dict[str, tuple[Any, ...]] = {
    "previous_response_id": (), "conversation": (), "background": (False,), "truncation": ("disabled",), "prompt": (),
    "n": (1,), "tools": ([],), "tool_choice": ("none", "auto"), "max_tool_calls": (),
}  # fmt: skip
_IGNORED = ("reasoning", "context_management", "stream_options")
_LOGPROBS = "message.output_text.logprobs"
_PARTS = {"input_text": "text", "output_text": "text"}
_ROLES = ("user", "assistant", "system", "developer")


def chat_values(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of a chat completion that asks for the same; raises UsageError or `RequestError`."""
    values = {name: value for name, value in values.items() if value is not None}
    for name, unused in _UNUSED.items():
        if name in values and values.pop(name) not in unused:
            raise RequestError(400, f"{name!r} is not supported here", param=name, code="unsupported_parameter")
    chat = {_RENAMED.get(name, name): value for name, value in values.items() if name not in _IGNORED}
    if "messages" in chat:
        raise InputError("unknown key 'messages'", "did you mean 'input'?", "messages")
    with placed(field="input"):
        messages = _messages(chat.pop("input", None))
    if (instructions := chat.pop("instructions", None)) is not None:
        messages.insert(0, {"role": "system", "content": instructions})
    text = chat.pop("text", {})
    with placed(field="text"):
        form = read_fields(text, {"format": Any, "verbosity": Any}, "text", null_is_missing=True).get("format")
    if isinstance(form, Mapping) and form.get("type") == "json_schema":
        form = {"type": "json_schema", "json_schema": {name: form[name] for name in form if name != "type"}}
    include = chat.pop("include", [])
    if include not in ([], [_LOGPROBS]):
        raise InputError(f"'include' can only be [{_LOGPROBS!r}], got {brief(include)}", field="include")
    if include or chat.get("top_logprobs"):
        chat["logprobs"] = True
    return {**chat, "messages": messages, **({} if form is None else {"response_format": form})}


def of_response(error: RequestError) -> RequestError:
    """Return an error in a field of a chat completion as one in the field that it stands for."""
    texts = [str(error), error.hint or "", error.param or ""]
    for name, own in _OWN_NAMES:
        texts = [re.sub(name, own, text) for text in texts]
    message, hint, param = texts
    return RequestError(
        error.status, message, hint or None, param=param or None, code=error.code, headers=error.headers
    )


def _messages(given: object) -> list[dict[str, Any]]:
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise UsageError(f"'input' must be a text or a non-empty list of messages, got {brief(given)}")
    return [_message(item) for item in given]


def _message(item: object) -> dict[str, Any]:
    """Return an item of `input` as a message of a chat completion."""
    if not isinstance(item, dict) or item.get("type", "message") != "message" or item.get("role") not in _ROLES:
        raise UsageError(f"an item of 'input' must be a message with a role, got {brief(item)}")
    content = item.get("content")
    parts = [_part(part) for part in content] if isinstance(content, list) else content
    skipped = ("type", "id", "status", "phase", "content")  # which an answer has that is sent back
    return {**{name: value for name, value in item.items() if name not in skipped}, "content": parts}


def _part(part: object) -> object:
    if not isinstance(part, dict):
        return part
    kind = str(part.get("type"))
    if kind in _PARTS:
        return {"type": _PARTS[kind], "text": part.get("text")}
    if kind == "input_image":
        rest = {name: value for name, value in part.items() if name not in ("type", "image_url") and value is not None}
        return {"type": "image_url", "image_url": {"url": part.get("image_url")}, **rest}
    return part


@dataclass
class ResponseForm:
    """One response. `asked` are the fields of the request, some of which a response repeats."""

    id: str
    created: int
    model: str
    asked: Mapping[str, Any]
    done_mark: ClassVar[bool] = False
    names_events: ClassVar[bool] = True
    _text: str = field(default="", init=False)
    _logprobs: list[dict[str, Any]] = field(default_factory=list, init=False)
    _sent: int = field(default=0, init=False)

    def whole(self, answers: Sequence[Chunk], extra: Mapping[str, Any]) -> dict[str, Any]:
        """Return the response."""
        (answer,) = answers
        self._text, self._logprobs = answer.text, [logprob_values(each) for each in answer.logprobs]
        return self._response(answer, extra)

    def begin(self, extra: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
        """Yield the events before the text."""
        for kind in ("response.created", "response.in_progress"):
            yield self._event(kind, response=self._response(None, extra))
        item = self._item("in_progress") | {"content": []}
        yield self._event("response.output_item.added", output_index=0, item=item)
        yield self._event("response.content_part.added", **self._place, part=self._part)

    def piece(self, index: int, chunk: Chunk) -> Iterable[dict[str, Any]]:
        """Yield an event for a piece of the text."""
        assert index == 0
        logprobs = [logprob_values(each) for each in chunk.logprobs]
        self._text += chunk.text
        self._logprobs += logprobs
        if chunk.text or logprobs:
            yield self._event("response.output_text.delta", **self._place, delta=chunk.text, logprobs=logprobs)

    def end(self, last: Sequence[Chunk], extra: Mapping[str, Any]) -> Iterable[dict[str, Any]]:
        """Yield the events behind the text."""
        (chunk,) = last
        yield self._event("response.output_text.done", **self._place, text=self._text, logprobs=self._logprobs)
        yield self._event("response.content_part.done", **self._place, part=self._part)
        yield self._event("response.output_item.done", output_index=0, item=self._item(_status(chunk)))
        yield self._event(f"response.{_status(chunk)}", response=self._response(chunk, extra))

    @property
    def _place(self) -> dict[str, Any]:
        return {"item_id": self._item_id, "output_index": 0, "content_index": 0}

    @property
    def _item_id(self) -> str:
        return self.id.replace("resp_", "msg_")

    @property
    def _part(self) -> dict[str, Any]:
        return {"type": "output_text", "text": self._text, "annotations": [], "logprobs": list(self._logprobs)}

    def _item(self, status: str) -> dict[str, Any]:
        return {
            "id": self._item_id, "type": "message", "status": status, "role": "assistant", "content": [self._part],
        }  # fmt: skip

    def _event(self, kind: str, **values: Any) -> dict[str, Any]:
        self._sent += 1
        return {"type": kind, "sequence_number": self._sent - 1, **values}

    def _response(self, last: Chunk | None, extra: Mapping[str, Any]) -> dict[str, Any]:
        """Return the response: the whole with the last chunk, what is known at the beginning without."""
        generation = extra["generation"]
        repeated = {name: self.asked.get(name) for name in ("instructions", "metadata", "user", "max_output_tokens")}
        status = "in_progress" if last is None else _status(last)
        is_cut = status == "incomplete"
        values = {
            "id": self.id, "object": "response", "created_at": self.created, "status": status, "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None, "model": self.model,
            "output": [] if last is None else [self._item(status)], **repeated, "parallel_tool_calls": True,
            "previous_response_id": None, "store": False, "temperature": generation["temperature"],
            "text": {"format": {"type": "text"}, **(self.asked.get("text") or {})}, "tool_choice": "auto", "tools": [],
            "top_p": generation["top_p"], "truncation": "disabled", "usage": None,
        }  # fmt: skip
        if last is None:
            return values
        usage = usage_of([last])
        counts = {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens},
            "output_tokens": usage.generated_tokens,
            "output_tokens_details": {"reasoning_tokens": usage.thinking_tokens},
            "total_tokens": usage.prompt_tokens + usage.generated_tokens,
        }
        return {**values, "usage": counts, "llvid": {"finish_reason": last.finish_reason, **extra}}


def _status(last: Chunk) -> str:
    return "incomplete" if last.finish_reason == "length" else "completed"
