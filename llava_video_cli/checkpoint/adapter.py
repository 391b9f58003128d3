"""Adapters (LoRA) as peft writes them: found, read strictly and compared with the checkpoint, without torch."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from math import prod
from pathlib import Path
from shlex import quote
from typing import Any

from ..errors import ModelError, UsageError, extra_hint
from ..system.files import expanded
from .config import ADAPTER, Checkpoint, adapter_base, check_weights, looks_like_folder
from .files import read_json, read_weights_header, unreadable
from .hub import explained, fetch_files, resolve

WEIGHTS = "adapter_model.safetensors"
_NEEDED = (ADAPTER, WEIGHTS)
# Fields of peft's LoraConfig that say how an adapter answers, with the types that they may have.
_USED: Mapping[str, type | tuple[type, ...]] = {
    "r": int, "lora_alpha": (int, float), "use_rslora": bool, "use_dora": bool, "fan_in_fan_out": bool,
    "lora_bias": bool, "rank_pattern": dict, "alpha_pattern": dict,
}  # fmt: skip
# Fields that matter for training alone, or that the names of the tensors tell. All others change what a layer does, or
# name code that peft would import (`megatron_core`), and are refused where they are set.
_UNUSED = frozenset({
    "peft_type", "task_type", "inference_mode", "base_model_name_or_path", "base_model_class", "revision",
    "peft_version", "auto_mapping", "parent_library", "lora_dropout", "bias", "modules_to_save", "target_modules",
    "exclude_modules", "layers_to_transform", "layers_pattern", "init_lora_weights", "eva_config", "megatron_core",
    "loftq_config", "corda_config", "lora_ga_config", "runtime_config", "qalora_group_size", "ensure_weight_tying",
})  # fmt: skip
# Ways to begin the training that change the base's weights too: the adapter fits those weights alone.
_CHANGED_BASE = ("pissa", "olora", "loftq", "corda", "lora_ga")
# What peft matches with each layer's name: names and classes, with a wildcard or two, and two groups such as (q|k).
# Others could take hours.
_NAMES = r"(\\?[\w.|-]|\[[\w-]+\])*"
_PATTERN = re.compile(rf"\^?{_NAMES}([*+]{_NAMES}){{0,2}}\$?", re.ASCII)
_GROUP = re.compile(r"\((\?:)?(\w|[|-]|\\?\.\w){1,100}\)(?![*+])", re.ASCII)
_MOST_ALPHA = 1e6  # about 100 times what anybody trains with
_MERGE_HINT = "merge it with peft: `merge_and_unload()`, then `save_pretrained`"
_REVISION = re.compile(r"(?P<name>[^@]+/[^@]+)@(?P<revision>[^@]+)")
_CACHE_FOLDER = re.compile(r"models--(.+?)--(.+)")


@dataclass(frozen=True)
class Adapter:
    """An adapter in a folder: `name` finds it again, `base` is the checkpoint that it was trained on, if it is told.

    `values` are the fields of peft's config that are used, `shapes` the sizes of the tensors by their names.
    """

    name: str
    folder: Path
    base: str | None
    values: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def parameters(self) -> int:
        """How many numbers it holds."""
        return sum(map(prod, self.shapes.values()))


def read_adapter(name: str) -> Adapter:
    """Return the adapter of a folder, or of a hub id (`owner/name`, or `owner/name@revision`), downloaded if need be.

    Raises `UsageError` for text that can't be a name, `ModelError` for what isn't there, or can't be applied exactly.
    """
    folder = _located(name)
    path = folder / ADAPTER
    try:
        config = read_json(path)
    except FileNotFoundError:
        raise ModelError(
            f"{folder} is not an adapter: it has no {ADAPTER}", f"peft writes it beside {WEIGHTS}"
        ) from None
    if not isinstance(config, dict):
        raise unreadable(path, "it is not a mapping")
    values = _checked(config, str(path))
    if not (folder / WEIGHTS).is_file():
        others = [each.name for each in sorted(folder.glob("adapter_model.*"))]
        got = f"only {others[0]}" if others else "no weights"
        hint = "save it again with peft, whose `save_pretrained` writes safetensors; other files can hold code"
        raise ModelError(f"the adapter in {folder} has {got}; its weights must be {WEIGHTS}", hint)
    shapes = {key: tuple(tensor["shape"]) for key, tensor in read_weights_header(folder / WEIGHTS).items()}
    if not shapes:
        raise ModelError(f"{folder / WEIGHTS} is empty")
    commit = folder.name if folder.parent.name == "snapshots" and not looks_like_folder(name) else None
    found = f"{name.partition('@')[0]}@{commit}" if commit else name
    base = config.get("base_model_name_or_path")
    return Adapter(found, folder, base if isinstance(base, str) and base else None, values, shapes)


def check_adapter(name: str | None, folder: Path) -> None:
    """Check an adapter before weights are read: `folder` is the checkpoint's. One of the hub is not downloaded.

    Raises what `read_adapter` raises, and `ModelError` without peft, and for a checkpoint's folder with an adapter
    of its own: weights that were merged would get it twice, and others would lack it.
    """
    if (folder / ADAPTER).is_file() and (name is None or not _is_same(name, folder)):
        check_weights(folder)  # as trainers write it, there may be a config and a tokenizer, and no whole weights
        if name is not None:
            raise ModelError(f"{folder} has an adapter of its own beside its weights", f"move {ADAPTER} away")
        raise ModelError(
            f"{folder} has whole weights and an adapter for {adapter_base(folder)}: which weights do you want?",
            f"`--adapter {quote(str(folder))}` applies it; if it is merged already, move {ADAPTER} away",
        )
    if name is None:
        return
    try:
        version("peft")
    except PackageNotFoundError:
        raise ModelError("--adapter needs the package peft", extra_hint("lora")) from None
    _check_name(name)
    if looks_like_folder(name):
        read_adapter(name)


def with_adapter(checkpoint: Checkpoint, name: str | None) -> Checkpoint:
    """Return a checkpoint's facts with an adapter's parameters, which are in memory beside the weights.

    One of the hub counts once it is downloaded.
    """
    if name is None or not (looks_like_folder(name) or _cached(name)):
        return checkpoint
    parameters = checkpoint.parameters
    more = parameters.language_rest + read_adapter(name).parameters
    return replace(checkpoint, parameters=replace(parameters, language_rest=more))


def base_note(adapter: Adapter, model: str) -> str | None:
    """Return the note that an adapter's base has another name than the model that it is applied to.

    Copies of a checkpoint have many names, so that a name alone is no error: one whose layers differ is.
    """
    if adapter.base is None or _short(adapter.base) == _short(model):
        return None
    return f"the adapter was trained on {adapter.base}, not on {model}: on other weights its answers are worse"


def adapter_key(name: str | None) -> str | None:
    """Return an adapter's name as it counts for the keys of records: a folder by its whole path."""
    return os.path.abspath(name) if name is not None and Path(name).is_dir() else name  # noqa: PTH100 - keeps links


def _short(model: str) -> str:
    """Return the last part of a name or of a path, which copies share; of the hub's cache, the name of the model."""
    parts = [part for part in re.split(r"[/\\]", model) if part]
    for part in parts:
        if cached := _CACHE_FOLDER.fullmatch(part):
            return cached[2].lower()
    return parts[-1].lower() if parts else ""


def _is_same(name: str, folder: Path) -> bool:
    if looks_like_folder(name):
        return expanded(name).resolve() == folder.resolve()
    stored = folder.parents[1].name if folder.parent.name == "snapshots" else ""
    return stored == f"models--{_parsed(name)[0].replace('/', '--')}"


def _parsed(name: str) -> tuple[str, str | None]:
    """Return a hub id and its revision."""
    match = _REVISION.fullmatch(name)
    return (match["name"], match["revision"]) if match else (name, None)


def _cached(name: str) -> bool:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    model, revision = _parsed(name)
    try:
        return all(isinstance(try_to_load_from_cache(model, each, revision=revision), str) for each in _NEEDED)
    except HFValidationError:
        return False


def _check_name(name: str) -> None:
    if not name.strip() or name != name.strip() or "\0" in name:
        raise UsageError(f"there is no adapter {name!r}")


def _located(name: str) -> Path:
    _check_name(name)
    if looks_like_folder(name):
        folder = expanded(name)
        if not folder.is_dir():
            what = "is a file, not a folder" if folder.exists() else "doesn't exist"
            raise ModelError(f"the adapter {name} {what}", f"an adapter is a folder with {ADAPTER} and {WEIGHTS}")
        return folder
    if "/" not in name:
        raise ModelError(f"there is no adapter {name!r}", "write a folder, or OWNER/NAME of one on the hub")
    model, revision = _parsed(name)
    with explained(model, revision, "run the command again with access to the hub, or give a folder"):
        folder = resolve(model, revision, file=ADAPTER)
    if all((folder / each).is_file() for each in _NEEDED):
        return folder
    return fetch_files(model, _NEEDED, _NEEDED, revision=folder.name).folder


def _checked(config: Mapping[str, Any], path: str) -> dict[str, Any]:
    """Return the fields that are used. Raises `ModelError` for those that llvid can't honour."""
    if config.get("peft_type") not in ("LORA", None):
        raise ModelError(f"{path} is of the kind {config['peft_type']!r}: llvid applies LoRA adapters only")
    for name, value in config.items():
        if name not in _UNUSED and name not in _USED and value not in (None, False, [], {}):
            raise ModelError(f"{path} sets {name!r}, which llvid can't apply", _MERGE_HINT)
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGED_BASE):
        hint = (
            "peft's `save_pretrained(..., path_initial_model_for_weight_conversion=...)` saves one that llvid can apply"
        )
        raise ModelError(f"{path}: training began with {start!r}, which changed the base's weights too", hint)
    values: dict[str, Any] = {name: config[name] for name in _USED if config.get(name) is not None}
    for name, value in values.items():
        kinds = _USED[name]
        is_flag = isinstance(value, bool)
        if not isinstance(value, kinds) or (is_flag and kinds is not bool):
            raise ModelError(f"{path}: {name} can't be {value!r}")
        numbers = list(value.values()) if isinstance(value, dict) else []
        if not all(type(each) is int or (type(each) is float and name == "alpha_pattern") for each in numbers):
            kind = "numbers" if name == "alpha_pattern" else "whole numbers"
            raise ModelError(f"{path}: {name} must hold {kind}, got {value!s:.200}")
        for pattern in value if isinstance(value, dict) else ():
            if _PATTERN.fullmatch(_GROUP.sub("", pattern, count=2)) is None or not _is_regex(pattern):
                raise ModelError(f"{path}: {name} has {pattern[:200]!r}, which llvid can't apply", _MERGE_HINT)
    if (least := min([values.get("r", 1), *values.get("rank_pattern", {}).values()])) < 1:
        raise ModelError(f"{path}: a rank must be 1 or more, got {least}")
    for alpha in (values.get("lora_alpha", 1), *values.get("alpha_pattern", {}).values()):
        if not abs(alpha) < _MOST_ALPHA:  # nor is NaN
            raise ModelError(f"{path}: lora_alpha can't be {alpha!s:.200}")
    return values


def _is_regex(text: str) -> bool:
    try:
        re.compile(text)
    except re.error:
        return False
    return True
