"""What a body may be, and what is read of it, without a server around it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from typing import Any

import pytest
from serving import message
from starlette.requests import ClientDisconnect

from llava_video_cli.errors import (
    ContextError,
    LlvidError,
    MediaError,
    MissingExtraError,
    ModelError,
    OutOfMemoryError,
    UsageError,
)
from llava_video_cli.preset import load_preset
from llava_video_cli.prompt.budget import AS_ONE_VIDEO
from llava_video_cli.server.requests import BodyReader, CompletionRequest, parse_body, read_completion
from llava_video_cli.server.responses import RequestError, hint_for_clients
from llava_video_cli.server.responses_api import chat_values
from llava_video_cli.validation import MOST_BYTES
from llava_video_cli.video.limits import RAISE_HINT
from llava_video_cli.video.sampling import MAX_FRAMES

JSON = {"content-type": "application/json; charset=utf-8"}
PRESET = load_preset("demo")


def sender(*parts: bytes | None, wait_seconds: float = 0.0) -> Callable[[], Awaitable[Any]]:
    """Send the parts of a body, of which None is a disconnect; each but the first takes its time."""
    left = list(parts)

    async def receive() -> Any:
        if len(left) < len(parts):
            await asyncio.sleep(wait_seconds)
        part = left.pop(0)
        if part is None:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": part, "more_body": bool(left)}

    return receive


def read(reader: BodyReader, *parts: bytes | None, wait_seconds: float = 0.0, **headers: str) -> bytes:
    async def body() -> bytes:
        named = JSON | {name.replace("_", "-"): value for name, value in headers.items()}
        async with reader.read(named, sender(*parts, wait_seconds=wait_seconds)) as content:
            return content

    return asyncio.run(body())


@pytest.mark.parametrize("length", ["11", "9" * 19, pytest.param("9" * 5000, id="long"), "-1", "1e1", "\u0661", ""])
def test_a_length_that_is_none_or_too_large_is_refused_before_the_body_is_read(length: str) -> None:
    with pytest.raises(RequestError, match="larger than 10 bytes") as error:
        read(BodyReader(10), content_length=length)
    assert error.value.status == 413


@pytest.mark.parametrize(
    "headers",
    [{"content_type": "text/plain"}, {"content_type": ""}, {"content_type": "application/json2"},
     {"content_type": "multipart/form-data; a=application/json"}, {"content_encoding": "gzip"}],
)  # fmt: skip
def test_what_a_page_could_send_without_asking_is_refused(headers: dict[str, Any]) -> None:
    with pytest.raises(RequestError) as error:
        read(BodyReader(), b"{}", **headers)
    assert error.value.status == 415 and error.value.headers["connection"] == "close"
    assert (
        read(BodyReader(), b"{}", content_type="Application/JSON ; charset=utf-8", content_encoding="Identity") == b"{}"
    )


@pytest.mark.parametrize("piece", [b"[],", b"1,", b"{},"])
def test_a_body_of_too_many_values_is_refused_before_it_is_parsed(piece: bytes) -> None:
    many = b'{"a": [' + piece * 200_000
    with pytest.raises(RequestError, match="more than 200,000 values") as error:
        parse_body(many)
    assert error.value.status == 413
    assert parse_body(b'{"a": [' + b"1," * 199_000 + b"1]}")


def test_bodies_have_a_bound_one_by_one_and_together() -> None:
    """A stranger may send many at once; what they took is free again, however they ended."""
    reader = BodyReader(10)

    async def five() -> None:
        async with AsyncExitStack() as opened:
            for _ in range(4):
                assert await opened.enter_async_context(reader.read(JSON, sender(b"01234", b"56789"))) == b"0123456789"
            assert reader.bytes_in_memory == 40
            with pytest.raises(RequestError, match="too much data") as error:
                await opened.enter_async_context(reader.read(JSON, sender(b"0")))
            assert error.value.status == 429 and error.value.headers["connection"] == "close"

    asyncio.run(five())
    assert reader.bytes_in_memory == 0
    with pytest.raises(RequestError, match="larger than 10 bytes"):
        read(reader, b"01234", b"567890")  # sent in chunks, without a length
    with pytest.raises(ClientDisconnect):
        read(reader, b"0123", None)
    assert reader.bytes_in_memory == 0 and read(reader, b"0123456789", content_length="10") == b"0123456789"


def test_a_large_body_may_take_longer_than_the_grace_and_a_small_one_may_not() -> None:
    large, small = b"0" * 2**20, b"0"  # of which the first may take 64 seconds
    assert read(BodyReader(2**21, grace_seconds=0.3), large, small, wait_seconds=0.35) == large + small
    with pytest.raises(RequestError, match="too slowly") as error:
        read(BodyReader(2**21, grace_seconds=0.05), small, large, wait_seconds=20.0)
    assert error.value.status == 408


def asked(values: Mapping[str, Any], *urls: str, text: str = "Why?") -> CompletionRequest:
    return read_completion({"messages": [message(text, *urls)], **values}, ("demo",), PRESET)


def video(**more: Any) -> dict[str, Any]:
    """A body with a video in its message, and more in the part of it."""
    part = {"type": "video_url", "video_url": {"url": "file:///a.mp4"}, **more}
    return {"messages": [{"role": "user", "content": [part, {"type": "text", "text": "Why?"}]}]}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"best_of": True}, "'best_of' is not supported"), ({"best_of": 2}, "'best_of' is not supported"),
        ({"tools": [{}]}, "'tools' is not supported"), ({"model": "other"}, "no such model: 'other'"),
        ({"stop": ["a"] * 17}, "up to 16 texts"), ({"stop": "a" * 257}, "1 to 256 characters"),
        ({"stop": [""]}, "1 to 256 characters"), ({"max_tokens": 2**31}, "max_tokens must be from 1 to 2147483647"),
        ({"max_tokens": -1}, "max_tokens must be from 1 to 2147483647, got -1"),
        ({"n": 17}, "n must be from 1 to 16"), ({"n": 0}, "n must be from 1 to 16"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs must be from 0 to 20"),
        ({"top_logprobs": 1}, "needs logprobs: true"), ({"choices": ["a", "b"], "stop": "c"}, "can't be used with"),
        ({"choices": ["a", "b"], "logprobs": True}, "logprobs are not given with choices"),
        ({**video(), "sampling": {"speech": True}}, "does not transcribe speech"), (video(num_frames=-1), "frames"),
        (video(scene_threshold=3), "scene_threshold means nothing where no cuts are looked for"),
        ({**video(), "sampling": {"speech_model": "tiny"}}, "speech_model means nothing without speech"),
        ({"messages": [{"role": "system", "content": ""}]}, "from the user, got a message from the system"),
        (video(fps=1, num_frames=4), "fps and a number of frames"), (video(fps=1, max_frames=4), "max_frames is not"),
        (video(video_url={"url": [f"file:///{n}.png" for n in range(MAX_FRAMES + 1)]}), f"at most {MAX_FRAMES}"),
    ],
)  # fmt: skip
def test_what_a_request_may_not_have(values: dict[str, Any], words: str) -> None:
    with pytest.raises((UsageError, RequestError), match=words):
        asked(values)


def test_what_a_request_may_have_at_most() -> None:
    most = asked({"n": 16, "stop": ["b" * 256, "a"] * 8, "logprobs": True, "top_logprobs": 20, "best_of": 1})
    assert (most.answers, most.stop, most.logprobs) == (16, ("b" * 256, "a"), 20), "each stop once"
    assert asked({"top_k": -1}).generation.top_k == 0 and asked({"max_tokens": 7.0}).generation.max_new_tokens == 7
    assert len(asked({}, *["file:///a.mp4"] * 64).urls) == 64
    with pytest.raises(UsageError, match="at most 64 videos and pictures, got 65"):
        asked({}, *["file:///a.mp4"] * 65)
    assert asked({}, text="é" * (MOST_BYTES // 2))
    with pytest.raises(UsageError, match="bytes of text"):
        asked({}, text="é" * (MOST_BYTES // 2 + 1))


def test_frames_are_at_most_those_of_the_server_where_a_bound_is_given() -> None:
    frames = PRESET.sampling.frames
    for bound, wanted in ((2, 2), (frames + 1, frames)):
        assert [each.frames for each in asked(video(max_frames=bound)).samplings] == [wanted]
    (scenes,) = asked({**video(sampling="scenes"), "sampling": {"scene_threshold": 3.0}}).samplings
    assert scenes.scene_threshold == 3, "the part of a video uses what is set for all"
    (sampling,) = asked(video(fps=2, num_frames=-1)).samplings
    assert sampling.fps == 2


def test_an_empty_system_text_is_none() -> None:
    system = {"role": "system", "content": " "}
    drafts = asked({"messages": [system, message("Why?")]}).drafts
    assert [draft.role for draft in drafts] == ["user"]


@pytest.mark.parametrize(
    ("data", "url"),
    [("AAAA", "data:video/mp4;base64,AAAA"), ("https://a/b", "https://a/b"), ({"data": "AA:A"}, "AA:A")],
)
def test_an_input_video_is_base64_or_a_url(data: Any, url: str) -> None:
    part = {"type": "input_video", "input_video": data}
    assert asked({"messages": [{"role": "user", "content": [part]}]}).urls == (url,)


@pytest.mark.parametrize(
    ("hint", "told"),
    [
        (None, None),
        ("use a smaller one", "use a smaller one"),
        (f"cut it; {RAISE_HINT}", "cut it"),
        (RAISE_HINT, "send a smaller one"),
        (
            "it does not fit: use fewer --frames, a smaller --max-new-tokens or --quantize 4",
            "it does not fit: use fewer num_frames or a smaller max_tokens",
        ),
        ("use --quantize 4", "send fewer media, or a shorter text"),
        (AS_ONE_VIDEO, 'send the pictures as one video: {"type": "video", "video": [URL, ...]}'),
    ],
)
def test_clients_get_the_hints_that_they_can_follow(hint: str | None, told: str | None) -> None:
    assert hint_for_clients(hint) == told


@pytest.mark.parametrize(
    ("error", "status", "kind", "code"),
    [
        (UsageError("x"), 400, "invalid_request_error", None),
        (MissingExtraError("x"), 400, "invalid_request_error", "missing_extra"),
        (MediaError("x"), 400, "invalid_request_error", "invalid_media"),
        (ContextError("x"), 400, "invalid_request_error", "context_length_exceeded"),
        (OutOfMemoryError("x"), 503, "server_error", "out_of_memory"),
        (ModelError("x"), 500, "server_error", None),
        (RequestError(429, "x"), 429, "rate_limit_error", None),
        (RequestError(401, "x"), 401, "authentication_error", None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_has_its_status_kind_and_code(error: LlvidError, status: int, kind: str, code: str | None) -> None:
    of = RequestError.of(error)
    assert of.status == of.response().status_code == status
    values = of.values["error"]
    assert (values["type"], values["param"], values["code"]) == (kind, None, code)


@pytest.mark.parametrize(
    "more",
    [
        {"previous_response_id": "a"},
        {"background": True},
        {"truncation": "auto"},
        {"n": 2},
        {"tools": [{}]},
        {"tool_choice": "required"},
        {"max_tool_calls": 1},
        {"conversation": "c"},
        {"prompt": {"id": "p"}},
    ],
    ids=str,
)
def test_what_a_response_cannot_have_is_refused_and_what_asks_for_nothing_is_not(more: dict[str, Any]) -> None:
    unused = {
        "background": False,
        "truncation": "disabled",
        "n": 1,
        "tools": [],
        "tool_choice": "auto",
        "reasoning": {},
    }
    messages = [{"role": "user", "content": "?"}]
    assert chat_values({"input": "?", **unused, "max_output_tokens": 5}) == {"max_tokens": 5, "messages": messages}
    with pytest.raises(RequestError) as caught:
        chat_values({"input": "?", **more})
    assert (caught.value.status, caught.value.param, caught.value.code) == (400, *more, "unsupported_parameter")


@pytest.mark.parametrize("kind", [[], {}])
def test_a_type_that_is_no_text_is_refused_as_any_other(kind: Any) -> None:
    with pytest.raises(UsageError, match="must have a type of text, json_object, json_schema"):
        asked({"response_format": {"type": kind}})
    with pytest.raises(UsageError, match="a part of a message must be"):
        asked(chat_values({"input": [{"role": "user", "content": [{"type": kind}]}]}))


def test_logprobs_of_a_response_are_asked_for_in_two_ways() -> None:
    for more in ({"include": ["message.output_text.logprobs"]}, {"top_logprobs": 2}):
        assert chat_values({"input": "?", **more})["logprobs"] is True
    assert "logprobs" not in chat_values({"input": "?", "include": []})
    with pytest.raises(UsageError, match="'include' can only be"):
        chat_values({"input": "?", "include": ["file_search_call.results"]})
