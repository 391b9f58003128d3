"""From a model's name to a folder with a whole checkpoint: the demo, random weights, a folder, or the hub."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

from ..demo import CHECKPOINT, NAME
from ..errors import ModelError, UsageError
from ..system.files import expanded
from .config import (
    check_name,
    check_weights,
    describe,
    looks_like_folder,
    read_config,
    weight_names,
)
from .families import WANTED, check_family, is_generic
from .files import check_files
from .hub import DEMO_HINT, cached, explained, fetch, resolve
from .random_weights import random_folder

_FEWEST_BYTES = 0.4  # for each parameter: in 4 bits, they take a little more than half a byte
# A hub id as it is copied from a browser, or with a slash at its end.
_ADDRESS = r"(?:(?:https?://)?(?:www\.)?(?:huggingface\.co|hf\.co)/)?(\w[\w.-]*/[\w.-]+)(?:/|/tree/.*|/blob/.*)?"


def locate(model: str, revision: str | None = None) -> Path:
    """Return the folder of a checkpoint; one of the hub is downloaded if the cache lacks it.

    The folder of `random:SIZE` has a config and no weights: they are made while loading. Of the hub, only the config is
    downloaded before the architecture is checked. Raises `UsageError` as `local_folder`, `ModelError` for a
    checkpoint that isn't there, can't be downloaded, or that llvid can't run.
    """
    local = local_folder(model, revision)
    if (random := random_folder(model)) is not None:
        return random
    folder = local or _from_hub(model, revision)
    read_config(folder)
    check_weights(folder)
    check_files(folder, weight_names(folder))
    if is_generic(read_config(folder)):  # how many parameters there should be, only torch can tell
        return folder
    check_bytes(folder, describe(read_config(folder)).parameters.total)
    return folder


def check_bytes(folder: Path, parameters: int) -> None:
    """Raise `ModelError` if a folder's weights are too few for a config's number of parameters."""
    if (stored := sum((folder / name).stat().st_size for name in weight_names(folder))) < _FEWEST_BYTES * parameters:
        raise ModelError(
            f"the weights in {folder} have {stored:,} bytes, too few for the {parameters:,} parameters of config.json",
            "download config.json and the weights again, both from the same checkpoint",
        )


def locate_config(model: str, revision: str | None) -> Path:
    """Return the folder that holds a model's config; from the hub, only the config is downloaded."""
    if (folder := local_folder(model, revision)) is not None:
        return folder
    from huggingface_hub import try_to_load_from_cache

    with explained(model, revision):
        path = try_to_load_from_cache(model, "config.json", revision=revision)
        return Path(path).parent if isinstance(path, str) else resolve(model, revision)


def local_folder(model: str, revision: str | None = None) -> Path | None:
    """Return the folder of a checkpoint that needs no download, or None for a hub id.

    Raises `UsageError` for text that can't be a name, and for a revision of what isn't on the hub; `ModelError` for a
    folder that isn't there.
    """
    folder = _local_folder(model)
    if folder is not None and revision is not None:
        raise UsageError(f"{model} isn't on the hub: it has no revision {revision!r}", "leave out the revision")
    return folder


def _local_folder(model: str) -> Path | None:
    check_name(model)
    if model == NAME:
        return CHECKPOINT
    if (folder := random_folder(model)) is not None:
        return folder
    if not looks_like_folder(model):
        return None
    folder = expanded(model)
    if not folder.is_dir():
        if (pasted := re.fullmatch(_ADDRESS, model)) is not None:
            raise ModelError(f"{model} is not the name of a model", f"write {pasted[1]}")
        if folder.exists():
            raise ModelError(f"the model folder {model} is a file, not a checkpoint folder", WANTED)
        raise ModelError(f"the model folder {model} doesn't exist", DEMO_HINT)
    return folder


def cached_folder(model: str, revision: str | None = None) -> Path | None:
    """Return the folder of a hub id's checkpoint if it is complete in the cache; the hub isn't asked."""
    with suppress(ModelError), explained(model, revision):
        return cached(model, resolve(model, revision, offline=True).name)
    return None


def revision_of(folder: Path) -> str | None:
    """Return the hub commit that a folder of the hub's cache stands for, or None for any other folder."""
    return folder.name if folder.parent.name == "snapshots" else None


def _from_hub(model: str, revision: str | None) -> Path:
    with explained(model, revision):
        folder = resolve(model, revision)
        check_family(read_config(folder), model)
        complete = cached(model, folder.name)
    return complete or fetch(model, folder.name).folder
