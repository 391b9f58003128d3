"""What a checkpoint's config says, read without any weights."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..errors import ModelError, UsageError
from .size import TEXT_DEFAULTS, TEXT_SHARED, VISION_ABSENT, VISION_DEFAULTS, Parameters, count

Family = Literal["vicuna", "mistral", "chatml"]

ARCHITECTURE = "LlavaNextVideoForConditionalGeneration"
INDEX = "model.safetensors.index.json"  # of weights in more than one file
# The vocabulary and the end token of Yi, the only language model of the published ones that speaks ChatML.
_YI_VOCABULARY, _YI_END = 64000, 7
_GRIDS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
# Tokens that stay free for questions and answers where it is told how many frames fit.
TEXT_TOKENS = 512


@dataclass(frozen=True)
class Checkpoint:
    """The facts of one LLaVA-NeXT-Video checkpoint that prompts and budgets need.

    `position_count` is `max_position_embeddings`; `rope_factor` that of linear RoPE scaling, or 1. Sizes are in
    pixels, `head_width` in elements; `widths` are those of the language model's layers and of their MLPs,
    `vision_widths` the vision tower's. `grids` has the (height, width) that a picture's tiles may fill together.
    """

    family: Family
    image_token_id: int
    video_token_id: int
    image_size: int
    patch_size: int
    pool_stride: int
    pool_mode: str
    position_count: int
    rope_type: str
    rope_factor: float
    feature_strategy: str
    grids: tuple[tuple[int, int], ...]
    layers: int
    kv_heads: int
    head_width: int
    widths: tuple[int, int]
    vision_widths: tuple[int, int]
    parameters: Parameters

    @property
    def context_tokens(self) -> int:
        """Tokens that the checkpoint can tell apart, prompt and answer together."""
        return int(self.position_count * self.rope_factor)

    @property
    def frame_side(self) -> int:
        """Patches along one side of a frame, before they are pooled."""
        return self.image_size // self.patch_size

    @property
    def frame_tokens(self) -> int:
        """Tokens of one frame: the pooled patch grid, `side // stride` squared.

        Source: LlavaNextVideoPooler, whose pooling has kernel and stride `pool_stride`.
        """
        return (self.frame_side // self.pool_stride) ** 2

    def frames_that_fit(self, text_tokens: int = TEXT_TOKENS) -> int:
        """Return how many frames the context takes beside so many tokens of question and answer."""
        return max(0, self.context_tokens - text_tokens) // self.frame_tokens

    def kv_bytes(self, element_bytes: int = 2) -> int:
        """Return what a token takes in the KV cache: for each layer, a key and a value of every KV head."""
        return 2 * self.layers * self.kv_heads * self.head_width * element_bytes


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


def weight_names(folder: Path) -> list[str]:
    """Return the names of the files that hold a checkpoint's weights: those in safetensors' index, or the only one.

    Raises `ModelError` for an index that can't be read.
    """
    index = folder / INDEX
    if not index.is_file():
        return ["model.safetensors"]
    try:
        return sorted(set(map(str, json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ModelError(f"{index} can't be read: {error}") from None


def check_weights(folder: Path) -> None:
    """Raise `ModelError` unless the folder has all of its weights, as safetensors."""
    names = weight_names(folder)
    absent = [name for name in names if not (folder / name).is_file()]
    if absent and (folder / INDEX).is_file():
        raise ModelError(f"{folder} lacks {len(absent)} of {len(names)} weight files, such as {absent[0]}")
    if absent:
        others = [path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in sorted(folder.glob(pattern))]
        found = f"only {others[0]}" if others else "no weights"
        raise ModelError(f"{folder} has {found}; weights must be safetensors", _WANTED)


def describe(config: Mapping[str, Any], has_chatml_tokens: bool | None = None) -> Checkpoint:
    """Return the facts of a config; raises `ModelError` for one that makes no sense.

    `has_chatml_tokens` tells whether the tokenizer knows `<|im_start|>`; where nobody has looked, a vocabulary or an
    end token like Yi's says so.
    """
    text, vision = _text(config), _vision(config)
    rope = text.get("rope_scaling") or text.get("rope_parameters") or {}  # in the order of transformers
    if not isinstance(rope, Mapping):
        raise ModelError(f"the config's RoPE scaling is no mapping: {rope!r}")
    rope_type = str(rope.get("rope_type") or rope.get("type") or "default")
    if has_chatml_tokens is None:
        is_yi = text["vocab_size"] >= _YI_VOCABULARY or _YI_END in _ids(text.get("eos_token_id"))
        has_chatml_tokens = is_yi and text["model_type"] == "llama"
    family: Family = "chatml" if has_chatml_tokens else "mistral" if text["model_type"] == "mistral" else "vicuna"
    found = Checkpoint(
        family=family,
        image_token_id=_first(config, "image_token_index", "image_token_id", 32001),
        video_token_id=_first(config, "video_token_index", "video_token_id", 32000),
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        pool_stride=_whole(config.get("spatial_pool_stride", 2), "spatial_pool_stride"),
        pool_mode=str(config.get("spatial_pool_mode", "average")),
        position_count=text["max_position_embeddings"],
        rope_type=rope_type,
        rope_factor=_factor(rope.get("factor", 1.0)) if rope_type == "linear" else 1.0,
        feature_strategy=str(config.get("vision_feature_select_strategy", "default")),
        grids=_grids(config.get("image_grid_pinpoints")),
        layers=text["num_hidden_layers"],
        kv_heads=text["num_key_value_heads"],
        head_width=text["head_dim"],
        widths=(text["hidden_size"], text["intermediate_size"]),
        vision_widths=(vision["hidden_size"], vision["intermediate_size"]),
        parameters=count(text, vision, config),
    )
    if not found.frame_tokens:
        raise ModelError(
            f"the config leaves no tokens of a frame: {found.image_size} pixels, patches of {found.patch_size}, "
            f"pooled by {found.pool_stride}"
        )
    return found


def _text(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the language model's config with what transformers fills in."""
    given = _part(config, "text_config")
    kind = given.get("model_type") or "llama"
    text = {"model_type": kind, **TEXT_SHARED, **TEXT_DEFAULTS.get(kind, TEXT_DEFAULTS["llama"]), **given}
    for name in (*TEXT_SHARED, "intermediate_size", "max_position_embeddings"):
        _whole(text[name], name)
    heads = text["num_attention_heads"]
    text["num_key_value_heads"] = _whole(text["num_key_value_heads"] or heads, "num_key_value_heads")
    text["head_dim"] = _whole(text.get("head_dim") or text["hidden_size"] // heads, "head_dim")
    return text


def _vision(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the vision tower's config with what transformers fills in."""
    vision = (VISION_ABSENT if config.get("vision_config") is None else VISION_DEFAULTS) | _part(
        config, "vision_config"
    )
    for name in VISION_DEFAULTS:
        _whole(vision[name], name)
    return vision


def _part(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    part = config.get(name)
    if part is not None and not isinstance(part, Mapping):
        raise ModelError(f"the config's {name} is no mapping")
    return dict(part or {})


def _grids(value: object) -> tuple[tuple[int, int], ...]:
    pairs = _GRIDS if value is None else value
    try:
        return tuple((_whole(height, "grid"), _whole(width, "grid")) for height, width in pairs)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise ModelError(f"the config's image_grid_pinpoints must be pairs of pixels, got {value!r}") from None


def _whole(value: object, name: str) -> int:
    if type(value) is not int or value < 1:
        raise ModelError(f"the config's {name} must be a whole number above 0, got {value!r}")
    return value


def _factor(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value < math.inf:
        raise ModelError(f"the config's RoPE factor must be 1 or more, got {value!r}")
    return float(value)


def _first(config: Mapping[str, Any], name: str, other: str, default: int) -> int:
    return _whole(config.get(name, config.get(other, default)), name)


def _ids(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def looks_like_folder(model: str) -> bool:
    """Tell whether a model's name is a path rather than a hub id (`owner/name`)."""
    return model.startswith((".", "/", "~")) or "\\" in model or model.count("/") > 1 or Path(model).is_dir()


def check_name(model: str) -> None:
    """Raise `UsageError` for what can be neither a folder nor a hub id."""
    if not model.strip() or model != model.strip() or "\0" in model:
        raise UsageError(f"no model has the name {model!r}")
