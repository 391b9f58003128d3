"""The one strict reader: what it takes, and what it says of the rest."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from llava_video_cli import Generation, Sampling, UsageError, load_preset
from llava_video_cli.model import Quantize
from llava_video_cli.preset import Preset, read_preset, sampling_shape, with_sampling
from llava_video_cli.runs.conversation_file import read_conversation
from llava_video_cli.runs.requests import read_requests
from llava_video_cli.server.requests import parse_body, read_completion
from llava_video_cli.server.responses import RequestError
from llava_video_cli.validation import Text, fitting, read_fields, read_json, read_yaml, shape_of

SHAPE = {"sampling": shape_of(Sampling), "generation": shape_of(Generation)}
USER = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("value", "wanted", "words"),
    [
        (True, int, "'x' must be a whole number, got true"),
        ([None, {"a": [True]}], str, "'x' must be text, got [null, {'a': [true]}]"),
        (2.0, int, "'x' must be a whole number, got 2.0"),
        ("3", float | None, "'x' must be a number or null, got '3'"),
        (10**400, float, "'x' must be a number, got 1000"),
        (1, bool, "'x' must be true or false, got 1"),
        (b"x", str, "'x' must be text, got b'x'"),
        (" ", Text, "'x' must be text, got ' '"),
        ([], list, "'x' must be a non-empty list, got []"),
        ("8bits", Quantize, "'x' must be one of auto, none, 8bit, 4bit, got '8bits'"),
        ("\ud800", str, r"'x': '\ud800' is only half of a character"),
        ("\ud800", float | None, r"'x': '\ud800' is only half of a character"),
        ("", Text | None, "'x' must be text or null, got ''"),
        ("y" * 500, int, f"'x' must be a whole number, got '{'y' * 99}..."),
    ],
)
def test_a_value_of_another_type_is_named_with_what_is_wanted(value: object, wanted: Any, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        fitting(value, wanted, "'x'")
    assert str(caught.value).startswith(words) and "Expected" not in str(caught.value)


def test_a_whole_number_stands_for_a_fraction_and_null_may_mean_that_nothing_is_given() -> None:
    found = read_fields({"generation": {"temperature": 1, "seed": None}}, SHAPE)
    assert found == {"generation": {"temperature": 1.0, "seed": None}}
    assert type(found["generation"]["temperature"]) is float
    nothing = {"sampling": {"frames": None, "fps": 2}, "generation": None}
    assert read_fields(nothing, SHAPE, null_is_missing=True) == {"sampling": {"fps": 2.0}}


def test_a_mistyped_key_gets_the_nearest() -> None:
    for values, words, hint in (
        ({"samplign": {}}, "unknown key 'samplign'", "did you mean 'sampling'?"),
        ({"sampling": {"frame": 1}}, "unknown key 'frame' in sampling", "did you mean 'frames'?"),
        ({3: 1}, "unknown key 3", "the keys are generation, sampling"),
    ):
        with pytest.raises(UsageError) as caught:
            read_fields(values, SHAPE)
        assert (str(caught.value), caught.value.hint) == (words, hint)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"a": 1, "a": 2}', "not JSON: the key 'a' appears twice"),
        ('{"a": NaN}', "not JSON: NaN is not allowed"),
        ('{"a": -Infinity}', "not JSON: -Infinity is not allowed"),
        ('{"a": -1e999}', "not JSON: '-1e999' is too large"),
        ("[" * 100_000, "not JSON: nested too deeply"),
        ('{"a": ', "not JSON: Expecting value (column 7)"),
        ('{"a":\n}', "not JSON: Expecting value (line 2, column 1)"),
    ],
)
def test_wrong_json_is_one_line(text: str, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_json(text)
    assert str(caught.value) == words


def test_a_number_that_python_would_not_show_is_refused() -> None:
    with pytest.raises(UsageError, match="line 2: not YAML: the number has too many digits"):
        read_yaml(f"a: 1\nb: 0x{'f' * 6000}")


@pytest.mark.parametrize("number", [".nan", ".inf", "-.Inf", "1.0e+999"])
def test_yaml_has_no_number_that_json_has_not(number: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_yaml(f"a: 1.5\nb: [{number}]")
    assert str(caught.value) == f"line 2: not YAML: {number} is not allowed"


@pytest.mark.parametrize("value", ["!!bool x", '!!int ""', '!!float ""', "!!timestamp x", "!!map x", '"\\UFFFFFFFF"'])
def test_a_value_that_is_not_what_its_tag_says(value: str) -> None:
    with pytest.raises(UsageError, match="not YAML: ") as caught:
        read_yaml(f"a: {value}")
    assert "\n" not in str(caught.value)


def test_a_character_that_yaml_forbids_is_one_line() -> None:
    with pytest.raises(UsageError) as caught:
        read_yaml("about: x\0\n")
    assert str(caught.value) == "not YAML: special characters are not allowed"


def test_a_preset_that_would_grow_to_gigabytes_is_one_line(tmp_path: Path) -> None:
    rows = [f"  - &a{n} [{', '.join([f'*a{n - 1}' if n else 'lol'] * 10)}]" for n in range(12)]
    (tmp_path / "bomb.yaml").write_text("\n".join(["about: x", "prompt:", *rows]))
    (tmp_path / "long.yaml").write_text("about: " + "x" * 2**18)
    began = time.monotonic()
    for name, words in (("bomb", "line 4: not YAML: aliases are not allowed"), ("long", "more than 262,144 bytes")):
        with pytest.raises(UsageError, match=words) as caught:
            load_preset(str(tmp_path / f"{name}.yaml"))
        assert "\n" not in str(caught.value)
    assert time.monotonic() - began < 10


def test_an_option_has_the_same_name_everywhere(tmp_path: Path) -> None:
    wanted = Sampling(frames=4, start_seconds=90.0, end_seconds=120.5, mode="keyframes")
    options = '{"frames": 4, "start": "1:30", "end": 120.5, "sampling": "keyframes"}'
    (tmp_path / "p.yaml").write_text(f"about: x\nsampling: {options}\n")
    (tmp_path / "c.json").write_text(f'{{"sampling": {options}, "messages": [{{"role": "user", "content": "x"}}]}}')
    (tmp_path / "r.jsonl").write_text(f'{{"video": "a", "question": "x", {options[1:]}')
    base = Preset("", "", sampling=Sampling(fps=2.0))
    part = '{"type": "video_url", "video_url": {"url": "data:"}}'
    body = parse_body(f'{{"messages": [{{"role": "user", "content": [{part}]}}], "sampling": {options}}}'.encode())
    assert read_preset(tmp_path / "p.yaml").sampling == wanted
    assert read_conversation(tmp_path / "c.json").over(base).sampling == wanted
    assert next(read_requests(tmp_path / "r.jsonl", base)).sampling == wanted
    assert read_completion(body, "m", base).samplings == (wanted,)
    with pytest.raises(UsageError, match="'start' and 'start_seconds' are the same setting"):
        with_sampling(Sampling(), {"start": 1, "start_seconds": 2})
    assert set(shape_of(Sampling)) < set(sampling_shape())


@pytest.mark.parametrize(
    ("values", "param"),
    [
        ({"messages": [USER], "temprature": 1}, "temprature"),
        ({"messages": [USER], "temperature": "hot"}, "temperature"),
        ({"messages": [USER], "temperature": -1}, "temperature"),
        ({"messages": [USER], "max_tokens": 0}, "max_tokens"),
        ({"messages": [USER], "sampling": {"frames": "8"}}, "sampling.frames"),
        ({"messages": [USER], "sampling": {"frames": 0}}, "sampling"),
        ({"messages": [USER], "media_io_kwargs": {"video": {"fps": "x"}}}, "media_io_kwargs.video.fps"),
        ({"messages": [USER], "stop": [1]}, "stop"),
        ({"messages": [USER], "choices": ["\ud800", "b"]}, "choices"),
        ({"messages": []}, "messages"),
        ({"messages": [USER, {"role": "cat", "content": "x"}]}, "messages[1].role"),
        ({"messages": [{"role": "user", "content": [USER]}]}, "messages[0].content[0]"),
    ],
)
def test_a_refused_request_names_its_field(values: dict[str, Any], param: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_completion(values, "m", Preset("", ""))
    error = RequestError.of(caught.value)
    assert (error.status, error.param) == (400, param) and "\n" not in str(error)


def test_a_whole_number_may_be_written_as_a_fraction_in_a_request() -> None:
    asked = read_completion(
        {"messages": [USER], "max_tokens": 4.0, "temperature": 1, "seed": None}, "m", Preset("", "")
    )
    assert (asked.generation.max_new_tokens, asked.generation.temperature, asked.generation.seed) == (4, 1.0, None)
