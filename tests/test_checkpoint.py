"""The facts of the published configs, read from configs with their values."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llava_video_cli.errors import ModelError
from llava_video_cli.models.checkpoint import check_weights, describe, read_config

VISION = {"image_size": 336, "patch_size": 14, "model_type": "clip_vision_model"}
BASE: dict[str, Any] = {"model_type": "llava_next_video", "vision_config": VISION, "spatial_pool_stride": 2}
VICUNA = BASE | {
    "text_config": {
        "model_type": "llama",
        "max_position_embeddings": 4096,
        "rope_scaling": {"factor": 2.5, "type": "linear"},
    },
    "video_token_index": 32000,
    "image_token_index": 32001,
}
MISTRAL = BASE | {"text_config": {"model_type": "mistral", "max_position_embeddings": 32768, "rope_theta": 1e6}}
YI = BASE | {
    "text_config": {"model_type": "llama", "max_position_embeddings": 4096, "rope_theta": 5e6},
    "video_token_index": 64003,
    "image_token_index": 64004,
}


@pytest.mark.parametrize(
    ("config", "chatml", "family", "context"),
    [(VICUNA, False, "vicuna", 10240), (MISTRAL, False, "mistral", 32768), (YI, True, "chatml", 4096)],
)
def test_published_configs(config: dict[str, Any], chatml: bool, family: str, context: int) -> None:
    found = describe(config, chatml)
    assert (found.family, found.context_tokens, found.frame_tokens) == (family, context, 144)
    assert found.video_token_id == (64003 if chatml else 32000)


def test_new_style_rope_parameters_are_read_too() -> None:
    text = {
        "model_type": "llama",
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "linear", "factor": 2.5},
    }
    assert describe(BASE | {"text_config": text}, False).context_tokens == 10240


@pytest.mark.parametrize(("stride", "tokens"), [(2, 144), (3, 64), (4, 36), (8, 9)])
def test_tokens_a_frame(stride: int, tokens: int) -> None:
    assert describe(VICUNA | {"spatial_pool_stride": stride}, False).frame_tokens == tokens


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
            "another architecture: LlavaNextFor",
        ),
        ({"model_type": "qwen2_vl"}, "another architecture: qwen2_vl"),
        ({}, "another architecture: unknown"),
        ([], "no mapping"),
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
