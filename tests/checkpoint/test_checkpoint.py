"""The facts of the published configs, read from configs with their values."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from configs import BASE, MISTRAL, PUBLISHED, VICUNA, VISION, YI

from llava_video_cli.checkpoint import config as config_module
from llava_video_cli.checkpoint.adapter import check_adapter
from llava_video_cli.checkpoint.config import check_weights, describe, prompt_format_of, read_checkpoint, read_config
from llava_video_cli.checkpoint.families import check_family
from llava_video_cli.checkpoint.files import read_json
from llava_video_cli.checkpoint.size import kv_bytes
from llava_video_cli.cli.app import run
from llava_video_cli.demo import CHECKPOINT
from llava_video_cli.errors import ModelError
from llava_video_cli.prompt.budget import SHORT_TEXT_TOKENS, Budget

# The values of the published configs, as far as they hang together with a fact.


@pytest.mark.parametrize(
    ("name", "family", "context", "frames", "video_id"),
    [
        ("7B", "vicuna", 10240, 67, 32000),
        ("7B-32K", "mistral", 32768, 224, 32000),
        ("34B", "chatml", 4096, 24, 64003),
    ],
)
def test_published_configs(name: str, family: str, context: int, frames: int, video_id: int) -> None:
    checkpoint = describe(PUBLISHED[name])
    assert (checkpoint.prompt_format, checkpoint.context_tokens, checkpoint.rates.frame_tokens) == (
        family,
        context,
        144,
    )
    assert (checkpoint.video_token_id, checkpoint.image_token_id) == (video_id, video_id + 1)
    assert Budget(144 + SHORT_TEXT_TOKENS, 0, context, (144,)).frames_each([1]) == frames


@pytest.mark.parametrize(
    ("name", "kv_kib", "billions", "bf16_gb", "nf4_gib"),
    [("7B", 512, 7.06, 14.1, 4.2), ("7B-32K", 128, 7.57, 15.1, 4.4), ("34B", 240, 34.75, 69.5, 18.5)],
)
def test_published_sizes(name: str, kv_kib: int, billions: float, bf16_gb: float, nf4_gib: float) -> None:
    checkpoint = describe(PUBLISHED[name])
    assert kv_bytes(checkpoint) == kv_kib * 1024
    assert round(checkpoint.parameters.total / 1e9, 2) == billions
    assert round(checkpoint.parameters.total_bytes("none") / 1e9, 1) == bf16_gb
    assert round(checkpoint.parameters.total_bytes("4bit") / 2**30, 1) == nf4_gib
    linear = checkpoint.parameters.linear_bytes("none")
    assert checkpoint.parameters.linear_bytes("8bit") / linear == pytest.approx(0.5, abs=0.001)
    assert checkpoint.parameters.linear_bytes("4bit") / linear == pytest.approx(0.258, abs=0.001)


TINY = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 99}
SMALL_EYE = {"model_type": "clip_vision_model", "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 2}


@pytest.mark.parametrize(
    "config",
    [
        *PUBLISHED.values(),
        {"text_config": {"max_position_embeddings": 4096}},
        {"vision_config": SMALL_EYE, "text_config": TINY | {"tie_word_embeddings": True, "attention_bias": True}},
        {"text_config": TINY | {"model_type": "mistral", "head_dim": 8, "num_key_value_heads": 2}},
        {"text_config": TINY | {"mlp_bias": True}, "multimodal_projector_bias": False, "vision_feature_layer": [-2, 0]},
        {"vision_config": SMALL_EYE, "text_config": TINY, "spatial_pool_mode": "conv", "spatial_pool_stride": 3},
    ],
)
def test_the_numbers_of_parameters_are_those_of_transformers(config: dict[str, Any]) -> None:
    import bitsandbytes  # noqa: F401 - before torch's meta device is on: it makes tensors as it is imported
    import torch
    from transformers import LlavaNextVideoConfig, LlavaNextVideoForConditionalGeneration

    with torch.device("meta"):
        model = LlavaNextVideoForConditionalGeneration(LlavaNextVideoConfig.from_dict(dict(config)))
    parameters = describe(config).parameters
    parts = {"vision": "model.vision_tower.", "language_linear": "_proj.weight"}
    counted = dict.fromkeys(parts, 0)
    for name, weight in model.named_parameters():
        is_vision = name.startswith(parts["vision"])
        counted["vision"] += is_vision * weight.numel()
        counted["language_linear"] += (not is_vision and name.endswith("_proj.weight")) * weight.numel()
    assert sum(weight.numel() for weight in model.parameters()) == parameters.total
    assert counted == {"vision": parameters.vision, "language_linear": parameters.language_linear}
    linears = (
        part for name, part in model.named_modules() if "language_model" in name and isinstance(part, torch.nn.Linear)
    )
    assert sum(part.out_features for part in linears) == parameters.language_linear_rows


def test_new_style_rope_parameters_are_read_too() -> None:
    text = {
        "model_type": "llama",
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "linear", "factor": 2.5},
    }
    assert describe(BASE | {"text_config": text}).context_tokens == 10240


def test_scaling_of_another_kind_gives_no_more_context() -> None:
    text = {"max_position_embeddings": 4096, "rope_scaling": {"rope_type": "dynamic", "factor": 4.0}}
    assert describe(BASE | {"text_config": text}).context_tokens == 4096


def test_a_tokenizer_that_was_looked_into_has_the_last_word() -> None:
    assert prompt_format_of(MISTRAL, has_chatml_tokens=True) == "chatml"
    assert prompt_format_of(YI, has_chatml_tokens=False) == "vicuna"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"text_config": {"max_position_embeddings": "many"}},
            "max_position_embeddings must be a whole number .* 'many'",
        ),
        ({"text_config": {"num_hidden_layers": 0}}, "num_hidden_layers must be a whole number above 0, got 0"),
        (
            {"text_config": {"rope_scaling": {"type": "linear", "factor": "x"}}},
            "RoPE factor must be from 1 to 1000000, got 'x'",
        ),
        ({"text_config": {"rope_scaling": [2.5]}}, "RoPE scaling is not a mapping"),
        ({"text_config": [1]}, "text_config is not a mapping"),
        ({"vision_config": VISION | {"patch_size": 0}}, "patch_size must be"),
        ({"vision_config": VISION | {"image_size": 8}}, "no tokens for a frame: 8 pixels, patches of 14, pooled by 2"),
        ({"spatial_pool_stride": 0}, "spatial_pool_stride must be"),
        ({"vision_feature_layer": -99}, "vision_feature_layer is -99, of a tower of"),
        ({"vision_feature_layer": [-2, 99]}, "vision_feature_layer is 99, of a tower of"),
    ],
)
def test_a_config_that_makes_no_sense_is_an_error_of_one_line(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        describe(BASE | change)


@pytest.mark.parametrize(("stride", "tokens"), [(2, 144), (3, 64), (4, 36), (8, 9)])
def test_tokens_a_frame(stride: int, tokens: int) -> None:
    assert describe(VICUNA | {"spatial_pool_stride": stride}).rates.frame_tokens == tokens


def folder_with(path: Path, config: object, *files: str) -> Path:
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
    for name in files:
        (path / name).write_bytes(b"")
    return path


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (
            {"model_type": "llava_next", "architectures": ["LlavaNextForConditionalGeneration"]},
            "its architecture is LlavaNextFor",
        ),
        ({"model_type": "qwen2_vl"}, "its architecture is qwen2_vl"),
        ({}, "its architecture is unknown"),
        ([], "not a mapping"),
        ("{", "can't be read"),
    ],
)
def test_other_configs_are_refused(tmp_path: Path, config: object, words: str) -> None:
    with pytest.raises(ModelError, match=words):
        read_config(folder_with(tmp_path / "x", config))


def test_an_old_revision_that_only_architectures_tell_apart_is_taken(tmp_path: Path) -> None:
    config = VICUNA | {"model_type": "llava_next", "architectures": ["LlavaNextVideoForConditionalGeneration"]}
    assert read_config(folder_with(tmp_path / "x", config))["model_type"] == "llava_next"


def test_weights_must_be_whole_and_safetensors(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no weights"):
        check_weights(folder_with(tmp_path / "a", VICUNA))
    with pytest.raises(ModelError, match=r"only pytorch_model\.bin; weights must be safetensors"):
        check_weights(folder_with(tmp_path / "b", VICUNA, "pytorch_model.bin"))
    sharded = folder_with(tmp_path / "c", VICUNA, "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    with pytest.raises(ModelError, match=r"lacks 1 of 2 weight files, such as model-00002"):
        check_weights(sharded)
    (sharded / "model-00002-of-00002.safetensors").write_bytes(b"")
    check_weights(sharded)


def test_a_config_is_read_once_as_long_as_it_is_the_same(
    tmp_path: Path, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "config.json"
    path.write_text(json.dumps(VICUNA))
    assert read_checkpoint(tmp_path)[1] is read_checkpoint(tmp_path)[1]
    path.write_text(json.dumps(YI))
    assert read_checkpoint(tmp_path) == (YI, describe(YI)), "another file has taken its place"
    demo, read = shutil.copytree(CHECKPOINT, tmp_path / "demo"), list[Path]()  # a copy: that of the package was read

    def noted(path: Path) -> Any:
        read.append(path)
        return read_json(path)

    monkeypatch.setattr(config_module, "read_json", noted)
    assert run(["ask", str(clip), "What?", "-m", str(demo)]) == 0
    assert read.count(demo / "config.json") == 1


@pytest.mark.parametrize("installed", ["5.22.2", "5.23.0.dev0"])
def test_a_transformers_that_is_too_old_is_one_line(
    installed: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for package, number in (("transformers", installed), ("num2words", "0.5.14")):
        (tmp_path / f"{package}-{number}.dist-info").mkdir()
        (tmp_path / f"{package}-{number}.dist-info" / "METADATA").write_text(f"Name: {package}\nVersion: {number}\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    if installed >= "5.23":
        return check_family({"model_type": "smolvlm", "vision_config": {}}, "it")
    with pytest.raises(ModelError, match=r"SmolVLM2 needs transformers 5\.23 or newer, got 5\.22") as error:
        check_family({"model_type": "smolvlm", "vision_config": {}}, "it")
    assert str(error.value.hint).endswith("pip install -U transformers")


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "smolvlm", "vision_config": {}}, "SmolVLM2 needs the package num2words"),
        (
            {"model_type": "internvl", "vision_config": {"model_type": "timm_wrapper"}},
            "InternVL3 needs the package timm",
        ),
    ],
)
def test_a_missing_package_is_named_by_the_config_alone(
    config: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    check_family({"model_type": "internvl", "vision_config": {"model_type": "internvl_vision"}}, "it")
    monkeypatch.setattr("sys.path", [])  # where packages are looked for
    with pytest.raises(ModelError, match=said) as error:
        check_family(config, "it")
    assert str(error.value.hint).startswith("pip install ")
    with pytest.raises(ModelError, match="--adapter needs the package peft"):
        check_adapter("./mine", Path("/nowhere"))
