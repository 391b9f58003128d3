"""What a checkpoint's config says, read without any weights."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import ModelError, UsageError

Family = Literal["vicuna", "mistral", "chatml"]

ARCHITECTURE = "LlavaNextVideoForConditionalGeneration"
# What the config classes of transformers fill in where a published config leaves a value out.
_TEXT_CONTEXT = {"llama": 2048, "mistral": 131072}
_VISION_IMAGE_SIZE, _VISION_PATCH_SIZE = 336, 14


@dataclass(frozen=True)
class Checkpoint:
    """The facts of one LLaVA-NeXT-Video checkpoint that prompts and budgets need.

    `context_tokens` is `max_position_embeddings`, times the factor of linear RoPE scaling where the config
    has one. Sizes are in pixels.
    """

    family: Family
    image_token_id: int
    video_token_id: int
    image_size: int
    patch_size: int
    pool_stride: int
    context_tokens: int
    feature_strategy: str

    @property
    def frame_tokens(self) -> int:
        """Tokens of one frame: the pooled patch grid, `side // stride` squared.

        Source: LlavaNextVideoPooler, whose average pooling has kernel and stride `pool_stride`.
        """
        return (self.image_size // self.patch_size // self.pool_stride) ** 2


def read_config(folder: Path) -> dict[str, Any]:
    """Return a folder's `config.json`.

    Raises `ModelError` if the folder holds no such checkpoint: nothing to read, another architecture, or
    weights in a format other than safetensors.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ModelError(f"{folder} is no checkpoint: it has no config.json", _WANTED) from None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} can't be read: {error}") from None
    if not isinstance(config, dict):
        raise ModelError(f"{path} holds no mapping", _WANTED)
    check_architecture(config, str(folder))
    return config


_WANTED = "llvid runs LLaVA-NeXT-Video checkpoints in the transformers layout, such as llava-hf/LLaVA-NeXT-Video-7B-hf"


def check_architecture(config: Mapping[str, Any], name: str) -> None:
    """Raise `ModelError` unless the config is of a LLaVA-NeXT-Video checkpoint.

    Some published revisions say `model_type: llava_next` and only `architectures` tells them apart.
    """
    if config.get("model_type") == "llava_next_video" or ARCHITECTURE in (config.get("architectures") or ()):
        return
    got = ", ".join(config.get("architectures") or ()) or config.get("model_type") or "unknown"
    raise ModelError(f"{name} is a checkpoint of another architecture: {got}", _WANTED)


def check_weights(folder: Path) -> None:
    """Raise `ModelError` unless the folder has all of its weights, as safetensors."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (OSError, ValueError, KeyError, AttributeError) as error:
            raise ModelError(f"{index} can't be read: {error}") from None
        absent = sorted(name for name in shards if not (folder / name).is_file())
        if absent:
            raise ModelError(f"{folder} lacks {len(absent)} of {len(shards)} weight files, such as {absent[0]}")
    elif not (folder / "model.safetensors").is_file():
        others = [path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in sorted(folder.glob(pattern))]
        found = f"only {others[0]}" if others else "no weights"
        raise ModelError(f"{folder} has {found}; weights must be safetensors", _WANTED)


def describe(config: Mapping[str, Any], has_chatml_tokens: bool) -> Checkpoint:
    """Return the facts of a config; `has_chatml_tokens` tells whether the tokenizer knows `<|im_start|>`."""
    text, vision = config.get("text_config") or {}, config.get("vision_config") or {}
    text_type = text.get("model_type", "llama")
    family: Family = "chatml" if has_chatml_tokens else "mistral" if text_type == "mistral" else "vicuna"
    positions = text.get("max_position_embeddings", _TEXT_CONTEXT.get(text_type, 4096))
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    linear = rope.get("rope_type", rope.get("type")) == "linear"
    return Checkpoint(
        family=family,
        image_token_id=config.get("image_token_index", config.get("image_token_id", 32001)),
        video_token_id=config.get("video_token_index", config.get("video_token_id", 32000)),
        image_size=vision.get("image_size", _VISION_IMAGE_SIZE),
        patch_size=vision.get("patch_size", _VISION_PATCH_SIZE),
        pool_stride=config.get("spatial_pool_stride", 2),
        context_tokens=int(positions * (rope.get("factor", 1.0) if linear else 1.0)),
        feature_strategy=config.get("vision_feature_select_strategy", "default"),
    )


def looks_like_folder(model: str) -> bool:
    """Tell whether a model's name is a path rather than a hub id (`owner/name`)."""
    return model.startswith((".", "/", "~")) or "\\" in model or model.count("/") > 1 or Path(model).is_dir()


def check_name(model: str) -> None:
    """Raise `UsageError` for what can be neither a folder nor a hub id."""
    if not model.strip() or model != model.strip() or "\0" in model:
        raise UsageError(f"no model has the name {model!r}")
