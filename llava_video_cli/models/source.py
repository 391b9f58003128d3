"""From a model's name to a folder with a whole checkpoint: the demo, random weights, a folder, or the hub."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NoReturn

from ..errors import ModelError, nearest
from .checkpoint import check_architecture, check_name, check_weights, looks_like_folder, read_config
from .random_weights import random_folder

# The demo checkpoint is part of the package.
DEMO = Path(__file__).parents[1] / "demo" / "checkpoint"
# All that a checkpoint needs: no pickles, no code.
_FILES = ("*.json", "*.safetensors", "*.jinja", "tokenizer.model")
_DEMO_HINT = "`--model demo` needs no download"


def locate(model: str, revision: str | None = None) -> Path:
    """Return the folder of a checkpoint; fetches it from the hub's cache or the hub if it is a hub id.

    Of `random:SIZE` it is one with a config and no weights, which are made while loading.

    Only the config is fetched before the architecture is checked. Raises `UsageError` for a name that is
    none, `ModelError` for a checkpoint that isn't there, can't be fetched, or that llvid can't run.
    """
    check_name(model)
    if (folder := random_folder(model)) is not None:
        return folder
    if model == "demo":
        folder = DEMO
    elif looks_like_folder(model):
        folder = Path(model).expanduser()
        if not folder.is_dir():
            reason = "is a file, not a checkpoint folder" if folder.exists() else "doesn't exist"
            raise ModelError(f"the model folder {model} {reason}", _DEMO_HINT)
    else:
        folder = _fetch(model, revision)
    read_config(folder)
    check_weights(folder)
    return folder


def revision_of(folder: Path) -> str | None:
    """Return the hub commit that a folder of the hub's cache stands for, or None for any other folder."""
    return folder.name if folder.parent.name == "snapshots" else None


def _fetch(model: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import disable_progress_bars, logging

    logging.set_verbosity_error()
    if not sys.stderr.isatty():
        disable_progress_bars()
    try:
        config = Path(hf_hub_download(model, "config.json", revision=revision))
        commit = revision_of(config.parent) or revision
        check_architecture(read_config(config.parent), model)
        cached = _cached(model, commit)
        return cached or Path(snapshot_download(model, revision=commit, allow_patterns=list(_FILES)))
    except HFValidationError as error:
        raise ModelError(f"{model!r} is neither a folder nor a hub id: {_first_line(error)}", _DEMO_HINT) from None
    except (OSError, ValueError) as error:
        _explain(model, revision, error)


def _cached(model: str, commit: str | None) -> Path | None:
    """Return the cache's folder of a commit if it is whole."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(model, revision=commit, allow_patterns=list(_FILES), local_files_only=True))
        check_weights(folder)
    except (LocalEntryNotFoundError, ModelError):
        return None
    return folder if any((folder / name).exists() for name in ("tokenizer.json", "tokenizer.model")) else None


def _explain(model: str, revision: str | None, error: Exception) -> NoReturn:
    """Raise the `ModelError` that says why a hub id could not be fetched."""
    from huggingface_hub.errors import (
        EntryNotFoundError,
        GatedRepoError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    download = f"run `hf download {model}` where the hub can be reached; {_DEMO_HINT}"
    if isinstance(error, GatedRepoError):
        raise ModelError(
            f"the hub asks for a login or a licence for {model}", "`hf auth login`, then try again"
        ) from None
    if isinstance(error, RevisionNotFoundError):
        raise ModelError(f"the hub's {model} has no revision {revision!r}") from None
    if isinstance(error, RepositoryNotFoundError):
        raise ModelError(f"the hub has no model {model} (or it is private)", f"check the name; {_DEMO_HINT}") from None
    if "/" not in model and (demo := nearest(model, ["demo"])):
        raise ModelError(f"there is no model {model!r}", demo) from None
    if isinstance(error, (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError)):
        raise ModelError(f"{model} isn't in the local cache and the hub can't be reached", download) from None
    if isinstance(error, EntryNotFoundError):
        raise ModelError(f"{model} is no checkpoint: it has no config.json", _DEMO_HINT) from None
    raise ModelError(f"{model} can't be fetched: {_first_line(error)}", download) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
