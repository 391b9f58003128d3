"""A checkpoint's tensors, each read when it is asked for, so that none is ever in memory twice."""

from __future__ import annotations

import math
import mmap
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from ..checkpoint.config import weight_names
from ..checkpoint.random_weights import has_random_weights
from .placement import Placement

# The format's names of data types. What isn't of the model's own is converted as transformers does it.
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "U8": torch.uint8, "U16": torch.uint16, "U32": torch.uint32, "U64": torch.uint64, "BOOL": torch.bool,
    "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
}  # fmt: skip
# The tokenizer's tokens for words. No others are ever the likeliest, so that no answer ends by itself.
_WORDS = slice(276, 448)
# Standard deviations, times 1 / sqrt(inputs): so large that other frames give another answer, and that attention
# differs between tokens; else an answer would soon repeat itself.
_DEVIATION, _ATTENTION_DEVIATION = 1.2, 3.0
_PACKED_ROWS = 32  # outputs that bitsandbytes' kernel for AVX-512 takes together
_BLOCK = 1_048_583  # random numbers, which a tensor repeats end to end; a prime, so that no two rows are the same


@dataclass(frozen=True)
class MappedTensor:
    """A tensor in a file, mapped when it is asked for: `mapped[...]`, as of a slice of safetensors.

    Each has a map of its own, which is freed with it: a tensor that is converted or quantized leaves no page in memory,
    and one that is kept unchanged takes memory as it is used. Its bytes are [begin, begin + size) of the file.
    """

    path: Path
    begin: int
    shape: tuple[int, ...]
    kind: str

    @property
    def dtype(self) -> torch.dtype:
        """Its data type in torch."""
        return _DTYPES[self.kind]

    @property
    def size(self) -> int:
        """Its bytes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    def get_dtype(self) -> str:
        """Its data type by the format's name; transformers calls this."""
        return self.kind

    def __getitem__(self, _: object) -> torch.Tensor:
        if not self.size:
            return torch.empty(self.shape, dtype=self.dtype)
        page = self.begin // mmap.ALLOCATIONGRANULARITY * mmap.ALLOCATIONGRANULARITY
        with self.path.open("rb") as file:
            pages = mmap.mmap(file.fileno(), self.begin - page + self.size, access=mmap.ACCESS_COPY, offset=page)
        return torch.frombuffer(pages, dtype=self.dtype, offset=self.begin - page).view(self.shape)


@contextmanager
def weights(folder: Path, config: Any, placement: Placement) -> Iterator[dict[str, Any]]:
    """Give all tensors by their names; each is read, or made, when it is indexed: `tensor[...]`.

    Raises `SafetensorError` or `OSError` for files that can't be read.
    """
    if has_random_weights(folder):
        yield random_tensors(config, getattr(torch, placement.dtype), torch.device(placement.device.name))
        return
    is_mps = placement.device.kind == "mps"  # safetensors reads straight into its memory
    tensors: dict[str, Any] = {}
    with ExitStack() as files:
        for path in (folder / name for name in weight_names(folder)):
            backend = {"device": "mps", "backend": "pread"} if is_mps else {}
            file = files.enter_context(safe_open(path, framework="pt", **backend))  # this checks the header, too
            with path.open("rb") as head:
                begin = 8 + int.from_bytes(head.read(8), "little")
            for name in file.offset_keys():  # the tensors lie end to end, as the format has it
                part = file.get_slice(name)
                if part.get_dtype() not in _DTYPES:
                    raise OSError(f"{path.name}: {name} is stored as {part.get_dtype()}")
                mapped = MappedTensor(path, begin, tuple(part.get_shape()), part.get_dtype())
                tensors[name] = part if is_mps else mapped
                begin += mapped.size
        yield tensors


@dataclass(frozen=True)
class RandomTensor:
    """A tensor of random weights, made when it is asked for: `random[...]`, as of a slice of safetensors."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    seed: int

    def __getitem__(self, _: object) -> torch.Tensor:
        if len(self.shape) == 1 and self.name.split(".")[-2] != "class_embedding":
            value = 0.0 if self.name.endswith("bias") else 1.0  # all vectors but biases scale a norm
            return torch.full(self.shape, value, dtype=self.dtype, device=self.device)
        numbers = torch.Generator(self.device).manual_seed(zlib.crc32(f"{self.seed} {self.name}".encode()))
        block = torch.empty(_BLOCK, dtype=self.dtype, device=self.device)
        is_attention = self.name.endswith(("q_proj.weight", "k_proj.weight"))
        deviation = _ATTENTION_DEVIATION if is_attention else _DEVIATION
        block.normal_(0, deviation / self.shape[-1] ** 0.5, generator=numbers)
        made = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        flat = made.view(-1)
        whole = flat.numel() // _BLOCK * _BLOCK
        flat[:whole].view(-1, _BLOCK).copy_(block)
        flat[whole:] = block[: flat.numel() - whole]
        if self.name == "lm_head.weight":
            made[: _WORDS.start] = made[_WORDS.stop :] = 0
        return made


def random_tensors(config: Any, dtype: torch.dtype, device: torch.device, seed: int = 0) -> dict[str, RandomTensor]:
    """Return all tensors of a model by their names, not yet made; the same seed gives the same values."""
    from transformers import LlavaNextVideoForConditionalGeneration

    with torch.device("meta"):
        model = LlavaNextVideoForConditionalGeneration(config)
    return {
        name: RandomTensor(name, tuple(parameter.shape), dtype, device, seed)
        for name, parameter in model.named_parameters()
    }


def prepare_layers(model: Any) -> None:
    """Let bitsandbytes rearrange 4-bit weights on the CPU for its kernel, where it has one for this processor.

    It would do so when a layer is first used: a first prompt of 1,160 tokens took 1.4 times as long as the next (1 B
    parameters). The kernel can't take every shape: bitsandbytes 0.50 fails there, so such a layer goes without it.
    """
    from bitsandbytes.nn import Linear4bit

    for layer in model.modules():
        if not isinstance(layer, Linear4bit) or not layer.support_avx512bf16_for_cpu:
            continue
        rows, columns = layer.weight.quant_state.shape
        if rows % _PACKED_ROWS or columns % layer.weight.quant_state.blocksize:
            layer.support_avx512bf16_for_cpu = False
        else:
            with torch.no_grad():
                layer(torch.zeros(1, columns, dtype=layer.compute_dtype))
