"""Answers that fit a schema or match a regex: on every layout, streamed and in company; and what is refused."""

from __future__ import annotations

import json
import re
import resource
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes import events, joined
from scenes import VIDEO, checkpoint
from schemas import HOSTILE, UNSUPPORTED, Schemas, fault
from transformers import AutoTokenizer

from llava_video_cli import Generation, LlvidError, Model, Request, Turn, UsageError, join, open_model
from llava_video_cli.demo import CHECKPOINT
from llava_video_cli.inference.constraints import Constraint, Grammars, Vocabulary, check
from llava_video_cli.inference.detokenizer import token_bytes
from llava_video_cli.inference.video_model import VideoModel
from llava_video_cli.preset import Preset
from llava_video_cli.runs.resumable import settle_run
from llava_video_cli.runs.windows import window_requests

SHAPE = {
    "type": "object",
    "properties": {"shape": {"enum": ["circle", "square"]}, "größe": {"type": "integer", "maximum": 9, "minimum": 0}},
    "required": ["shape", "größe"],
    "additionalProperties": False,
}


def asked(text: str = "What shape is it?", **generation: Any) -> Request:
    if "schema" in generation:
        generation["schema"] = json.dumps(generation["schema"])
    return Request((Turn("user", text, (VIDEO,)),), Generation(**({"max_new_tokens": 300} | generation)))


@pytest.fixture(
    scope="module",
    params=["demo", "vicuna", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mistral", "yi"))],
)
def model(request: pytest.FixtureRequest, layouts: dict[str, Path]) -> Model:
    return open_model(str(checkpoint(request.param, layouts)))


@pytest.fixture(scope="module")
def demo() -> Model:
    return open_model("demo")


def grammars() -> Grammars:
    tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
    return Grammars(Vocabulary(token_bytes(tokenizer, len(tokenizer)), [tokenizer.eos_token_id]), " ")


def allowed(constraint: Constraint, count: int) -> list[int]:
    mask = np.zeros(-(-count // 32), np.int32)
    constraint.fill(mask.ctypes.data, mask.nbytes)
    return [int(number) for number in np.flatnonzero(np.unpackbits(mask.view(np.uint8), bitorder="little"))]


def test_answers_fit_their_schemas_beside_others_that_have_none(model: Model) -> None:
    """Several schemas and none in one batch, greedy and sampled: each as it is alone."""
    schemas = [Schemas(seed).draw() for seed in range(4)]
    requests = [
        asked(schema=schema, temperature=number % 2, seed=number, max_new_tokens=150)
        for number, schema in enumerate(schemas)
    ]
    requests += [asked("Why?", max_new_tokens=12), asked(regex=r"\s(yes|no)\n+x", temperature=1.0, seed=1)]
    alone = [join(model.stream(request)) for request in requests]
    together = joined(events(model, requests))
    assert [(each.text, each.finish_reason) for each in alone] == [
        (together[number].text, together[number].finish_reason) for number in range(len(requests))
    ]
    ended = [number for number in range(len(schemas)) if alone[number].finish_reason == "stop"]
    assert len(ended) >= 2, "a number may have digits without end"
    assert [fault(alone[number].text, schemas[number]) for number in ended] == [None] * len(ended)
    assert re.fullmatch(r"\s(yes|no)\n+x", alone[-1].text), "white space at the ends of a regex's answer stays"


def test_an_answer_is_streamed_and_ends_with_its_grammar(demo: Model) -> None:
    chunks = list(demo.stream(asked(schema=SHAPE)))
    texts = [chunk.text for chunk in chunks if chunk.text]
    assert len(texts) >= 3 and texts[0] == '{"shape":'
    assert chunks[-1].finish_reason == "stop" and fault("".join(texts), SHAPE) is None


def test_an_answer_that_the_limit_cuts_says_so(demo: Model) -> None:
    whole = join(demo.stream(asked(schema=SHAPE)))
    assert whole.usage is not None
    for limit, reason in ((whole.usage.generated_tokens, "stop"), (whole.usage.generated_tokens - 1, "length")):
        answer = join(demo.stream(asked(schema=SHAPE, max_new_tokens=limit)))
        assert answer.finish_reason == reason and whole.text.startswith(answer.text)


def test_a_repetition_that_a_schema_asks_for_is_no_reason_to_end(demo: Model) -> None:
    zeros = {"type": "array", "items": {"const": 0}, "minItems": 60, "maxItems": 60}
    answer = join(demo.stream(asked(schema=zeros)))
    assert answer.finish_reason == "stop" and json.loads(answer.text) == [0] * 60


def test_windows_are_described_freely_before_the_answer_fits_the_schema() -> None:
    preset = Preset("p", "", generation=asked(schema=SHAPE).generation)
    assert not any(each.generation.is_constrained for each in window_requests(["What?"], preset, VIDEO))


@pytest.mark.parametrize("schema", UNSUPPORTED, ids=str)
def test_a_schema_that_can_not_be_honoured_is_refused(schema: dict[str, Any], demo: Model) -> None:
    request = asked(schema=schema)
    for refuse in (lambda: check(request.generation), lambda: join(demo.stream(request))):
        with pytest.raises(UsageError, match="can't be followed completely") as caught:
            refuse()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("regex", ["(", r"(a)\1", "(?=a)b", r"\bword\b"])
def test_a_regex_that_can_not_be_honoured_is_refused(regex: str) -> None:
    with pytest.raises(UsageError, match="the regex can't be followed completely"):
        check(Generation(regex=regex))


@pytest.mark.parametrize("schema", ["3", "[]", "null", "{", '{"type": 1}'])
def test_what_is_no_schema_is_refused(schema: str) -> None:
    with pytest.raises(UsageError):
        check(Generation(schema=schema))


@pytest.mark.parametrize("other", [{"regex": "a"}, {"choices": ("a", "b")}, {"prefill": "a"}], ids=str)
def test_a_schema_excludes_other_ways_to_say_what_an_answer_is(other: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="can't be used together"):
        Generation(schema="{}", **other)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_schema_takes_little_time_and_memory(name: str) -> None:
    schema, problem = HOSTILE[name]
    made, before = grammars(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    generation, began = asked(schema=schema).generation, time.process_time()
    failure: LlvidError | None = None
    try:
        constraint = made.constraint(generation)
        assert constraint is not None
        for _ in range(30):
            numbers = allowed(constraint, 448)
            if constraint.failure or not numbers:
                break
            constraint.take(numbers[-1])
        failure = constraint.failure
    except UsageError as error:
        failure = error
    assert time.process_time() - began < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024
    assert problem is None or (failure is not None and problem in str(failure))
    assert failure is None or "\n" not in str(failure)


def test_no_schema_reaches_the_network() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.3)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/s.json"
        for schema in ({"$ref": url}, {"$schema": url, "type": "null"}, {"$id": url, "$ref": "t.json"}):
            with pytest.raises(UsageError):
                check(asked(schema=schema).generation)
        with pytest.raises(TimeoutError):
            server.accept()


def test_the_bytes_of_tokens_are_those_of_llguidance(layouts: dict[str, Path]) -> None:
    from llguidance.hf import from_tokenizer

    for folder in (CHECKPOINT, layouts["vicuna"], layouts["yi"]):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        theirs, ours = from_tokenizer(tokenizer), token_bytes(tokenizer, len(tokenizer) + 3)
        assert ours[len(tokenizer) :] == [b""] * 3
        for number in range(len(tokenizer)):
            special = (b"", b"\xff")  # a byte that no text has, which marks special tokens there
            wanted = special if theirs.is_special_token(number) else (theirs.decode_bytes([number]),)
            assert ours[number] in wanted


def test_what_a_schema_takes_of_the_tokens_may_be_made_while_the_weights_are_read(demo: Model) -> None:
    preset = Preset("p", "", "demo", generation=asked(schema=SHAPE).generation)
    source = settle_run(preset, None)[1]
    assert (
        source.loading.constrained
        and not settle_run(replace(preset, generation=Generation()), None)[1].loading.constrained
    )
    model = source.open()
    assert isinstance(model, VideoModel) and model._loaded.vocabulary is not None  # noqa: SLF001 - when is what it is about
    assert join(model.stream(asked(schema=SHAPE))).text == join(demo.stream(asked(schema=SHAPE))).text


def test_a_compiled_schema_is_kept_and_the_oldest_one_goes() -> None:
    made = grammars()
    schemas = [asked(schema={"const": number}).generation for number in range(20)]
    first, again = made.constraint(schemas[0]), made.constraint(schemas[0])
    assert first is not None and again is not None
    first.take(allowed(first, 448)[0])
    assert allowed(again, 448) != allowed(first, 448), "each answer has its own state"
    for each in schemas:
        made.constraint(each)
    assert len(made._kept) == 16  # noqa: SLF001 - memory is what it is about


def test_a_regex_that_gets_too_complex_in_mid_answer_is_not_kept() -> None:
    made = grammars()
    constraint = made.constraint(Generation(regex="(a{999}){999}"))
    assert constraint is not None
    constraint.take(allowed(constraint, 448)[0])
    allowed(constraint, 448)
    assert constraint.failure is not None
    assert not made._kept  # noqa: SLF001 - it holds 150 MB


@pytest.mark.parametrize("regex", ["(a{500}){500}", "(a{300}){300}"])
def test_a_regex_for_which_all_other_answers_would_wait_is_too_complex(regex: str) -> None:
    constraint = grammars().constraint(Generation(regex=regex))
    assert constraint is not None
    constraint.take(allowed(constraint, 448)[0])
    assert constraint.failure is not None and "too complex" in str(constraint.failure)


def test_thousands_of_values_are_not_too_complex() -> None:
    constraint = grammars().constraint(asked(schema={"enum": [f"value {number}" for number in range(5000)]}).generation)
    assert constraint is not None
    constraint.take(allowed(constraint, 448)[0])
    assert allowed(constraint, 448) and constraint.failure is None
