"""A checkpoint stored quantized: later loads read a quarter of the bytes, and quantize nothing."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from ..checkpoint.config import INDEX
from ..checkpoint.hub import SMALL_FILES
from ..checkpoint.random_weights import has_random_weights
from ..demo import CHECKPOINT
from ..errors import ModelError, UsageError, first_line
from ..model import Loading
from .loader import Loaded, load, read_facts
from .placement import stored_quantization

_REWRITTEN = ("config.json", INDEX)  # all other files but the weights are copied
_HINT = "choose another folder with --to"


def check_store(folder: Path, to: Path, quantize: Literal["8bit", "4bit"]) -> None:
    """Check before weights are read that a checkpoint can be stored.

    Raises `UsageError` for a target that is not empty, or that a new folder can't take the place of, and for a
    checkpoint that is quantized already, `ModelError` for a disk that is too full.
    """
    if to.exists() and not to.is_dir():
        raise UsageError(f"{to} is a file", _HINT)
    if to.is_dir() and any(to.iterdir()):
        raise UsageError(f"{to} is not empty", _HINT)
    is_here, is_mount = to.is_dir() and to.samefile(Path.cwd()), os.path.ismount(to)
    if is_here or is_mount:
        kind = "the current folder" if is_here else "a mount point"
        raise UsageError(f"{to} is {kind}, which the new folder can't replace", "choose a folder in it with --to")
    config, checkpoint = read_facts(str(folder), folder, Loading())
    if (quantization := stored_quantization(config)) is not None:
        raise UsageError(f"{folder} is already stored in {quantization}", "use the checkpoint that it was made from")
    existing = next(each for each in (to.absolute(), *to.absolute().parents) if each.exists())
    needed_bytes, free_bytes = checkpoint.parameters.total_bytes(quantize), shutil.disk_usage(existing).free
    if free_bytes < needed_bytes:
        raise ModelError(f"{to} needs {needed_bytes / 1e9:.1f} GB, but {free_bytes / 1e9:.1f} GB is free", _HINT)


def load_quantized(folder: Path, quantize: Literal["8bit", "4bit"], name: str) -> Loaded:
    """Load a checkpoint and quantize it, in the data type that this machine would take. Raises `ModelError`."""
    return load(folder, Loading(quantize=quantize), name, to_answer=False)


def write(loaded: Loaded, folder: Path, to: Path) -> int:
    """Write a quantized checkpoint, with the other files of the folder that it came from; return its bytes.

    After a failure nothing of it is left. It answers as one that is quantized while loading. Raises `ModelError`.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()  # a module that loading imports switches it on again
    source = CHECKPOINT if has_random_weights(folder) else folder
    with _new_folder(to) as temporary:
        loaded.model.save_pretrained(temporary)
        for path in sorted(source.iterdir()):
            if path.name not in _REWRITTEN and any(path.match(pattern) for pattern in SMALL_FILES):
                shutil.copyfile(path, temporary / path.name)
    return sum(path.stat().st_size for path in to.iterdir())


@contextmanager
def _new_folder(to: Path) -> Iterator[Path]:
    """Give a temporary folder next to `to`, which is renamed at the end, or removed after a failure."""
    from safetensors import SafetensorError

    temporary: Path | None = None
    try:
        to.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".llvid-{to.name[:32]}-", dir=to.parent))
        yield temporary
        temporary.chmod(0o755)
        temporary.replace(to)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise ModelError(f"can't write {to}: {reason}", _HINT) from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
