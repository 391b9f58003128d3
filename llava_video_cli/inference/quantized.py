"""A checkpoint stored already quantized: later loads read a quarter of the bytes, and quantize nothing."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from ..checkpoint.config import INDEX, describe, read_config
from ..checkpoint.hub import SMALL_FILES
from ..checkpoint.random_weights import has_random_weights
from ..demo import CHECKPOINT
from ..errors import ModelError, UsageError, first_line
from ..model import Loading
from .loader import Loaded, load
from .placement import stored_quantization

_MADE_ANEW = ("config.json", INDEX)  # all else that isn't weights is copied
_HINT = "name another folder with --to"


def check_store(folder: Path, to: Path, quantize: Literal["8bit", "4bit"]) -> None:
    """Raise what speaks against storing, before weights are read.

    `UsageError` for a target that has something in it, and for a checkpoint that is quantized already; `ModelError`
    for a disk without room.
    """
    if to.exists() and not to.is_dir():
        raise UsageError(f"{to} is a file", _HINT)
    if to.is_dir() and any(to.iterdir()):
        raise UsageError(f"{to} has something in it already", _HINT)
    config = read_config(folder)
    if (already := stored_quantization(config)) is not None:
        raise UsageError(f"{folder} is stored in {already} already", "name the checkpoint that it was made of")
    there = next(each for each in (to.absolute(), *to.absolute().parents) if each.exists())
    needed_bytes, free_bytes = describe(config).parameters.total_bytes(quantize), shutil.disk_usage(there).free
    if free_bytes < needed_bytes:
        raise ModelError(f"{to} needs {needed_bytes / 1e9:.1f} GB, {free_bytes / 1e9:.1f} GB are free", _HINT)


def quantized(folder: Path, quantize: Literal["8bit", "4bit"], name: str) -> Loaded:
    """Return a checkpoint, quantized while it is loaded in the precision that this machine would take.

    Raises `ModelError` for what can't be loaded.
    """
    return load(folder, Loading(quantize=quantize), name)


def write(loaded: Loaded, folder: Path, to: Path) -> int:
    """Write a quantized checkpoint, and what is no weights of the folder that it came from; return the bytes.

    It is there whole or not at all, and answers as the one that was quantized while loading. Raises `ModelError`.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()  # something that loading imports switches it on again
    small = CHECKPOINT if has_random_weights(folder) else folder
    with _whole_folder(to) as beside:
        loaded.model.save_pretrained(beside)
        for path in sorted(small.iterdir()):
            if path.name not in _MADE_ANEW and any(path.match(pattern) for pattern in SMALL_FILES):
                shutil.copyfile(path, beside / path.name)
    return sum(path.stat().st_size for path in to.iterdir())


@contextmanager
def _whole_folder(to: Path) -> Iterator[Path]:
    """Give a folder beside the wanted one, renamed at the end, removed after a failure."""
    from safetensors import SafetensorError

    beside: Path | None = None
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        beside = Path(tempfile.mkdtemp(prefix=f".llvid-{to.name[:32]}-", dir=to.parent))
        yield beside
        beside.chmod(0o755)
        beside.replace(to)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise ModelError(f"can't write {to}: {reason}", _HINT) from None
    finally:
        if beside is not None:
            shutil.rmtree(beside, ignore_errors=True)
