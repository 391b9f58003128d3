"""A checkpoint's tensors, each brought in when it is asked for, so that none is ever held twice."""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from .hub import INDEX
from .precision import Choice
from .random_weights import draw, has_random_weights

# The format's names of what checkpoints are stored in: 16 or 32 bits, and what bitsandbytes packs.
_DTYPES = {
    "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "U8": torch.uint8, "I8": torch.int8,
}  # fmt: skip


@dataclass(frozen=True)
class Mapped:
    """A tensor in a file, mapped when it is asked for, as a slice of safetensors' is: `mapped[...]`.

    Each has a map of its own, which goes with it: of one that is converted or quantized no page stays, and one that is
    kept as it is takes memory as it is used. The bytes are [begin, begin + size) of the file.
    """

    path: Path
    begin: int
    shape: tuple[int, ...]
    kind: str

    @property
    def dtype(self) -> torch.dtype:
        """As torch has it."""
        return _DTYPES[self.kind]

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    def get_dtype(self) -> str:
        """As the format has it; transformers asks for it."""
        return self.kind

    def __getitem__(self, _: object) -> torch.Tensor:
        if not self.size:
            return torch.empty(self.shape, dtype=self.dtype)
        page = self.begin // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        with self.path.open("rb") as file:
            pages = mmap.mmap(file.fileno(), self.begin - page + self.size, access=mmap.ACCESS_COPY, offset=page)
        return torch.frombuffer(pages, dtype=self.dtype, offset=self.begin - page).view(self.shape)


@contextmanager
def weights(folder: Path, config: Any, choice: Choice) -> Iterator[dict[str, Any]]:
    """Give all tensors by their names, each as something that makes it when it is indexed: `tensor[...]`.

    Raises `SafetensorError` or `OSError` for files that can't be read.
    """
    if has_random_weights(folder):
        yield draw(config, getattr(torch, choice.dtype), torch.device(choice.device.name))
        return
    is_mps = choice.device.kind == "mps"  # safetensors reads straight into its memory
    tensors: dict[str, Any] = {}
    with ExitStack() as files:
        for path in weight_files(folder):
            backend = {"device": "mps", "backend": "pread"} if is_mps else {}
            file = files.enter_context(safe_open(path, framework="pt", **backend))  # it checks the header, too
            with path.open("rb") as head:
                begin = 8 + int.from_bytes(head.read(8), "little")
            for name in file.offset_keys():  # the tensors lie end to end, as the format has it
                part = file.get_slice(name)
                if part.get_dtype() not in _DTYPES:
                    raise OSError(f"{path.name}: {name} is stored as {part.get_dtype()}")
                mapped = Mapped(path, begin, tuple(part.get_shape()), part.get_dtype())
                tensors[name] = part if is_mps else mapped
                begin += mapped.size
        yield tensors


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold a checkpoint's weights, as its index names them."""
    index = folder / INDEX
    if not index.is_file():
        return [folder / "model.safetensors"]
    return [folder / name for name in sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))]
