"""A checkpoint's tensors, each read when it is asked for, so that none is ever held twice."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from .hub import INDEX
from .precision import Choice
from .random_weights import draw, has_random_weights

_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@contextmanager
def weights(folder: Path, config: Any, choice: Choice, *, are_quantized: bool) -> Iterator[dict[str, Any]]:
    """Give all tensors by their names, each as something that makes it when it is indexed: `tensor[...]`.

    What goes to a CPU's memory as it stands in the file is mapped: it takes memory as it is used, and the system may
    drop it again. What is converted or quantized there is read, as the pages of a map would stay beside it.
    `are_quantized` tells that the file's own tensors are.
    """
    if has_random_weights(folder):
        yield draw(config, getattr(torch, choice.dtype), torch.device(choice.device.name))
        return
    kind = choice.device.kind
    is_quantizing = choice.quantize != "none" and not are_quantized
    device = "mps" if kind == "mps" else "cpu"  # from there, transformers brings them to where they belong
    backend = "pread" if kind == "mps" or sys.platform == "win32" else "mmap"
    tensors: dict[str, Any] = {}
    with ExitStack() as files:
        for path in weight_files(folder):
            mapped = files.enter_context(safe_open(path, framework="pt", device=device, backend=backend))
            read = files.enter_context(safe_open(path, framework="pt", device=device, backend="pread"))
            for name in mapped.keys():  # noqa: SIM118 - it is no mapping
                part = mapped.get_slice(name)
                is_converted = _DTYPES.get(part.get_dtype(), choice.dtype) != choice.dtype
                if kind == "cpu" and (is_converted or (is_quantizing and _is_quantized(name))):
                    part = read.get_slice(name)
                tensors[name] = part
        yield tensors


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold a checkpoint's weights, as its index names them."""
    index = folder / INDEX
    if not index.is_file():
        return [folder / "model.safetensors"]
    return [folder / name for name in sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))]


def _is_quantized(name: str) -> bool:
    """Whether a tensor is a linear layer of the language model's, by the names of old and new files."""
    return "language_model" in name and name.endswith("_proj.weight")
