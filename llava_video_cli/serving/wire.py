"""Requests in the form of OpenAI's chat completions, read strictly.

Source of the form: https://platform.openai.com/docs/api-reference/chat. `video_url`, `media_io_kwargs` and
`repetition_penalty` are vLLM's; `sampling` is ours.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn, cast

from ..conversation import Generation, Role
from ..errors import UsageError, nearest
from ..messages import Draft, brief, encodable
from ..preset import Preset, checked
from ..sampling import Sampling
from .refusal import RefusedError

_MOST_MARKS = 200_000  # commas and opening brackets of a body: each costs the parser up to a hundred times its byte
_MOST_TEXT_BYTES = 2**18  # twice the text that the longest context (32,768 tokens) holds
MOST_MEDIA = 64  # of a request
_MOST_STOPS, _LONGEST_STOP = 16, 256

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
_MEDIA = ("video_url", "image_url")
# What changes nothing in the answer, or asks for what is so anyway.
_IGNORED = (
    "user", "store", "metadata", "service_tier", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention",
    "safety_identifier", "reasoning_effort", "verbosity",
)  # fmt: skip
# Fields that are understood only with the values of not being used, and what to say else.
_UNUSED: dict[str, tuple[Any, ...]] = {
    "n": (1,), "tools": ([],), "functions": ([],), "tool_choice": ("none", "auto"), "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},), "logprobs": (False,), "top_logprobs": (0,), "logit_bias": ({},),
    "modalities": (["text"],), "audio": (), "prediction": (), "web_search_options": (), "frequency_penalty": (0,),
    "presence_penalty": (0,), "top_k": (-1, 0), "min_p": (0,), "best_of": (1,),
}  # fmt: skip
_NUMBERS = {"temperature": float, "top_p": float, "repetition_penalty": float, "seed": int}
_LENGTHS = ("max_completion_tokens", "max_tokens")
_OTHERS = ("model", "messages", "stream", "stream_options", "stop", "sampling", "media_io_kwargs")
_KNOWN = (*_OTHERS, *_NUMBERS, *_LENGTHS, *_IGNORED, *_UNUSED)


@dataclass(frozen=True)
class Asked:
    """A request for an answer: `drafts` hold the URLs of their media, `places` say where each of these stood."""

    drafts: tuple[Draft, ...]
    places: tuple[str, ...]
    sampling: Sampling
    generation: Generation
    stop: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False

    @property
    def urls(self) -> tuple[str, ...]:
        """The media, in the order of the prompt."""
        return tuple(url for draft in self.drafts for url in draft.paths)


def read_json(body: bytes) -> dict[str, Any]:
    """Return a body's JSON object.

    Raises `RefusedError` for anything else, and before parsing for what would take gigabytes then.
    """
    if sum(map(body.count, (b",", b"[", b"{"))) > _MOST_MARKS:
        raise RefusedError(413, f"the JSON has more than {_MOST_MARKS:,} parts")
    try:
        values = json.loads(body.decode("utf-8"), object_pairs_hook=_each_once, parse_constant=_no_number)
    except UnicodeDecodeError:
        raise RefusedError(400, "the body is not text in UTF-8") from None
    except RecursionError:
        raise RefusedError(400, "the JSON is nested too deeply") from None
    except ValueError as error:
        raise RefusedError(400, f"the body is not JSON: {str(error)[:200]}") from None
    if not isinstance(values, dict):
        raise RefusedError(400, f"the body must be a JSON object, got {type(values).__name__}")
    return values


def read_asked(values: Mapping[str, Any], model: str, preset: Preset) -> Asked:
    """Return what is asked for, with the preset's values where a request gives none.

    Raises `RefusedError` for what is not understood to the last field, or asks for another model.
    """
    for name, value in values.items():
        if name not in _KNOWN:
            raise RefusedError(400, f"there is no field {brief(name)}", nearest(name, _KNOWN), param=str(name)[:100])
        if name in _UNUSED and value is not None and not any(_same(value, unused) for unused in _UNUSED[name]):
            raise RefusedError(400, f"{name!r} is not supported here", param=name, code="unsupported_parameter")
    asked_model = values.get("model")
    if asked_model is not None and asked_model != model:
        hint = f"this server has {model}"
        raise RefusedError(404, f"no such model: {brief(asked_model)}", hint, param="model", code="model_not_found")
    drafts, places = _messages(values.get("messages"), preset.system)
    options = _object(values, "stream_options", ("include_usage", "include_obfuscation"))
    return Asked(
        drafts,
        places,
        _sampling(values, preset.sampling),
        _generation(values, preset.generation),
        _stops(values.get("stop")),
        _flag(values, "stream"),
        _flag(options, "include_usage"),
    )


def _messages(value: object, system: str | None) -> tuple[tuple[Draft, ...], tuple[str, ...]]:
    if not isinstance(value, list) or not value:
        raise RefusedError(400, f"'messages' must be a list with something in it, got {brief(value)}", param="messages")
    drafts: list[Draft] = []
    places: list[str] = []
    for number, message in enumerate(value):
        drafts.append(_message(message, f"messages[{number}]", places))
    if len(places) > MOST_MEDIA:
        raise RefusedError(400, f"{len(places)} videos and pictures are more than {MOST_MEDIA}", param="messages")
    size = sum(len(draft.text.encode()) for draft in drafts)
    if size > _MOST_TEXT_BYTES:
        raise RefusedError(400, f"{size:,} bytes of text are more than {_MOST_TEXT_BYTES:,}", param="messages")
    drafts = _merged(drafts)
    if drafts[0].role != "system" and system:
        drafts.insert(0, Draft("system", system))
    turns = drafts[1:] if drafts[0].role == "system" else drafts
    for number, draft in enumerate(turns):
        if draft.role != ("user", "assistant")[number % 2]:
            message = f"after one system message at most, user and assistant take turns: got the {draft.role}'s"
            raise RefusedError(400, message, param="messages")
    if drafts[-1].role != "user":
        raise RefusedError(400, f"the last message must be the user's, got the {drafts[-1].role}'s", param="messages")
    if drafts[0].role == "system" and not drafts[0].text.strip():
        del drafts[0]  # how a client says that it wants none
    return tuple(drafts), tuple(places)


def _merged(drafts: Sequence[Draft]) -> list[Draft]:
    """Return them with those of the same role in a row made one: some clients send media in a message of their own."""
    merged: list[Draft] = []
    for draft in drafts:
        if merged and merged[-1].role == draft.role:
            last = merged.pop()
            texts = filter(None, (last.text, draft.text))
            draft = Draft(draft.role, "\n".join(texts), last.paths + draft.paths)
        merged.append(draft)
    return merged


def _message(value: object, where: str, places: list[str]) -> Draft:
    if not isinstance(value, dict):
        _refuse(where, "must be an object", value)
    role = value.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        _refuse(f"{where}.role", "must be system, user or assistant", role)
    for name, given in value.items():
        if name not in ("role", "content", "name", "refusal") and given not in (None, []):
            raise RefusedError(400, f"{where} has a field that is not supported: {brief(name)}", param=where)
    content = value.get("content")
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    if not isinstance(parts, list) or not parts:
        _refuse(f"{where}.content", "must be text or a list of parts", content)
    texts: list[str] = []
    urls: list[str] = []
    for number, part in enumerate(parts):
        place = f"{where}.content[{number}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            texts.append(_text(part["text"], place))
        elif kind in _MEDIA and role == "user":
            urls.append(_url(part.get(kind), f"{place}.{kind}"))
            places.append(place)
        else:
            _refuse(place, "must be a text, or a user's video_url or image_url", part)
    return Draft(cast("Role", _ROLES[role]), "\n".join(texts), tuple(urls))


def _url(value: object, where: str) -> str:
    url = value.get("url") if isinstance(value, dict) else value
    if not isinstance(url, str) or not url:
        _refuse(where, "must hold a url", value)
    return _text(url, where)


def _text(text: str, where: str) -> str:
    try:
        return encodable(text)
    except UsageError as error:
        raise RefusedError(400, f"{where}: {error}", param=where) from None


def _sampling(values: Mapping[str, Any], base: Sampling) -> Sampling:
    given: dict[str, Any] = {}
    video = _object(_object(values, "media_io_kwargs", ("video", "image", "audio")), "video", ("num_frames", "fps"))
    names = {"num_frames": "frames", "fps": "fps"}
    given |= {names[name]: value for name, value in video.items() if value is not None}
    if values.get("sampling") is not None:
        given |= {k: v for k, v in _checked(values["sampling"], Sampling, "sampling").items() if v is not None}
    if "frames" in given and "fps" not in given:
        given["fps"] = None
    try:
        return replace(base, **given)
    except UsageError as error:
        raise RefusedError(400, str(error), error.hint, param="sampling") from None


def _generation(values: Mapping[str, Any], base: Generation) -> Generation:
    given: dict[str, Any] = {}
    for name, kind in _NUMBERS.items():
        if (value := values.get(name)) is not None:
            given[name] = _number(value, kind, name)
    length = next((name for name in _LENGTHS if values.get(name) is not None), _LENGTHS[0])
    if (value := values.get(length)) is not None:
        given["max_new_tokens"] = _number(value, int, length)
    try:
        return replace(base, **given)
    except UsageError as error:
        message = str(error).replace("max_new_tokens", length)
        raise RefusedError(400, message, param=message.partition(" ")[0]) from None


def _number(value: object, kind: type, name: str) -> float | int:
    fits = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not fits or (kind is int and value != int(cast("float", value))):
        _refuse(name, "must be a whole number" if kind is int else "must be a number", value)
    return cast("float | int", kind(value))


def _stops(value: object) -> tuple[str, ...]:
    if value is None:
        return ()
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > _MOST_STOPS:
        _refuse("stop", f"must be text or a list of up to {_MOST_STOPS}", value)
    for stop in stops:
        if not isinstance(stop, str) or not 0 < len(stop) <= _LONGEST_STOP:
            _refuse("stop", f"must be texts of 1 to {_LONGEST_STOP} characters", stop)
    return tuple(dict.fromkeys(stops))


def _flag(values: Mapping[str, Any], name: str) -> bool:
    value = values.get(name)
    if value is not None and not isinstance(value, bool):
        _refuse(name, "must be true or false", value)
    return bool(value)


def _object(values: Mapping[str, Any], name: str, keys: Sequence[str]) -> dict[str, Any]:
    value = values.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        _refuse(name, "must be an object", value)
    for key in value:
        if key not in keys:
            raise RefusedError(400, f"{name} has no field {brief(key)}", nearest(str(key), keys), param=name)
    return value


def _checked(value: object, kind: type, name: str) -> dict[str, Any]:
    if isinstance(value, dict):  # JSON's null stands for what is not given
        value = {key: each for key, each in value.items() if each is not None}
    try:
        return checked(value, kind, name)
    except UsageError as error:
        raise RefusedError(400, str(error), error.hint, param=name) from None


def _same(value: object, unused: object) -> bool:
    return value == unused and isinstance(value, bool) == isinstance(unused, bool)


def _refuse(where: str, wanted: str, got: object) -> NoReturn:
    raise RefusedError(400, f"{where!r} {wanted}, got {brief(got)}", param=where)


def _each_once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("a key stands there twice")
    return values


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")
