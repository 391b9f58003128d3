"""Folders as people and strangers have them: one line of what is wrong and what to do, and nothing hangs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from scenes import VIDEO

from llava_video_cli import Generation, Loading, ModelError, Request, Turn, join, open_model
from llava_video_cli.checkpoint import files, locate
from llava_video_cli.checkpoint.config import describe, read_config
from llava_video_cli.checkpoint.files import tokenizer_errors
from llava_video_cli.prompt.budget import TokenCounter

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\nsize 14125000000\n"
REQUEST = Request((Turn("user", "What happens?", (VIDEO,)),), Generation(max_new_tokens=4))
Change = Callable[[Path], Any]


@pytest.fixture
def folder(layouts: dict[str, Path], tmp_path: Path) -> Path:
    return shutil.copytree(layouts["vicuna"], tmp_path / "odd")


def config(change: dict[str, Any]) -> Change:
    def apply(folder: Path) -> None:
        path = folder / "config.json"
        values = json.loads(path.read_text())
        text = values["text_config"] | change.pop("text_config", {})
        path.write_text(json.dumps(values | change | {"text_config": text}))

    return apply


def tensors(change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Change:
    def apply(folder: Path) -> None:
        path = folder / "model.safetensors"
        save_file({k: v.contiguous() for k, v in change(load_file(path)).items()}, path, {"format": "pt"})

    return apply


def fifo(name: str) -> Change:
    def apply(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return apply


def loop(name: str) -> Change:
    def apply(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(name)

    return apply


def text(name: str, content: str) -> Change:
    return lambda folder: (folder / name).write_text(content)


def shards(folder: Path, count: int = 2) -> None:
    items = list(load_file(folder / "model.safetensors").items())
    (folder / "model.safetensors").unlink()
    for i in range(count):
        save_file(dict(items[i::2]), folder / f"model-0000{i + 1}-of-00002.safetensors", {"format": "pt"})


def adapter(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "llava-hf/base"}))


def without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    adapter(folder)


def without_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


def resized(values: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        k: torch.cat([v, v[:92]]) if k.endswith(("embed_tokens.weight", "lm_head.weight")) else v
        for k, v in values.items()
    }


def header(**tensor: Any) -> Change:
    """Weights whose header says other things of its one tensor."""
    content = json.dumps({"a": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]} | tensor}).encode()
    return lambda f: (f / "model.safetensors").write_bytes(len(content).to_bytes(8, "little") + content + bytes(4))


CROP = {"crop_size": {"height": 336, "width": 336}}
INDEX = "model.safetensors.index.json"
BEFORE_LOADING: dict[str, tuple[Change, str]] = {
    "pointer": (lambda f: (f / "model.safetensors").write_bytes(POINTER), r"pointer to a file of 14,125,000,000 bytes"),
    "pointer tokenizer": (lambda f: (f / "tokenizer.json").write_bytes(POINTER), r"tokenizer.json is Git LFS's"),
    "pointer config": (lambda f: (f / "config.json").write_bytes(POINTER), r"config.json is Git LFS's pointer"),
    "half": (lambda f: os.truncate(f / "model.safetensors", 900_000), r"cut short: 900,000 of [\d,]+ bytes"),
    "a few bytes": (lambda f: os.truncate(f / "model.safetensors", 9), r"not a safetensors file, or is cut short"),
    "no shape": (header(shape=None), r"not a safetensors file"),
    "a text as shape": (header(shape=["a"]), r"not a safetensors file"),
    "no whole number": (header(data_offsets=[0, 1e400]), r"not a safetensors file"),
    "one shard": (lambda f: shards(f, 1), r"lacks 1 of 2 weight files, such as model-00002"),
    "adapter": (without_weights, r"is an adapter for llava-hf/base, not a whole checkpoint"),
    "no tokenizer": (without_tokenizer, r"has no tokenizer: none of tokenizer.json"),
    "fifo": (fifo("config.json"), r"config.json can't be read: it is not a regular file"),
    "fifo generation": (
        fifo("generation_config.json"),
        r"generation_config.json can't be read: it is not a regular file",
    ),
    "fifo weights": (fifo("model.safetensors"), r"no weights"),
    "fifo index": (fifo(INDEX), r"it is not a regular file"),
    "fifo template": (fifo("chat_template.jinja"), r"it is not a regular file"),
    "loop": (
        loop("generation_config.json"),
        r"generation_config.json can't be read: Too many levels of symbolic links",
    ),
    "loop tokenizer": (loop("tokenizer.json"), r"tokenizer.json can't be read: Too many levels of symbolic links"),
    "gone": (lambda f: (f / "added_tokens.json").symlink_to("gone"), r"added_tokens.json can't be read: No such file"),
    "folder": (lambda f: (f / "merges.txt").mkdir(), r"merges.txt can't be read: it is not a regular file"),
    "another config": (config({"text_config": {"hidden_size": 4096}}), r"bytes, too few for the [\d,]+ parameters"),
    "no list": (text("config.json", '{"architectures": 3}'), r"its architecture is unknown"),
    "list template": (text("chat_template.json", "[]"), r"chat_template.json can't be read: it is not a mapping"),
    "large": (lambda f: os.truncate(f / "config.json", 2**31), r"2,147,483,648 bytes, more than"),
    "deep": (text("config.json", '{"a":' * 5000 + "1" + "}" * 5000), r"nested too deeply"),
    "deep processor": (text("processor_config.json", "[" * 5000 + "]" * 5000), r"nested too deeply"),
    "null": (text("generation_config.json", "null"), r"generation_config.json can't be read: it is not a mapping"),
    "number in the index": (text(INDEX, '{"weight_map": {"a": 3}}'), r"3 is not the name of a safetensors file"),
    "path in the index": (text(INDEX, '{"weight_map": {"a": "../etc/passwd"}}'), r"'../etc/passwd' is not the name"),
    "list in the index": (text(INDEX, '{"weight_map": ["a"]}'), r"it has no weight_map"),
    "unhashable in the index": (text(INDEX, '{"weight_map": {"a": []}}'), r"it has no weight_map"),
}


@pytest.mark.parametrize("name", BEFORE_LOADING)
def test_it_is_said_before_anything_is_loaded(folder: Path, name: str) -> None:
    change, words = BEFORE_LOADING[name]
    change(folder)
    with pytest.raises(ModelError, match=words) as error:
        locate(str(folder))
    assert "\n" not in str(error.value)


WHILE_LOADING: dict[str, tuple[Change, str, str]] = {
    "resized": (
        tensors(resized),
        r"(embed_tokens|lm_head).weight is 4100 x 64, not 4008 x 64",
        "vocab_size in its text_config to 4100",
    ),
    "a number": (
        tensors(lambda t: {k: torch.zeros(()) if k.endswith("lm_head.weight") else v for k, v in t.items()}),
        r"lm_head.weight is a single number, not 4008 x 64",
        "copy both again",
    ),
    "prefix": (
        tensors(lambda t: {f"module.{k}": v for k, v in t.items()}),
        r"65 tensors missing, such as",
        "begin with 'module'",
    ),
    "peft's names": (
        tensors(lambda t: {f"base_model.model.{k}": v for k, v in t.items()}),
        r"65 tensors missing",
        "'base_model.model'",
    ),
    "adapter inside": (
        tensors(lambda t: t | {"language_model.model.layers.0.self_attn.q_proj.lora_A.weight": torch.ones(4, 64)}),
        r"hold an adapter that is not merged: .*lora_A",
        "merge_and_unload",
    ),
    "fp8 with scales": (
        tensors(lambda t: t | {"language_model.lm_head.weight_scale": torch.ones(1)}),
        r"quantized .*weight_scale",
        "--quantize 4bit",
    ),
    "gptq": (
        tensors(lambda t: t | {"language_model.lm_head.qweight": torch.ones(3, dtype=torch.int32)}),
        r"quantized .*qweight",
        "--quantize 4bit",
    ),
    "awq": (config({"quantization_config": {"quant_method": "awq"}}), r"can't load: 'awq'", "--quantize 4bit"),
    "awq inside": (
        config({"text_config": {"quantization_config": {"quant_method": "awq"}}}),
        r"'awq' in its text_config",
        "--quantize",
    ),
    "no family": (config({"text_config": {"model_type": [3]}}), r"can't be used|can't be loaded", ""),
    "large size": (
        text("video_preprocessor_config.json", json.dumps({"size": {"shortest_edge": 10**6}} | CROP)),
        r"can't be used: it resizes to .*1000000",
        "take preprocessor_config.json",
    ),
    "no crop": (
        text(
            "video_preprocessor_config.json",
            json.dumps({"do_center_crop": False, "size": {"shortest_edge": 336}} | CROP),
        ),
        r"it makes frames of 672 x 336 pixels, the model takes 336 x 336",
        "take preprocessor_config.json",
    ),
    "no resample": (
        text("video_preprocessor_config.json", json.dumps({"resample": []} | CROP)),
        r"the preprocessor's config in .* can't be used",
        "take preprocessor_config.json",
    ),
    "no token": (text("generation_config.json", '{"eos_token_id": {}}'), r"eos_token_id must be the number of a", ""),
    "no name": (
        config({"model_type": []}),
        r"can't be loaded: unhashable type",
        "download config.json and the weights again",
    ),
    "bad generation config": (
        text("generation_config.json", '{"bad_words_ids": 3}'),
        r"generation_config.json can't be used",
        "",
    ),
}


@pytest.mark.parametrize("name", WHILE_LOADING)
def test_which_tensor_and_what_to_do(folder: Path, name: str) -> None:
    change, words, hint = WHILE_LOADING[name]
    change(folder)
    with pytest.raises(ModelError, match=words) as error:
        open_model(str(folder), Loading(device="cpu"))
    assert "\n" not in str(error.value) and hint in (error.value.hint or "")


LOADED: dict[str, Change] = {
    "shards without an index": shards,
    "a buffer": tensors(lambda t: t | {"vision_tower.vision_model.embeddings.position_ids": torch.arange(577)[None]}),
    "no special tokens": text("tokenizer_config.json", "{}"),
    "bool": tensors(lambda t: t | {"a.mask": torch.ones(3, dtype=torch.bool)}),
    "float64": tensors(lambda t: {k: v.double() for k, v in t.items()}),
}


@pytest.fixture(scope="module")
def plain_answer(layouts: dict[str, Path]) -> str:
    return join(open_model(str(layouts["vicuna"])).stream(REQUEST)).text


@pytest.mark.parametrize("name", LOADED)
def test_what_transformers_loads_is_loaded(folder: Path, plain_answer: str, name: str) -> None:
    LOADED[name](folder)
    assert join(open_model(str(folder)).stream(REQUEST)).text == plain_answer


def test_fp8_weights_answer_as_in_transformers(folder: Path) -> None:
    from transformers import LlavaNextVideoForConditionalGeneration

    from llava_video_cli.inference.loader import load

    tensors(lambda t: {k: v.to(torch.float8_e4m3fn) if v.dim() == 2 else v for k, v in t.items()})(folder)
    theirs = LlavaNextVideoForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    ours = dict(load(folder, Loading(device="cpu", dtype="float32")).model.named_parameters())
    assert all(torch.equal(value, ours[name]) for name, value in theirs.named_parameters())


def test_a_tokenizer_that_panics_is_an_error(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    values = json.loads((folder / "tokenizer.json").read_text())
    values["pre_tokenizer"] = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    (folder / "tokenizer.json").write_text(json.dumps(values))
    request = Request((Turn("user", "a" * 60 + "b", (VIDEO,)),))
    with pytest.raises(ModelError, match="the tokenizer of it fails: Onig"):
        TokenCounter("it", describe(read_config(folder)), folder).check(request)
    with pytest.raises(ModelError, match="fails: Onig"):
        join(open_model(str(folder)).stream(request))
    assert "panicked" not in capfd.readouterr().err


LONGER = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 16}
TABLE = {"type": "Precompiled", "precompiled_charsmap": "A" * 316_000}


@pytest.mark.parametrize(
    ("part", "steps", "times"),
    [
        ("normalizer", {"type": "Sequence", "normalizers": [LONGER] * 9}, "6.87e\\+10"),
        ("normalizer", {"type": "Replace", "pattern": {"Regex": ""}, "content": "a" * 100}, "101"),
        ("normalizer", {"type": "Sequence", "normalizers": [TABLE, TABLE]}, "1.49e\\+03"),
        ("decoder", {"type": "Sequence", "decoders": [LONGER] * 2}, "256"),
        (
            "post_processor",
            {"type": "TemplateProcessing", "single": [{"Sequence": {"id": "A", "type_id": 0}}] * 99},
            "99",
        ),
    ],
)
def test_a_tokenizer_that_makes_gigabytes_of_a_text_is_refused(
    part: str, steps: dict[str, Any], times: str, folder: Path
) -> None:
    values = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(values | {part: steps}))
    with pytest.raises(ModelError, match=f"makes a text up to {times} times as long"):
        open_model(str(folder))


@pytest.mark.parametrize("normalizer", [TABLE, {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}])
def test_the_steps_of_published_tokenizers_are_not(normalizer: dict[str, Any], folder: Path) -> None:
    values = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(values | {"normalizer": normalizer}))
    assert locate(str(folder)) == folder


def test_a_tokenizer_of_wrong_values_is_an_error(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text('{"model_max_length": []}')
    with pytest.raises(ModelError, match=r"the tokenizer of .* fails: "):
        join(open_model(str(folder)).stream(REQUEST))


@pytest.mark.parametrize("form", ["https://huggingface.co/{}", "hf.co/{}", "{}/", "https://hf.co/{}/tree/main"])
def test_an_address_of_the_hub_is_told_from_a_name(form: str) -> None:
    with pytest.raises(ModelError, match="is not the name of a model") as error:
        locate(form.format("llava-hf/LLaVA-NeXT-Video-7B-hf"))
    assert (error.value.hint or "").endswith(" llava-hf/LLaVA-NeXT-Video-7B-hf")


def test_tokens_that_a_fine_tune_added_are_shown(folder: Path) -> None:
    from transformers import AutoTokenizer, LlavaNextVideoForConditionalGeneration

    model, tokenizer = (
        LlavaNextVideoForConditionalGeneration.from_pretrained(folder),
        AutoTokenizer.from_pretrained(folder),
    )
    tokenizer.add_special_tokens({"additional_special_tokens": [f"<t{i}>" for i in range(100)]})
    model.resize_token_embeddings(len(tokenizer))
    likeliest = join(open_model(str(folder)).stream(REQUEST)).text.split()[0]
    (_, token) = tokenizer.convert_tokens_to_ids(["<t5>", "▁" + likeliest])
    model.lm_head.weight.data[tokenizer.convert_tokens_to_ids("<t5>")] = 3 * model.lm_head.weight.data[token]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    assert join(open_model(str(folder)).stream(REQUEST)).text.replace(" ", "") == "<t5>" * 4


def test_a_call_of_the_tokenizer_leaves_no_file_open_where_none_can_be_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> int:
        raise OSError("no space left")

    monkeypatch.setattr(files, "_scratch_file", refused)
    before = os.dup(2)
    os.close(before)
    with tokenizer_errors("demo"):
        after = os.dup(2)
        os.close(after)
    assert after == before, "the lowest number that is free"


def test_what_is_written_during_a_call_of_the_tokenizer_is_not_lost(capfd: pytest.CaptureFixture[str]) -> None:
    with tokenizer_errors("demo"):
        os.write(2, b"finishing what is running\n")
    assert capfd.readouterr().err == "finishing what is running\n"

    class PanicException(BaseException):
        """As the tokenizers library has it."""

    with pytest.raises(ModelError, match="the tokenizer of demo fails: a regex"), tokenizer_errors("demo"):
        os.write(2, b"thread '<unnamed>' panicked at ...\n")
        raise PanicException("a regex")
    assert capfd.readouterr().err == ""
