"""Answers that programs read, at the server: schemas, choices, logprobs, several answers, and the Responses API."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from schemas import fault
from serving import QUESTION, Served, data_url, message, serving

from llava_video_cli import Generation, Model, Request, Turn, join, open_model, open_remote
from llava_video_cli.conversation import Chunk, Usage
from llava_video_cli.errors import extra_hint
from llava_video_cli.server.responses import ChatForm
from llava_video_cli.server.responses_api import ResponseForm

pytest.importorskip("uvicorn")
openai = pytest.importorskip("openai")

SHAPE: dict[str, Any] = {
    "type": "object",
    "properties": {"shape": {"enum": ["circle", "square"]}, "moves": {"type": "boolean"}},
    "required": ["shape", "moves"],
    "additionalProperties": False,
}
FORMAT = {"type": "json_schema", "json_schema": {"name": "clip", "schema": SHAPE, "strict": True, "description": None}}


@pytest.fixture(scope="module")
def model() -> Model:
    return open_model("demo")


@pytest.fixture(scope="module")
def served(model: Model) -> Iterator[Served]:
    with serving(model, names=["gpt-4o", "demo"]) as running:
        yield running


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def messages(clip: Path) -> list[dict[str, Any]]:
    return [message(QUESTION, data_url(clip))]


@pytest.mark.parametrize(
    ("body", "schema"),
    [
        ({"response_format": FORMAT}, SHAPE),
        ({"response_format": {"type": "json_object"}}, {"type": "object"}),
        ({"structured_outputs": {"json": SHAPE, "regex": None}}, SHAPE),
        ({"structured_outputs": {"json": json.dumps(SHAPE)}, "response_format": {"type": "text"}}, SHAPE),
        ({"structured_outputs": {"choice": ['"a|b"', '"c\\n*"']}}, {"enum": ["a|b", "c\n*"]}),
        ({"structured_outputs": {"regex": "[1-9][0-9]{3}"}}, {"type": "integer", "minimum": 1000, "maximum": 9999}),
    ],
    ids=str,
)
def test_answers_have_the_form_that_is_asked_for(
    client: Any, messages: Any, body: dict[str, Any], schema: dict[str, Any]
) -> None:
    whole = client.chat.completions.create(model="demo", messages=messages, max_tokens=200, extra_body=body)
    assert whole.choices[0].finish_reason == "stop" and fault(whole.choices[0].message.content, schema) is None
    stream = client.chat.completions.create(
        model="demo", messages=messages, max_tokens=200, stream=True, extra_body=body
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    assert text == whole.choices[0].message.content


def test_a_format_of_the_preset_is_given_up_for_text(model: Model, messages: Any) -> None:
    from dataclasses import replace

    from llava_video_cli.preset import load_preset

    preset = replace(load_preset("demo"), generation=Generation(60, schema=json.dumps(SHAPE)))
    with serving(model, preset) as served:
        answers = [
            served.post({"messages": messages, **more})[1]["choices"][0]["message"]["content"]
            for more in ({}, {"response_format": None}, {"response_format": {"type": "text"}})
        ]
    assert fault(answers[0], SHAPE) is None and answers[1] == answers[0] and answers[2] == "It is a circle."


@pytest.mark.parametrize(
    ("package", "extra", "body"),
    [
        ("llguidance", "schema", {"response_format": FORMAT | {"json_schema": {"schema": {"const": "new"}}}}),
        ("llguidance", "schema", {"structured_outputs": {"regex": "new"}, "stream": True}),
        ("scenedetect", "scenes", {"sampling": {"sampling": "scenes"}}),
    ],
)
def test_an_extra_that_the_server_lacks_is_named(
    package: str, extra: str, body: Any, served: Served, messages: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    status, values = served.post({"messages": messages, **body})
    assert status == 400 and values["error"]["code"] == "missing_extra"
    assert f"the extra '{extra}'" in values["error"]["message"]
    assert values["error"]["hint"] == extra_hint(extra)


def test_openais_client_parses_answers_and_knows_which_are_cut(client: Any, messages: Any) -> None:
    pydantic = pytest.importorskip("pydantic")
    kind = pydantic.create_model("Clip", shape=(str, pydantic.Field(pattern="^(circle|square)$")), moves=(bool, ...))
    parsed = client.chat.completions.parse(model="demo", messages=messages, response_format=kind, max_tokens=100)
    assert parsed.choices[0].message.parsed.shape in ("circle", "square")
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(model="demo", messages=messages, response_format=kind, max_tokens=5)
    parsed = client.responses.parse(model="demo", input=messages, text_format=kind, max_output_tokens=100)
    assert parsed.output_parsed.shape in ("circle", "square") and parsed.status == "completed"


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"response_format": {"type": "json_schema"}}, "json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": 1}}}, "must be an object, got 1"),
        ({"response_format": {"type": "xml"}}, "must have a type of text, json_object, json_schema"),
        ({"response_format": FORMAT | {"strict": True}}, "unknown key 'strict'"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"not": {}}}}}, "can't be followed"),
        ({"response_format": FORMAT, "structured_outputs": {"regex": "a"}}, "not both"),
        ({"response_format": FORMAT, "choices": ["a", "b"]}, "can't be used together"),
        ({"structured_outputs": {"choice": ["a"], "regex": "b"}}, "must have one of"),
        ({"structured_outputs": {"grammar": "root ::= a"}}, "unknown key 'grammar'"),
        ({"structured_outputs": {"choice": []}}, "choice must be a non-empty list"),
        ({"structured_outputs": {"regex": "(?=a)"}}, "can't be followed"),
        ({"structured_outputs": {"regex": "(a?){3000}a{3000}"}}, "too complex"),
        ({"top_k": 2**31}, "top_k must be from 0 to 2147483647"),
        ({"schema": SHAPE}, "unknown key 'schema'"),
        ({"top_logprobs": 3}, "needs logprobs"),
        ({"logprobs": True, "choices": ["a", "b"]}, "logprobs are not given with choices"),
        ({"n": 17}, "n must be from 1 to 16"),
    ],
    ids=str,
)
def test_what_is_not_understood_is_refused(served: Served, messages: Any, body: dict[str, Any], words: str) -> None:
    status, answer = served.post({"messages": messages, **body})
    assert status == 400 and words in answer["error"]["message"], answer


def test_null_means_not_given(served: Served, messages: Any) -> None:
    names = ("response_format", "structured_outputs", "logprobs", "n", "tools", "top_k", "prompt_logprobs", "stop")
    status, answer = served.post({"messages": messages, **dict.fromkeys(names)})
    assert status == 200 and answer["choices"][0]["message"]["content"] == "It is a circle."


def test_logprobs_come_with_the_tokens_of_the_text(client: Any, messages: Any) -> None:
    asked: dict[str, Any] = {"model": "demo", "messages": messages, "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**asked).choices[0]
    text = b"".join(bytes(each.bytes) for each in whole.logprobs.content)
    assert text.decode().strip() == whole.message.content
    for each in whole.logprobs.content:
        assert len(each.top_logprobs) == 2 and each.logprob == each.top_logprobs[0].logprob <= 0, "greedy"
    pieces = client.chat.completions.create(**asked, stream=True)
    noted = [piece.choices[0].logprobs for piece in pieces]
    streamed = [each for logprobs in noted if logprobs for each in logprobs.content]
    assert [each.token for each in streamed] == [each.token for each in whole.logprobs.content]


def test_the_first_of_several_answers_is_that_of_one(client: Any, messages: Any) -> None:
    asked: dict[str, Any] = {"model": "demo", "messages": messages, "temperature": 30.0, "seed": 4, "max_tokens": 6}
    several = client.chat.completions.create(**asked, n=3)
    texts = [choice.message.content for choice in several.choices]
    assert [choice.index for choice in several.choices] == [0, 1, 2] and len(set(texts)) == 3
    assert client.chat.completions.create(**asked).choices[0].message.content == texts[0]
    assert several.usage.completion_tokens > 6, "of all three"
    streamed = ["", "", ""]
    for chunk in client.chat.completions.create(**asked, n=3, stream=True):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
    assert streamed == texts


def test_responses_are_the_answers_of_chat_completions(client: Any, clip: Path) -> None:
    video = {"type": "video_url", "video_url": {"url": data_url(clip)}}
    items = [{"role": "user", "content": [video, {"type": "input_text", "text": QUESTION}]}]
    whole = client.responses.create(model="gpt-4o", input=items, store=False)
    assert whole.output_text == "It is a circle." and whole.status == "completed" and whole.model == "gpt-4o"
    assert whole.usage.total_tokens == whole.usage.input_tokens + whole.usage.output_tokens
    stream = list(client.responses.create(model="demo", input=items, stream=True, instructions="Be brief."))
    kinds = [event.type for event in stream]
    assert kinds[:4] == [
        "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    ]  # fmt: skip
    assert kinds[-1] == "response.completed" and [event.sequence_number for event in stream] == list(range(len(stream)))
    deltas = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
    assert deltas == stream[-1].response.output_text == "It is a circle."
    cut = client.responses.create(model="demo", input=items, max_output_tokens=2)
    assert (cut.status, cut.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    again = [*items, *whole.model_dump()["output"], {"role": "user", "content": QUESTION}]
    assert client.responses.create(model="demo", input=again).status == "completed"


def test_both_forms_count_the_tokens_of_thinking() -> None:
    usage = Usage(50, 20, 9, 0.1, 0.2, 0, thinking_tokens=7)
    extra = {"generation": {"max_new_tokens": 40, "temperature": 0, "top_p": 1}}
    last = [Chunk("It moves.", "stop", usage)]
    completion = ChatForm("chatcmpl-1", 0, "demo").whole(last, extra)["usage"]
    response = ResponseForm("resp_1", 0, "demo", {}).whole(last, extra)["usage"]
    assert completion["completion_tokens_details"] == response["output_tokens_details"] == {"reasoning_tokens": 7}
    assert completion["prompt_tokens_details"] == response["input_tokens_details"] == {"cached_tokens": 20}
    for names, counts in ((("prompt", "completion"), completion), (("input", "output"), response)):
        assert [counts[f"{name}_tokens"] for name in (*names, "total")] == [50, 9, 59]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": []}, "input"),
        ({"input": [{"type": "function_call_output"}]}, "input"),
        ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "input[0].content[0]"),
        ({"input": "a", "previous_response_id": "resp_1"}, "previous_response_id"),
        ({"input": "a", "max_output_tokens": 0}, "max_output_tokens"),
        ({"input": "a", "tools": [{"type": "web_search"}]}, "tools"),
        ({"input": "a", "text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"input": "a", "text": {"format": {"type": "json_schema", "name": 1, "schema": {}}}}, "text.format.name"),
        ({"input": "a", "text": {"format": {"type": "xml"}}}, "text.format"),
        ({"input": "a", "messages": []}, "input"),
        ({"input": "a", "model": "other"}, "model"),
    ],
    ids=str,
)
def test_an_error_of_a_response_names_its_own_field(served: Served, body: dict[str, Any], param: str) -> None:
    kinds = {"Content-Type": "application/json"}
    status, _, content = served.send("POST", "/v1/responses", json.dumps(body).encode(), kinds)
    error = json.loads(content)["error"]
    assert 400 <= status < 500 and error["param"] == param, content
    assert not any(name in error["message"] for name in ("response_format", "json_schema'", "max_tokens"))


def test_clients_know_the_model_by_the_names_that_it_is_served_under(served: Served, messages: Any) -> None:
    status, _, content = served.send("GET", "/v1/models")
    assert [each["id"] for each in json.loads(content)["data"]] == ["gpt-4o", "demo"]
    assert served.send("GET", "/v1/models/demo")[0] == 200 and served.send("GET", "/v1/models/x")[0] == 404
    for name in ("gpt-4o", "demo", None):
        status, answer = served.post({"messages": messages, "model": name})
        assert status == 200 and answer["model"] == "gpt-4o"
    assert served.post({"messages": messages, "model": "gpt-5"})[0] == 404


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        ("/chat/completions", "/v1"), ("/models", "/v1"), ("/v1/completions", "/v1/chat/completions"), ("/v2", None),
        ("/v1/responses/", "the slash at the end"),  # a redirect would go where the Host header says
    ],
)  # fmt: skip
def test_a_wrong_path_gets_a_hint(served: Served, path: str, hint: str | None) -> None:
    status, _, content = served.send("POST", path, b"{}")
    shown = json.loads(content)["error"].get("hint")
    assert status == 404 and (shown is None if hint is None else shown.endswith(hint))


def test_a_schema_reaches_the_server_by_the_option(served: Served, model: Model) -> None:
    remote = open_remote([served.url])
    generation = Generation(100, top_k=3, presence_penalty=0.5, schema=json.dumps(SHAPE))
    for asked in (generation, Generation(100, schema='{"type": "object"}'), Generation(100, regex=" (yes|no) ")):
        request = Request((Turn("user", QUESTION),), asked)
        here, there = join(model.stream(request)), join(remote.stream(request))
        assert (here.text, here.finish_reason) == (there.text, there.finish_reason)
