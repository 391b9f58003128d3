"""Requests in the form of OpenAI's chat completions, read strictly.

Source of the form: https://platform.openai.com/docs/api-reference/chat. `video_url`, `media_io_kwargs` and
`repetition_penalty` are vLLM's; `sampling` is ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, cast

from ..conversation import Generation, Role
from ..errors import UsageError
from ..preset import Preset, sampling_shape, with_sampling
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
from ..video.sampling import Sampling
from .responses import RefusedError

_MOST_MARKS = 200_000  # commas and opening brackets of a body: each costs the parser up to a hundred times its byte
MOST_MEDIA = 64  # of a request
_MOST_STOPS, _LONGEST_STOP = 16, 256

_FORM = MessageForm(
    {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"},
    ("video_url", "image_url"), "url", ignored=("name", "refusal"),
)  # fmt: skip
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
_LENGTHS = ("max_completion_tokens", "max_tokens", "max_new_tokens")
_SHAPE: dict[str, Any] = {
    **dict.fromkeys((*_IGNORED, *_UNUSED, "model", "messages", "stop"), Any),
    **dict.fromkeys(_LENGTHS, int),
    "stream": bool,
    "stream_options": {"include_usage": bool, "include_obfuscation": Any},
    "media_io_kwargs": {"video": {"num_frames": int, "fps": float}, "image": Any, "audio": Any},
}


@cache
def _shape() -> dict[str, Any]:
    return {**_SHAPE, **shape_of(Generation), "sampling": sampling_shape()}


@dataclass(frozen=True)
class ChatCompletion:
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


def read_body(body: bytes) -> dict[str, Any]:
    """Return a body's JSON object.

    Raises UsageError for anything else, and `RefusedError` before parsing for what would take gigabytes then.
    """
    if sum(map(body.count, (b",", b"[", b"{"))) > _MOST_MARKS:
        raise RefusedError(413, f"the JSON has more than {_MOST_MARKS:,} parts")
    with placed("the body"):
        return read_object(body, "utf-8")


def read_completion(values: Mapping[str, Any], model: str, preset: Preset) -> ChatCompletion:
    """Return what is asked for, with the preset's values where a request gives none.

    Raises UsageError for what is not understood to the last field, and `RefusedError` for what another server may do.
    """
    for name, value in values.items():
        if name in _UNUSED and value is not None and not any(_same(value, unused) for unused in _UNUSED[name]):
            raise RefusedError(400, f"{name!r} is not supported here", param=name, code="unsupported_parameter")
    if (other := values.get("model")) not in (None, model):
        hint = f"this server has {model}"
        raise RefusedError(404, f"no such model: {brief(other)}", hint, param="model", code="model_not_found")
    # JSON has one kind of number: some clients write 4.0 for 4
    whole = {k: int(v) if isinstance(v, float) and v.is_integer() else v for k, v in values.items()}
    given = read_fields(whole, _shape(), null_is_missing=True)
    with placed(field="messages"):
        drafts, places = _messages(fitting(given.get("messages"), list, "'messages'"), preset.system)
    video = given.get("media_io_kwargs", {}).get("video", {})
    frames = {"frames" if name == "num_frames" else name: value for name, value in video.items()}
    with placed(field="sampling"):
        sampling = with_sampling(preset.sampling, frames | given.get("sampling", {}))
    return ChatCompletion(
        drafts,
        places,
        sampling,
        _generation(given, preset.generation),
        _stops(given.get("stop", [])),
        given.get("stream", False),
        given.get("stream_options", {}).get("include_usage", False),
    )


def _messages(messages: Sequence[object], system: str | None) -> tuple[tuple[Draft, ...], tuple[str, ...]]:
    drafts: list[Draft] = []
    places: list[str] = []
    for number, message in enumerate(messages):
        with placed(f"message {number + 1}", f"[{number}]"):
            role, text, media = read_message(message, _FORM)
            drafts.append(Draft(cast("Role", role), text, tuple(encodable(url) for _, url in media)))
            places += (f"messages[{number}].content[{part}]" for part, _ in media)
    if len(places) > MOST_MEDIA:
        raise UsageError(f"{len(places)} videos and pictures are more than {MOST_MEDIA}")
    size = sum(len(draft.text.encode()) for draft in drafts)
    if size > MOST_BYTES:
        raise UsageError(f"{size:,} bytes of text are more than {MOST_BYTES:,}")
    drafts = _merged(drafts)
    if drafts[0].role != "system" and system:
        drafts.insert(0, Draft("system", system))
    turns = drafts[1:] if drafts[0].role == "system" else drafts
    for number, draft in enumerate(turns):
        if draft.role != ("user", "assistant")[number % 2]:
            rule = "after one system message at most, user and assistant take turns"
            raise UsageError(f"{rule}: got the {draft.role}'s")
    if drafts[-1].role != "user":
        raise UsageError(f"the last message must be the user's, got the {drafts[-1].role}'s")
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


def _generation(given: Mapping[str, Any], base: Generation) -> Generation:
    values = {name: given[name] for name in shape_of(Generation) if name in given}
    length = next((name for name in _LENGTHS if name in given), _LENGTHS[0])
    if length in given:
        values["max_new_tokens"] = given[length]
    try:
        return replace(base, **values)
    except UsageError as error:
        message = str(error).replace("max_new_tokens", length)
        raise InputError(message, field=message.partition(" ")[0]) from None


def _stops(value: object) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    with placed(field="stop"):
        if not isinstance(stops, list) or len(stops) > _MOST_STOPS:
            raise UsageError(f"'stop' must be text or a list of up to {_MOST_STOPS}, got {brief(value)}")
        for stop in stops:
            if not isinstance(stop, str) or not 0 < len(stop) <= _LONGEST_STOP:
                raise UsageError(f"'stop' must be texts of 1 to {_LONGEST_STOP} characters, got {brief(stop)}")
    return tuple(dict.fromkeys(stops))


def _same(value: object, unused: object) -> bool:
    return value == unused and isinstance(value, bool) == isinstance(unused, bool)
