"""A checkpoint's files as strangers and half downloads leave them: looked at before a library opens them."""

from __future__ import annotations

import json
import os
import re
import stat
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

from ..errors import ModelError, first_line

# What is read of a checkpoint, but its weights and config.json, which `read_config` has checked. The published
# tokenizers have up to 33 MB.
_MAPPINGS = (
    "generation_config.json", "tokenizer_config.json", "processor_config.json", "chat_template.json",
    "preprocessor_config.json", "video_preprocessor_config.json", "special_tokens_map.json", "added_tokens.json",
)  # fmt: skip
_OTHERS = ("merges.txt", "chat_template.jinja", "additional_chat_templates/*")
_MOST_SMALL_BYTES = {"tokenizer.json": 2**27, "tokenizer.model": 2**27}
_MOST_BYTES = 2**24  # of any other
_POINTER = b"version https://git-lfs.github.com/spec/"
_MOST_HEADER_BYTES = 100_000_000  # as safetensors has it
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json")
TOKENIZER_HINT = "copy the tokenizer's files, and the processor's, from the checkpoint that it was trained from"
_MOST_GROWTH = 64.0  # of a text by a tokenizer; those of the families make it three times as long at most
_LEAST_OF_TABLE, _TABLE_CHARACTERS = 9.0, 2**13  # so that one table passes, as T5's with 316,000 in base64, but not two
_STDERR_LOCK = threading.Lock()
_MOST_HELD_BYTES = 2**20  # of what is written to stderr during a call of the tokenizer
_AGAIN = "get the file again: `git lfs pull` in a clone of the repository, `llvid pull` for a checkpoint of the hub"


def read_json(path: Path) -> Any:
    """Return what a small JSON file holds. Raises `FileNotFoundError`, or `ModelError` for what isn't one."""
    with _readable(path, FileNotFoundError):
        _check_small(path)
        content = path.read_bytes()
    _check_pointer(path, content)
    try:
        return json.loads(content)
    except RecursionError:
        raise unreadable(path, "it is nested too deeply") from None
    except ValueError as error:
        raise unreadable(path, f"it is not JSON ({error})") from None


def unreadable(path: Path, why: str) -> ModelError:
    """Return the error of a file that can't be read."""
    return ModelError(f"{path} can't be read: {why}", _AGAIN)


def check_files(folder: Path, weights: Sequence[str]) -> None:
    """Raise `ModelError` for files that a library would stumble on, hang on, or read for ever."""
    tokenizers = [folder / name for name in _TOKENIZERS if os.path.lexists(folder / name)]
    if not tokenizers:
        raise ModelError(f"{folder} has no tokenizer: none of {', '.join(_TOKENIZERS)}", TOKENIZER_HINT)
    mappings = [path for name in _MAPPINGS if os.path.lexists(path := folder / name)]
    for path in [*tokenizers, *mappings, *(path for pattern in _OTHERS for path in folder.glob(pattern))]:
        with _readable(path):
            _check_small(path)
            with path.open("rb") as file:
                _check_pointer(path, file.read(len(_POINTER) + 200))
    for path in mappings:
        if not isinstance(read_json(path), dict):
            raise unreadable(path, "it is not a mapping")
    for path in tokenizers:
        if path.name == "tokenizer.json":
            _check_growth(path)
    for name in weights:
        read_weights_header(folder / name)


def _check_growth(path: Path) -> None:
    """Raise `ModelError` for a tokenizer of which a few steps, each harmless, make gigabytes of a short text."""
    content = read_json(path)
    for part in ("normalizer", "pre_tokenizer", "post_processor", "decoder"):
        growth, steps = 1.0, [content.get(part) if isinstance(content, dict) else None]
        while steps:
            step = steps.pop()
            if isinstance(step, dict):
                growth *= max(1.0, _growth(step))
                steps += step.values()
            elif isinstance(step, list):
                steps += step
        if growth > _MOST_GROWTH:
            raise ModelError(f"{path} makes a text up to {growth:.3g} times as long", TOKENIZER_HINT)


def _growth(step: dict[str, Any]) -> float:
    """Return how many times as long a step of a tokenizer can make a text."""
    kind, new = step.get("type"), step.get("content")
    if kind == "Replace" and isinstance(new, str):
        pattern = step.get("pattern")
        old = pattern.get("String") if isinstance(pattern, dict) else None
        return len(new) / len(old) if old and isinstance(old, str) else 1 + len(new)  # a regex may match nothing
    if kind == "Precompiled":  # sentencepiece's table may have any text for a character
        return max(_LEAST_OF_TABLE, len(str(step.get("precompiled_charsmap"))) / _TABLE_CHARACTERS)
    if kind == "TemplateProcessing" and isinstance(step.get("single"), list):
        return sum(isinstance(piece, dict) and "Sequence" in piece for piece in step["single"])
    return 1.0


@contextmanager
def tokenizer_errors(name: str) -> Iterator[None]:
    """Turn what the tokenizers library raises into `ModelError`, such as the panic of a regular expression."""
    try:
        with _without_panic_text():
            yield
    except ModelError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and not _is_panic(error):
            raise
        raise ModelError(f"the tokenizer of {name} fails: {first_line(error)}", TOKENIZER_HINT) from None


@contextmanager
def _without_panic_text() -> Iterator[None]:
    """Keep what a panic writes to stderr by itself, a backtrace in Rust, from the user: it is raised as well.

    What other threads, or a signal's handler, write meanwhile comes afterwards.
    """
    with _STDERR_LOCK:
        stderr = held = -1
        try:
            stderr = os.dup(2)
            held = _scratch_file()
        except OSError:  # it is closed, or there is no place for temporary files
            if stderr >= 0:
                os.close(stderr)
            yield
            return
        is_panic = False
        try:
            os.dup2(held, 2)
            yield
        except BaseException as error:
            is_panic = _is_panic(error)
            raise
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
            os.lseek(held, 0, os.SEEK_SET)
            written = b"" if is_panic else os.read(held, _MOST_HELD_BYTES)
            os.close(held)
            if written:
                os.write(2, written)


def _scratch_file() -> int:
    """Open a file that has no name; in memory on Linux."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("llvid-stderr")
    with TemporaryFile() as file:
        return os.dup(file.fileno())


def _is_panic(error: BaseException) -> bool:
    """Whether it is one of Rust's: it is no `Exception`, and its class can't be imported."""
    return type(error).__name__ == "PanicException"


@contextmanager
def _readable(path: Path, *passed: type[OSError]) -> Iterator[None]:
    """Turn what the system says of a file into `ModelError`, but for errors that are `passed` on."""
    try:
        yield
    except passed:
        raise
    except OSError as error:
        raise unreadable(path, error.strerror or str(error)) from None


def _check_small(path: Path) -> None:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise unreadable(path, "it is not a regular file")
    most = _MOST_SMALL_BYTES.get(path.name, _MOST_BYTES)
    if status.st_size > most:
        raise unreadable(path, f"it has {status.st_size:,} bytes, more than {most:,}")


def _check_pointer(path: Path, head: bytes) -> None:
    if head.startswith(_POINTER):
        size = re.search(rb"size ([0-9]{1,18})", head)
        size_text = f" of {int(size[1]):,} bytes" if size else ""
        raise ModelError(f"{path} is Git LFS's pointer to a file{size_text}, not the file", _AGAIN)


def read_weights_header(path: Path) -> dict[str, Any]:
    """Return what the header of a file of weights says of each tensor, by name.

    Raises `ModelError` for another file, and for one that is shorter than its header says: the last tensor ends where
    the file does.
    """
    with _readable(path):
        return _weights_header(path)


def _weights_header(path: Path) -> dict[str, Any]:
    if not stat.S_ISREG((status := path.stat()).st_mode):
        raise unreadable(path, "it is not a regular file")
    with path.open("rb") as file:
        head = file.read(8)
        _check_pointer(path, head + file.read(len(_POINTER) + 200))
        file.seek(len(head))
        length = int.from_bytes(head, "little")
        header = file.read(length) if length <= min(status.st_size, _MOST_HEADER_BYTES) else b""
    try:
        tensors = {name: tensor for name, tensor in json.loads(header).items() if name != "__metadata__"}
        wanted = 8 + length + max(map(_end, tensors.values()), default=0)
    except (ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError):
        raise ModelError(f"{path} is not a safetensors file, or is cut short", _AGAIN) from None
    if status.st_size < wanted:
        raise ModelError(f"{path} is cut short: {status.st_size:,} of {wanted:,} bytes", _AGAIN)
    return tensors


def _end(tensor: Any) -> int:
    """Return where a tensor of a header ends. Raises what `_weights_header` expects where its numbers are none."""
    end, shape = tensor["data_offsets"][1], tensor["shape"]
    if not isinstance(shape, list) or not all(type(each) is int and 0 <= each < 2**63 for each in (end, *shape)):
        raise ValueError
    return int(end)
