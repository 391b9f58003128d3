"""The attention kernel: the one asked for if it can run here, else the quickest that can."""

from __future__ import annotations

from typing import Literal

from ..errors import ModelError
from ..model import Attention
from .devices import Device
from .placement import Width

Kernel = Literal["sdpa", "flash_attention_2", "eager"]


def choose_attention(attention: Attention, device: Device, dtype: Width) -> Kernel:
    """Return the kernel asked for; `auto` takes flash_attention_2 where it can run, else sdpa.

    Raises `ModelError` with the reason for one that can't run here.
    """
    if attention in ("sdpa", "eager"):
        return attention
    why = _why_no_flash(device, dtype)
    if why is None:
        return "flash_attention_2"
    if attention == "auto":
        return "sdpa"
    raise ModelError(f"flash_attention_2 can't be used: {why}", "`--attention auto` takes what is there")


def _why_no_flash(device: Device, dtype: Width) -> str | None:
    if device.kind != "cuda":
        return f"it runs on CUDA devices, not on {device.kind}"
    if dtype == "float32":
        return "it takes float16 or bfloat16, not float32"
    import torch
    from transformers.utils import is_flash_attn_2_available

    if any(torch.cuda.get_device_capability(number) < (8, 0) for number in device.numbers):
        return "it needs an Ampere GPU or a newer one"
    if not is_flash_attn_2_available():
        return "the package flash-attn isn't installed, or doesn't fit this torch"
    return None
