"""Models of the published sizes with random weights, made where they are to be: speed and memory without a download.

Their answers are noise. The configs in `random/` have the published geometries
(https://huggingface.co/llava-hf/LLaVA-NeXT-Video-7B-hf and its siblings), but the demo checkpoint's tokenizer.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import UsageError

if TYPE_CHECKING:
    import torch

PREFIX = "random:"
SIZES = ("tiny", "1B", "7B", "7B-32K", "34B")
_CONFIGS = Path(__file__).parent / "random"
# The tokenizer's tokens that stand for words. No others are ever likeliest, so that no answer stops by itself.
_WORDS = slice(276, 448)
# Times 1 / sqrt(inputs): so wide that what is seen changes what is said, and that attention does not see all tokens
# alike, or an answer would soon go round in circles.
_SPREAD, _SPREAD_ATTENDING = 1.2, 3.0
_BLOCK = 1_048_583  # numbers that are drawn for a tensor and laid end to end; a prime, so that no two rows are the same


def random_folder(model: str) -> Path | None:
    """Return the folder that holds the config of `random:SIZE`, None for any other name.

    Raises `UsageError` for a size that there isn't.
    """
    if not model.startswith(PREFIX):
        return None
    size = model.removeprefix(PREFIX)
    known = {name.lower(): name for name in SIZES}
    if size.lower() not in known:
        raise UsageError(f"there are no random weights of size {size!r}", f"one of {', '.join(SIZES)}")
    return _CONFIGS / known[size.lower()]


def has_random_weights(folder: Path) -> bool:
    """Whether a folder is one of those whose weights are made, not read."""
    return folder.parent == _CONFIGS


@dataclass(frozen=True)
class Drawn:
    """A tensor that is made when it is asked for, as a slice of safetensors' is read then: `drawn[...]`."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    seed: int

    def __getitem__(self, _: object) -> torch.Tensor:
        import torch

        if len(self.shape) == 1 and self.name.split(".")[-2] != "class_embedding":
            value = 0.0 if self.name.endswith("bias") else 1.0  # all vectors but biases scale a norm
            return torch.full(self.shape, value, dtype=self.dtype, device=self.device)
        numbers = torch.Generator(self.device).manual_seed(zlib.crc32(f"{self.seed} {self.name}".encode()))
        block = torch.empty(_BLOCK, dtype=self.dtype, device=self.device)
        attends = self.name.endswith(("q_proj.weight", "k_proj.weight"))
        spread = _SPREAD_ATTENDING if attends else _SPREAD
        block.normal_(0, spread / self.shape[-1] ** 0.5, generator=numbers)
        made = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        flat = made.view(-1)
        whole = flat.numel() // _BLOCK * _BLOCK
        flat[:whole].view(-1, _BLOCK).copy_(block)
        flat[whole:] = block[: flat.numel() - whole]
        if self.name == "lm_head.weight":
            made[: _WORDS.start] = made[_WORDS.stop :] = 0
        return made


def draw(config: Any, dtype: torch.dtype, device: torch.device, seed: int = 0) -> dict[str, Drawn]:
    """Return all tensors of a model by their names, none of them made yet; the same seed gives the same values."""
    import torch
    from transformers import LlavaNextVideoForConditionalGeneration

    with torch.device("meta"):
        model = LlavaNextVideoForConditionalGeneration(config)
    return {
        name: Drawn(name, tuple(parameter.shape), dtype, device, seed) for name, parameter in model.named_parameters()
    }
