"""Requests: the bounded reading of a body, and strict reading of what it asks for, in the form of OpenAI's API.

Source of the form: https://platform.openai.com/docs/api-reference/chat. `video_url`, `media_io_kwargs`, `top_k`,
`min_p`, `repetition_penalty` and `structured_outputs` are vLLM's, `input_video` is llama.cpp's, `video` Qwen's;
`sampling` is ours.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, cast

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from ..conversation import Generation, Role, first_out_of_order
from ..errors import UsageError
from ..preset import Preset, check_used, generation_shape, sampling_shape, with_sampling
from ..runs.conversation_file import Draft
from ..validation import (
    MOST_BYTES,
    InputError,
    MessageForm,
    brief,
    encodable,
    fitting,
    placed,
    read_fields,
    read_message,
    read_object,
    shape_of,
)
from ..video import check_scenes
from ..video.files import PictureList
from ..video.sampling import MAX_FRAMES, Sampling
from . import MAX_BODY_BYTES
from .answer_format import read_answer_format
from .responses import CLOSE, RequestError

# A slow sender holds memory and a place in the queue: after the grace, this rate is the least.
_BODY_GRACE_SECONDS, _MIN_BODY_BYTES_PER_SECOND = 20.0, 16 * 1024
_MAX_BODIES = 4  # of the largest size, in memory at the same time
_MAX_JSON_VALUES = 200_000  # of a body: the parser needs up to a hundred times the bytes that a short value has
_MAX_MEDIA = 64  # of a request
_MOST_SCHEME = 10  # characters, the colon included, of a URL that may be read
_MAX_STOPS, _MAX_STOP_CHARACTERS = 16, 256
_MAX_ANSWERS, _MAX_LOGPROBS = 16, 20  # to a request; of each token

_FORM = MessageForm(
    {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"},
    ("video_url", "image_url"), "url", ignored=("name", "refusal"),
)  # fmt: skip
# Fields that change nothing in the answer, or ask for what is always so.
_IGNORED = (
    "user", "store", "metadata", "service_tier", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention",
    "safety_identifier", "reasoning_effort", "verbosity",
)  # fmt: skip
# Fields that are accepted only with a value that means "not used".
_UNUSED: dict[str, tuple[Any, ...]] = {
    "tools": ([],), "functions": ([],), "tool_choice": ("none", "auto"), "function_call": ("none", "auto"),
    "logit_bias": ({},), "modalities": (["text"],), "audio": (), "prediction": (), "web_search_options": (),
    "best_of": (1,),
}  # fmt: skip
# vLLM's and Qwen's names for what `sampling` sets, in `media_io_kwargs.video` and in the part of a video.
_VIDEO_KEYS = {
    "num_frames": "frames", "nframes": "frames", "video_start": "start_seconds", "video_end": "end_seconds",
    "sample_fps": "source_fps",
}  # fmt: skip
_VIDEO_SHAPE = {
    "num_frames": int, "nframes": int, "max_frames": int, "video_start": float, "video_end": float, "sample_fps": float,
}  # fmt: skip
_IGNORED_OF_MEDIA = ("detail", "uuid", "cache_control", "name")  # of the part of a medium
_MAX_LENGTH = 2**31 - 1  # tokens of an answer
_LENGTHS = ("max_completion_tokens", "max_tokens", "max_new_tokens")
_SHAPE: dict[str, Any] = {
    **dict.fromkeys((*_IGNORED, *_UNUSED, "model", "messages", "stop"), Any),
    **dict.fromkeys(("response_format", "structured_outputs"), Any),
    "n": int,
    "logprobs": bool,
    "top_logprobs": int,
    **dict.fromkeys(_LENGTHS, int),
    "stream": bool,
    "stream_options": {"include_usage": bool, "include_obfuscation": Any},
    "media_io_kwargs": {"video": {"num_frames": int, "fps": float}, "image": Any, "audio": Any},
}


@cache
def _shape() -> dict[str, Any]:
    shape = {**_SHAPE, **generation_shape(), "sampling": sampling_shape()}
    return {name: kind for name, kind in shape.items() if name not in ("schema", "json_object")}


@dataclass
class BodyReader:
    """Reads the bodies of all requests, and bounds their size, their time, and the memory that they take together."""

    max_bytes: int = MAX_BODY_BYTES
    grace_seconds: float = _BODY_GRACE_SECONDS
    bytes_in_memory: int = field(default=0, init=False)

    @asynccontextmanager
    async def read(self, headers: Mapping[str, str], receive: Receive) -> AsyncIterator[bytes]:
        """Give a request's body; it counts as being in memory until the end of the block.

        Raises `RequestError` if its header does not announce JSON, or if the body is too large or too slow, and
        `ClientDisconnect` if the client disconnects.
        """
        kind = headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":  # a foreign web page can't send this type without asking first
            raise RequestError(415, "the Content-Type must be application/json", headers=CLOSE)
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise RequestError(415, "compressed bodies are not supported", headers=CLOSE)
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit() or len(length) > 18 or int(length) > self.max_bytes:
            raise self._too_large()
        size = 0
        try:
            parts = []
            async for part in self._parts(receive):
                size += len(part)
                self.bytes_in_memory += len(part)
                if size > self.max_bytes:
                    raise self._too_large()
                if self.bytes_in_memory > _MAX_BODIES * self.max_bytes:
                    message, retry = "too much data is being sent at the same time", {"retry-after": "1"}
                    raise RequestError(429, message, headers=CLOSE | retry)
                parts.append(part)
            body = b"".join(parts)
            parts.clear()
            yield body
        finally:
            self.bytes_in_memory -= size

    async def _parts(self, receive: Receive) -> AsyncIterator[bytes]:
        start, size, more = time.monotonic(), 0, True
        while more:
            left = start + self.grace_seconds + size / _MIN_BODY_BYTES_PER_SECOND - time.monotonic()
            try:
                message = await asyncio.wait_for(receive(), max(0.0, left))
            except asyncio.TimeoutError:
                raise RequestError(408, "the request arrived too slowly", headers=CLOSE) from None
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            part = message.get("body", b"")
            size += len(part)
            more = message.get("more_body", False)
            yield part

    def _too_large(self) -> RequestError:
        return RequestError(413, f"the request is larger than {self.max_bytes:,} bytes", headers=CLOSE)


@dataclass(frozen=True)
class CompletionRequest:
    """A request for an answer: `drafts` hold the URLs of their media.

    `params` has the field of each URL, `samplings` the sampling of each. One that `is_continued` has a last message
    from the assistant, which is the answer's prefill: the sender has it already, and gets what comes behind it.
    `answers` is how many answers are wanted, `logprobs` how many of the likeliest tokens are told with each token.
    """

    drafts: tuple[Draft, ...]
    params: tuple[str, ...]
    samplings: tuple[Sampling, ...]
    generation: Generation
    stop: tuple[str, ...] = ()
    is_continued: bool = False
    stream: bool = False
    include_usage: bool = False
    answers: int = 1
    logprobs: int | None = None

    @property
    def urls(self) -> tuple[str, ...]:
        """The URLs of all media, in the order of the prompt."""
        return tuple(url for draft in self.drafts for url in draft.paths)


def parse_body(body: bytes) -> dict[str, Any]:
    """Return a body's JSON object.

    Raises UsageError for anything else, and `RequestError`, before it parses, for a body that would take gigabytes.
    """
    if sum(map(body.count, (b",", b"[", b"{"))) > _MAX_JSON_VALUES:
        raise RequestError(413, f"the JSON has more than {_MAX_JSON_VALUES:,} values")
    with placed("the body"):
        return read_object(body, "utf-8")


def read_completion(values: Mapping[str, Any], models: Sequence[str], preset: Preset) -> CompletionRequest:
    """Return the request, with the preset's values where it gives none; null means that a field is not given.

    `models` are the names of the one model. Raises UsageError for a field or value that is not understood, and
    `RequestError` for one that this server does not support.
    """
    values = {name: value for name, value in values.items() if value is not None}
    for name, value in values.items():
        if name in _UNUSED and not any(_same(value, unused) for unused in _UNUSED[name]):
            raise RequestError(400, f"{name!r} is not supported here", param=name, code="unsupported_parameter")
    if (other := values.get("model")) not in (None, *models):
        hint = f"this server has {', '.join(models)}"
        raise RequestError(404, f"no such model: {brief(other)}", hint, param="model", code="model_not_found")
    # JSON has one type of number: some clients write 4.0 for 4
    values = {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in values.items()}
    given = read_fields(values, _shape(), null_is_missing=True)
    with placed(field="media_io_kwargs.video"):
        sampling = _with_frames(preset.sampling, given.get("media_io_kwargs", {}).get("video", {}))
    with placed(field="sampling"):
        sampling = _with_frames(sampling, given.get("sampling", {}))
    with placed(field="messages"):
        messages = fitting(given.get("messages"), list, "'messages'")
        drafts, params, samplings = _messages(messages, preset.system, sampling)
    with placed(field="sampling"):
        check_used(given.get("sampling", {}), (sampling, *samplings))
    generation, stop = _generation(given, preset.generation), _stops(given.get("stop", []))
    is_continued = drafts[-1].role == "assistant"
    if is_continued:
        if "prefill" in given:
            raise InputError("give a last message from the assistant, or 'prefill', not both", field=".prefill")
        generation, drafts = replace(generation, prefill=drafts[-1].text), drafts[:-1]
    if drafts[-1].role != "user":
        raise InputError(f"the last question must be from the user, got a message from the {drafts[-1].role}")
    if generation.choices and stop:
        raise InputError("'stop' can't be used with 'choices'", field=".stop")
    for each in samplings:
        check_scenes(each)
        if each.speech and not preset.sampling.speech:
            raise RequestError(
                400, "this server does not transcribe speech", "start it with --speech", param="sampling"
            )
        if each.speech and each.speech_model != preset.sampling.speech_model:
            message = f"the speech model of this server is {preset.sampling.speech_model}"
            raise RequestError(400, message, "leave out speech_model", param="sampling")
    logprobs = _logprobs(given)
    if generation.choices and logprobs is not None:
        raise InputError("logprobs are not given with choices", "ask for one of the two", "logprobs")
    return CompletionRequest(
        drafts,
        params,
        samplings,
        generation,
        stop,
        is_continued,
        given.get("stream", False),
        given.get("stream_options", {}).get("include_usage", False),
        _within(given, "n", 1, _MAX_ANSWERS) or 1,
        logprobs,
    )


def _with_frames(base: Sampling, given: Mapping[str, Any]) -> Sampling:
    """Return a sampling with what is given over it; the names are those of `_VIDEO_KEYS`, too. Raises UsageError."""
    given = {_VIDEO_KEYS.get(name, name): value for name, value in given.items()}
    if "fps" in given and given.get("frames") == -1:  # vLLM's way to say: as many as there are
        del given["frames"]
    if "fps" in given and "frames" in given:
        raise UsageError("fps and a number of frames are both given: give one of them")
    if "max_frames" in given:
        if base.fps is not None or not {"fps", "frames"}.isdisjoint(given):
            raise UsageError("max_frames is not supported beside fps or a number of frames: give one of them")
        given["frames"] = min(base.frames, given.pop("max_frames"))
    return with_sampling(base, given)


def _sampling_of(part: Mapping[str, Any], base: Sampling) -> Sampling:
    """Return the sampling of a medium: what its part of a message sets, beside or inside the URL, over the base."""
    kind = part["type"]
    inner = part.get(kind)
    places = [part, inner] if isinstance(inner, dict) else [part]
    skipped = ("type", "url", kind, *_IGNORED_OF_MEDIA)
    given = {k: v for place in places for k, v in place.items() if k not in skipped and v is not None}
    shape = {**sampling_shape(), **_VIDEO_SHAPE} if kind == "video_url" else {}
    given = {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in given.items()}
    sampling = _with_frames(base, read_fields(given, shape, kind))
    check_used(given, [sampling])
    return sampling


def _messages(
    messages: Sequence[object], system: str | None, sampling: Sampling
) -> tuple[tuple[Draft, ...], tuple[str, ...], tuple[Sampling, ...]]:
    drafts: list[Draft] = []
    params: list[str] = []
    samplings: list[Sampling] = []
    for number, message in enumerate(map(_with_video_urls, messages)):
        with placed(f"message {number + 1}", f"[{number}]"):
            role, text, media = read_message(message, _FORM)
            for part, _ in media:
                with placed(field=f".content[{part}]"):
                    samplings.append(_sampling_of(cast("Any", message)["content"][part], sampling))
            drafts.append(Draft(cast("Role", role), text, tuple(_url(each) for _, each in media)))
            params += (f"messages[{number}].content[{part}]" for part, _ in media)
    if len(params) > _MAX_MEDIA:
        raise UsageError(f"a request can have at most {_MAX_MEDIA} videos and pictures, got {len(params)}")
    size = sum(len(draft.text.encode()) for draft in drafts)
    if size > MOST_BYTES:
        raise UsageError(f"a request can have at most {MOST_BYTES:,} bytes of text, got {size:,}")
    drafts = _merged(drafts)
    if drafts[0].role != "system" and system:
        drafts.insert(0, Draft("system", system))
    if wrong := first_out_of_order([draft.role for draft in drafts]):
        rule = "after at most one system message, user and assistant must alternate"
        raise UsageError(f"{rule}: got one from the {drafts[wrong[0]].role}")
    if len(drafts) > 1 and drafts[0].role == "system" and not drafts[0].text.strip():
        del drafts[0]  # an empty one means: no system text
    return tuple(drafts), tuple(params), tuple(samplings)


def _with_video_urls(message: object) -> object:
    """Return a message with `video_url` for each `video`, which has one URL or a list, and each `input_video`."""
    if not isinstance(message, dict) or not isinstance(message.get("content"), list):
        return message
    parts = []
    for part in message["content"]:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind in ("video", "input_video") and kind in part:
            place, rest = part[kind], {key: value for key, value in part.items() if key not in ("type", kind)}
            if kind == "input_video":  # base64, or a URL, by itself or under a key; without its type
                data = place.get("data") or place.get("url") if isinstance(place, dict) else place
                is_url = not isinstance(data, str) or ":" in data[:_MOST_SCHEME]
                place = data if is_url else f"data:video/mp4;base64,{data}"
            if place and isinstance(place, (str, list)):  # else the error shows the part as it came
                part = {"type": "video_url", "video_url": {"url": place}, **rest}
        parts.append(part)
    return {**message, "content": parts}


def _url(place: str | list[str]) -> str:
    if isinstance(place, str):
        return encodable(place)
    if len(place) > MAX_FRAMES:
        raise UsageError(f"a video can have at most {MAX_FRAMES} pictures, got {len(place)}")
    return PictureList([encodable(each) for each in place])


def _merged(drafts: Sequence[Draft]) -> list[Draft]:
    """Return the messages with neighbours of the same role joined: some clients send media in a separate message."""
    merged: list[Draft] = []
    for draft in drafts:
        if merged and merged[-1].role == draft.role:
            last = merged.pop()
            texts = filter(None, (last.text, draft.text))
            draft = Draft(draft.role, "\n".join(texts), last.paths + draft.paths)
        merged.append(draft)
    return merged


def _generation(given: Mapping[str, Any], base: Generation) -> Generation:
    values = {name: given[name] for name in shape_of(Generation) if name in given}
    values |= read_answer_format(given.get("response_format"), given.get("structured_outputs"))
    if values.get("top_k") == -1:  # vLLM's way to say: all
        values["top_k"] = 0
    length = next((name for name in _LENGTHS if name in given), _LENGTHS[0])
    if length in given:
        values["max_new_tokens"] = given[length]
        if not 0 < given[length] <= _MAX_LENGTH:
            raise InputError(f"{length} must be from 1 to {_MAX_LENGTH}, got {given[length]}", field=length)
    try:
        return replace(base, **values)
    except UsageError as error:
        field = str(error).partition(" ")[0]
        raise InputError(str(error), field=field if field in shape_of(Generation) else "") from None


def _logprobs(given: Mapping[str, Any]) -> int | None:
    top = _within(given, "top_logprobs", 0, _MAX_LOGPROBS)
    if top and not given.get("logprobs"):
        raise InputError("top_logprobs needs logprobs: true", field="top_logprobs")
    return top or 0 if given.get("logprobs") else None


def _within(given: Mapping[str, Any], name: str, least: int, most: int) -> int | None:
    value = given.get(name)
    if value is not None and not least <= value <= most:
        raise InputError(f"{name} must be from {least} to {most}, got {value}", field=name)
    return None if value is None else int(value)


def _stops(value: object) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    with placed(field="stop"):
        if not isinstance(stops, list) or len(stops) > _MAX_STOPS:
            raise UsageError(f"'stop' must be a text or a list of up to {_MAX_STOPS} texts, got {brief(value)}")
        for stop in stops:
            if not isinstance(stop, str) or not 0 < len(stop) <= _MAX_STOP_CHARACTERS:
                raise UsageError(
                    f"each text in 'stop' must have 1 to {_MAX_STOP_CHARACTERS} characters, got {brief(stop)}"
                )
        return tuple(dict.fromkeys(map(encodable, stops)))


def _same(value: object, unused: object) -> bool:
    return value == unused and isinstance(value, bool) == isinstance(unused, bool)
