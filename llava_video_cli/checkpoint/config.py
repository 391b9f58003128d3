"""What a checkpoint's config says, and what a user changes of it, without any weights."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from shlex import quote
from typing import Any, Literal

from ..errors import ModelError, UsageError
from .families import WANTED, check_family
from .files import read_json, unreadable
from .size import Parameters, count
from .tokens import AnyResRates

PromptFormat = Literal["vicuna", "mistral", "chatml", "own"]

_PUBLISHED_SIZES = ("7B", "7B-DPO", "7B-32K", "34B", "34B-DPO")
# Hub ids, by their short names.
PUBLISHED = {size.lower(): f"llava-hf/LLaVA-NeXT-Video-{size}-hf" for size in _PUBLISHED_SIZES}
INDEX = "model.safetensors.index.json"  # of weights in more than one file
ADAPTER = "adapter_config.json"  # of peft
_PART = re.compile(r"model-[0-9]{5}-of-([0-9]{5})\.safetensors")
# The size of the vocabulary and the end token of Yi: of the published language models, only Yi uses ChatML.
_YI_VOCABULARY, _YI_END = 64000, 7
# What the config classes of transformers fill in where a published config leaves a value out.
_TEXT_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {"intermediate_size": 11008, "num_key_value_heads": None, "max_position_embeddings": 2048},
    "mistral": {"intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 131072},
}
_TEXT_SHARED = {"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 32000}
_VISION_DEFAULTS = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_channels": 3, "image_size": 224,
    "patch_size": 32,
}  # fmt: skip
# Where there is no vision config at all: CLIP ViT-L/14 at 336 pixels.
_VISION_ABSENT = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_channels": 3, "image_size": 336,
    "patch_size": 14,
}  # fmt: skip
_GRIDS = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
_MOST_LAYERS = 2000  # of anything: building a million of them takes hours, without any memory for weights
_LAYERS = re.compile(r"(.*_)?(layers|depth|blocks|experts)")
_MOST_ROPE_FACTOR = 10**6  # as a float, the context must stay a whole number
# RoPE scaling that a linear factor can be put on: none, or another linear one.
_SCALABLE = ("default", "linear")


@dataclass(frozen=True)
class Checkpoint:
    """The facts of a checkpoint that prompts and budgets need.

    `position_count` is `max_position_embeddings`; `rope_factor` is that of linear RoPE scaling, or 1. `rates` counts
    the tokens of media. `kv_elements` are those of all keys and values of a token; `widths` are those of the language
    model's layers and of their MLPs, `vision_widths` the vision tower's. `prompt_format` is `own` where only
    the checkpoint's chat template knows it.
    """

    prompt_format: PromptFormat
    image_token_id: int
    video_token_id: int
    rates: AnyResRates
    pool_mode: str
    position_count: int
    rope_type: str
    rope_factor: float
    layers: int
    kv_elements: int
    widths: tuple[int, int]
    vision_widths: tuple[int, int]
    parameters: Parameters

    @property
    def context_tokens(self) -> int:
        """Tokens of the longest context, prompt and answer together."""
        return int(self.position_count * self.rope_factor)

    @property
    def can_scale(self) -> bool:
        """Whether `--rope-factor` can be applied: it is linear scaling, and doesn't go on top of another kind."""
        return self.rope_type in _SCALABLE

    @property
    def can_pool(self) -> bool:
        """Whether the pooling can be changed: a learned one can't."""
        return self.pool_mode in ("average", "max")

    def factor_for(self, tokens: int) -> float:
        """Return the smallest whole RoPE factor whose context holds so many tokens; its own if that is enough.

        Source: LLaVA-NeXT's demo, which takes `ceil(tokens / max_position_embeddings)`.
        """
        return self.rope_factor if tokens <= self.context_tokens else float(math.ceil(tokens / self.position_count))


def read_config(folder: Path) -> dict[str, Any]:
    """Return a folder's `config.json`, which must not be changed: it is cached.

    Raises `ModelError` if it isn't there, can't be read, or is of another architecture.
    """
    return _read(*_file(folder))


def read_checkpoint(
    folder: Path, rope_factor: float | None = None, pool_stride: int | None = None, pool_mode: str | None = None
) -> tuple[dict[str, Any], Checkpoint]:
    """Return what `adapted` makes of a folder's `config.json`. Raises what `read_config` and `adapted` raise."""
    return _read_adapted(*_file(folder), rope_factor, pool_stride, pool_mode)


def _file(folder: Path) -> tuple[Path, tuple[int, ...]]:
    """Return a folder, and what identifies its config's content, as keys of the caches below."""
    try:
        status = (folder / "config.json").stat()
    except (OSError, ValueError):  # reading says what is wrong
        return folder, ()
    return folder, (status.st_ino, status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=8)
def _read(folder: Path, _: tuple[int, ...]) -> dict[str, Any]:
    path = folder / "config.json"
    try:
        config = read_json(path)
    except FileNotFoundError:
        _check_adapter(folder)
        raise ModelError(f"{folder} is not a checkpoint: it has no config.json", WANTED) from None
    if not isinstance(config, dict):
        raise unreadable(path, "it is not a mapping")
    check_family(config, str(folder))
    for name, number in _numbers_of_layers(config):
        if number > _MOST_LAYERS:
            raise ModelError(f"the config in {folder} can't be used: {name} is {number:,}")
    return config


def _numbers_of_layers(config: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Yield the numbers of layers of a config, of its parts too, with their names."""
    waiting = [config]
    while waiting:
        for name, value in waiting.pop().items():
            if isinstance(value, Mapping):
                waiting.append(value)
            elif isinstance(value, int) and _LAYERS.fullmatch(name):
                yield name, value


@lru_cache(maxsize=8)
def _read_adapted(folder: Path, status: tuple[int, ...], *changes: Any) -> tuple[dict[str, Any], Checkpoint]:
    return adapted(_read(folder, status), *changes)


def weight_names(folder: Path) -> list[str]:
    """Return the names of the files that hold a checkpoint's weights: those in safetensors' index, or the only one.

    Raises `ModelError` for an index that can't be read.
    """
    index = folder / INDEX
    if not index.exists():
        return _shards(folder) or ["model.safetensors"]
    try:
        names = set(read_json(index)["weight_map"].values())
    except (FileNotFoundError, KeyError, TypeError, AttributeError):
        raise unreadable(index, "it has no weight_map") from None
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[^/\\\0]+\.safetensors", name):
            raise unreadable(index, f"{name!r} is not the name of a safetensors file beside it")
    return sorted(names)


def _shards(folder: Path) -> list[str]:
    """Return the names of all parts of weights whose index is missing; none if the folder has none of them."""
    parts = [match for path in folder.glob("model-*.safetensors") if (match := _PART.fullmatch(path.name))]
    if not parts or (folder / "model.safetensors").exists():
        return []
    return [f"model-{number:05d}-of-{parts[0][1]}.safetensors" for number in range(1, int(parts[0][1]) + 1)]


def check_weights(folder: Path) -> None:
    """Raise `ModelError` unless the folder has all of its weights, as safetensors."""
    names = weight_names(folder)
    absent = [name for name in names if not (folder / name).is_file()]
    if absent and (len(names) > 1 or (folder / INDEX).is_file()):
        raise ModelError(f"{folder} lacks {len(absent)} of {len(names)} weight files, such as {absent[0]}")
    if absent:
        _check_adapter(folder)
        others = [path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in sorted(folder.glob(pattern))]
        content = f"only {others[0]}" if others else "no weights"
        raise ModelError(f"{folder} has {content}; weights must be safetensors", WANTED)


def adapter_base(folder: Path) -> str | None:
    """Return what an adapter (LoRA) in a folder was trained on; None if there is none."""
    try:
        config = read_json(folder / ADAPTER)
    except FileNotFoundError:
        return None
    base = config.get("base_model_name_or_path") if isinstance(config, dict) else None
    return base if isinstance(base, str) and base else "another checkpoint"


def _check_adapter(folder: Path) -> None:
    if (base := adapter_base(folder)) is not None:
        raise ModelError(
            f"{folder} is an adapter for {base}, not a whole checkpoint",
            f"`-m {quote(base)} --adapter {quote(str(folder))}` loads both",
        )


def prompt_format_of(config: Mapping[str, Any], has_chatml_tokens: bool) -> PromptFormat:
    """Return how a checkpoint's prompts are written; ChatML if its tokenizer has the token `<|im_start|>`."""
    is_mistral = _part(config, "text_config").get("model_type") == "mistral"
    return "chatml" if has_chatml_tokens else "mistral" if is_mistral else "vicuna"


def describe(config: Mapping[str, Any]) -> Checkpoint:
    """Return the facts of a config; raises `ModelError` for one that makes no sense.

    The tokenizer isn't read: a vocabulary or an end token like Yi's counts as having ChatML's tokens.
    """
    text, vision = _text(config), _vision(config)
    rope = text.get("rope_scaling") or text.get("rope_parameters") or {}  # in the order of transformers
    if not isinstance(rope, Mapping):
        raise ModelError(f"the config's RoPE scaling is not a mapping: {rope!r}")
    rope_type = str(rope.get("rope_type") or rope.get("type") or "default")
    rates = AnyResRates(
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        pool_stride=_whole(config.get("spatial_pool_stride", 2), "spatial_pool_stride"),
        grids=_grids(config.get("image_grid_pinpoints")),
        has_class_token=config.get("vision_feature_select_strategy", "default") != "default"
        and "siglip" not in str(vision.get("model_type")),  # SigLIP has patches alone
    )
    if not rates.frame_tokens:
        raise ModelError(
            f"the config leaves no tokens for a frame: {rates.image_size} pixels, patches of {rates.patch_size}, "
            f"pooled by {rates.pool_stride}"
        )
    chosen, layers = config.get("vision_feature_layer", -2), vision["num_hidden_layers"]
    for layer in chosen if isinstance(chosen, list) else [chosen]:  # of the embeddings and the output of each layer
        if isinstance(layer, int) and not -layers - 1 <= layer <= layers:
            raise ModelError(f"the config's vision_feature_layer is {layer}, of a tower of {layers} layers")
    is_yi = text["vocab_size"] >= _YI_VOCABULARY or _YI_END in _ids(text.get("eos_token_id"))
    return Checkpoint(
        prompt_format=prompt_format_of(config, is_yi and text["model_type"] == "llama"),
        image_token_id=_first(config, "image_token_index", "image_token_id", 32001),
        video_token_id=_first(config, "video_token_index", "video_token_id", 32000),
        rates=rates,
        pool_mode=str(config.get("spatial_pool_mode", "average")),
        position_count=text["max_position_embeddings"],
        rope_type=rope_type,
        rope_factor=_factor(rope.get("factor", 1.0)) if rope_type == "linear" else 1.0,
        layers=text["num_hidden_layers"],
        kv_elements=2 * text["num_hidden_layers"] * text["num_key_value_heads"] * text["head_dim"],
        widths=(text["hidden_size"], text["intermediate_size"]),
        vision_widths=(vision["hidden_size"], vision["intermediate_size"]),
        parameters=count(text, vision, config),
    )


def adapted(
    config: Mapping[str, Any],
    rope_factor: float | None = None,
    pool_stride: int | None = None,
    pool_mode: str | None = None,
) -> tuple[dict[str, Any], Checkpoint]:
    """Return a config with another RoPE factor or another pooling, and its facts; None leaves what the config says.

    `rope_factor` replaces the config's own, it doesn't multiply it. Raises `UsageError` for what the checkpoint can't
    do, `ModelError` for a config that makes no sense.
    """
    checkpoint, changed = describe(config), dict(config)
    if rope_factor is not None and rope_factor != checkpoint.rope_factor:
        _check_factor(checkpoint, rope_factor)
        text = dict(config.get("text_config") or {})
        rope = dict(text.pop("rope_scaling", None) or text.get("rope_parameters") or {})
        rope.pop("type", None)
        text["rope_parameters"] = {**rope, "rope_type": "linear", "factor": float(rope_factor)}
        changed["text_config"] = text
    own = checkpoint.rates.pool_stride, checkpoint.pool_mode
    pooling = own[0] if pool_stride is None else pool_stride, pool_mode or own[1]
    if pooling != own:
        _check_pooling(checkpoint, pool_stride)
        changed["spatial_pool_stride"], changed["spatial_pool_mode"] = pooling
    return changed, checkpoint if changed == config else describe(changed)


def _check_factor(checkpoint: Checkpoint, factor: float) -> None:
    if not checkpoint.can_scale:
        raise UsageError(
            f"--rope-factor can't be used: the checkpoint has RoPE scaling of another kind: {checkpoint.rope_type}"
        )
    if not math.isfinite(factor) or factor < 1:
        raise UsageError(f"a RoPE factor must be 1 or more, got {factor:g}")
    if factor < checkpoint.rope_factor:
        raise UsageError(
            f"the checkpoint's positions are scaled by {checkpoint.rope_factor:g} already; --rope-factor {factor:g} "
            "would make the context shorter",
            "the factor replaces the checkpoint's own: leave it out, or use a larger one",
        )


def _check_pooling(checkpoint: Checkpoint, stride: int | None) -> None:
    if not checkpoint.can_pool:
        raise UsageError(f"the checkpoint's pooling is learned ({checkpoint.pool_mode}): it can't be changed")
    rates = checkpoint.rates
    if stride is not None and stride not in rates.strides:
        raise UsageError(
            f"--pool-stride {stride} doesn't divide the {rates.side}x{rates.side} patches of a frame",
            f"use one of {', '.join(map(str, rates.strides))}",
        )


def _text(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the language model's config with what transformers fills in."""
    part = _part(config, "text_config")
    kind = str(part.get("model_type") or "llama")
    text = {"model_type": kind, **_TEXT_SHARED, **_TEXT_DEFAULTS.get(kind, _TEXT_DEFAULTS["llama"]), **part}
    for name in (*_TEXT_SHARED, "intermediate_size", "max_position_embeddings"):
        _whole(text[name], name)
    heads = text["num_attention_heads"]
    text["num_key_value_heads"] = _whole(text["num_key_value_heads"] or heads, "num_key_value_heads")
    text["head_dim"] = _whole(text.get("head_dim") or text["hidden_size"] // heads, "head_dim")
    return text


def _vision(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the vision tower's config with what transformers fills in."""
    vision = (_VISION_ABSENT if config.get("vision_config") is None else _VISION_DEFAULTS) | _part(
        config, "vision_config"
    )
    for name in _VISION_DEFAULTS:
        _whole(vision[name], name)
    _whole(vision.get("num_attention_heads", 1), "num_attention_heads")
    return vision


def _part(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    part = config.get(name)
    if part is not None and not isinstance(part, Mapping):
        raise ModelError(f"the config's {name} is not a mapping")
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
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= _MOST_ROPE_FACTOR:
        raise ModelError(f"the config's RoPE factor must be from 1 to {_MOST_ROPE_FACTOR}, got {value!r}")
    return float(value)


def _first(config: Mapping[str, Any], name: str, other: str, default: int) -> int:
    return _whole(config.get(name, config.get(other, default)), name)


def _ids(value: object) -> list[object]:
    return value if isinstance(value, list) else [value]


def looks_like_folder(model: str) -> bool:
    """Return whether a model's name is a path rather than a hub id (`owner/name`)."""
    return model.startswith((".", "/", "~")) or "\\" in model or model.count("/") > 1 or Path(model).exists()


def check_name(model: str) -> None:
    """Raise `UsageError` for text that can be neither a folder nor a hub id."""
    if not model.strip() or model != model.strip() or "\0" in model:
        raise UsageError(f"there is no model {model!r}")
