"""The checkpoints in the hub's cache that llvid can use: what they are, and their removal."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import LlvidError, ModelError, nearest
from .config import check_weights, read_config
from .hub import cache_folder

if TYPE_CHECKING:
    from huggingface_hub import CachedRepoInfo

_MOST_CARD_BYTES = 2**18
_HEAD = re.compile(r"\A---\s*\n(.*?)\n---", re.DOTALL)  # of a model's card
_LICENCE = re.compile(r"^(license_name|license):\s*[\"']?([\w.+-]+)", re.MULTILINE)


@dataclass(frozen=True)
class CachedModel:
    """A model in the cache: `bytes` on the disk with all its revisions, and when it was used last, since the epoch.

    `family` is its `model_type`, or `whisper` of a speech model. `licence` is that of its card, None without a card.
    `lacks` says what is missing of its newest revision, None if nothing is.
    """

    name: str
    bytes: int
    family: str
    licence: str | None
    used_seconds: float
    lacks: str | None


def cached_models() -> tuple[list[CachedModel], int]:
    """Return the models that llvid can use, the last used one first, and how many others are in the cache."""
    repos = _repos()
    models = [model for repo in repos if (model := _model(repo)) is not None]
    return sorted(models, key=lambda model: -model.used_seconds), len(repos) - len(models)


def remove(name: str) -> int:
    """Remove a model from the cache, with all its revisions; return the bytes that are free again.

    Raises `ModelError` if it isn't there, LlvidError if something of it can't be removed.
    """
    from huggingface_hub import scan_cache_dir

    repo = find(name)
    # It finds revisions by their commits alone, and a copy of the repository has the same ones.
    alone = replace(scan_cache_dir(cache_folder()), repos=frozenset({repo}))
    strategy = alone.delete_revisions(*(each.commit_hash for each in repo.revisions))
    strategy.execute()
    if repo.repo_path.exists():  # huggingface_hub only logs what it can't remove
        raise LlvidError(f"{repo.repo_path} can't be removed", "remove the folder by hand")
    return int(strategy.expected_freed_size)


def find(name: str) -> CachedRepoInfo:
    """Return what the cache holds of a model; raises `ModelError` if that is nothing."""
    repos = {repo.repo_id: repo for repo in _repos()}
    if name not in repos:
        raise ModelError(f"{name} isn't in {cache_folder()}", nearest(name, repos) or "`llvid models` lists what is")
    return repos[name]


def cached_names() -> list[str]:
    """Return the names of all models in the cache, for completion: nothing in it is read."""
    with suppress(OSError):
        folders = cache_folder().glob("models--*")
        return sorted(folder.name.removeprefix("models--").replace("--", "/") for folder in folders)
    return []


def licence_of(folder: Path) -> str | None:
    """Return the licence that the model card in a checkpoint's folder names, such as `llama2`; None without one."""
    with suppress(OSError), (folder / "README.md").open(encoding="utf-8", errors="replace") as card:
        if (head := _HEAD.match(card.read(_MOST_CARD_BYTES))) is not None:
            licences = dict(_LICENCE.findall(head[1]))  # `license: other` has its name beside it
            return licences.get("license_name") or licences.get("license")
    return None


def _repos() -> list[CachedRepoInfo]:
    from huggingface_hub import scan_cache_dir
    from huggingface_hub.errors import CacheNotFound

    try:
        repos = scan_cache_dir(cache_folder()).repos
    except CacheNotFound:
        return []
    return [repo for repo in repos if repo.repo_type == "model" and repo.revisions]


def _model(repo: CachedRepoInfo) -> CachedModel | None:
    newest = max(repo.revisions, key=lambda revision: revision.last_modified)
    folder, lacks = Path(newest.snapshot_path), None
    if (folder / "model.bin").exists() and any(folder.glob("vocabulary.*")):  # as CTranslate2 stores Whisper
        family = "whisper"
    else:
        try:
            family = str(read_config(folder).get("model_type"))
        except ModelError:
            return None
        try:
            check_weights(folder)
        except ModelError as error:
            lacks = str(error).replace(f"{folder} ", "")
    licence = licence_of(folder)
    return CachedModel(repo.repo_id, repo.size_on_disk, family, licence, repo.last_accessed, lacks)
