"""The LLaVA-NeXT-Video checkpoints that lie in the hub's cache, whole or not; the hub isn't asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ..errors import ModelError
from .checkpoint import check_weights, read_config
from .fetch import folder_bytes

_LOOKED_AT = 1000  # models in a cache


@dataclass(frozen=True)
class Shelved:
    """A commit of a checkpoint. `lacks` says what is missing, None if it is whole."""

    model: str
    commit: str
    folder: Path
    bytes: int
    lacks: str | None


def cache_folder() -> Path:
    """Return the hub's cache, as the environment has it."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def shelved(cache: Path) -> list[Shelved]:
    """Return what lies in a cache, by name; what isn't ours or can't be read is passed over."""
    return list(islice((found for folder in sorted(cache.glob("models--*")) for found in _commits(folder)), _LOOKED_AT))


def _commits(storage: Path) -> Iterator[Shelved]:
    name = storage.name.removeprefix("models--").replace("--", "/")
    partial = [path.stat().st_size for path in storage.glob("blobs/*.incomplete")]
    for folder in sorted(storage.glob("snapshots/*")):
        try:
            read_config(folder)
        except ModelError:
            continue
        lacks = None
        try:
            check_weights(folder)
        except ModelError as error:
            begun = f"; {sum(partial) / 1e9:.1f} GB of a file were begun" if any(partial) else ""
            lacks = f"{error}{begun}".replace(f"{folder} ", "")
        yield Shelved(name, folder.name, folder, folder_bytes(folder), lacks)
