"""What a user changes of a checkpoint's config before it is loaded: how far positions reach, how frames are pooled."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..errors import UsageError
from .config import Checkpoint, describe

# LLaVA-NeXT leaves this many tokens for text when it chooses a factor: `ceil((144 * frames + 1000) / 4096)`.
LEAST_TEXT_TOKENS = 1000
# What it can be built on: positions as they are, or divided already.
_SCALABLE = ("default", "linear")


def adapted(
    config: Mapping[str, Any],
    rope_factor: float | None = None,
    pool_stride: int | None = None,
    pool_mode: str | None = None,
) -> dict[str, Any]:
    """Return a config with another RoPE factor or another pooling; None leaves what it says.

    `rope_factor` is the whole factor: a config that has one already is not scaled a second time. Raises `UsageError`
    for what the checkpoint can't do, `ModelError` for a config that makes no sense.
    """
    known = describe(config)
    changed = dict(config)
    if rope_factor is not None and rope_factor != known.rope_factor:
        _check_factor(known, rope_factor)
        text = dict(config.get("text_config") or {})
        rope = dict(text.pop("rope_scaling", None) or text.get("rope_parameters") or {})
        rope.pop("type", None)
        text["rope_parameters"] = {**rope, "rope_type": "linear", "factor": float(rope_factor)}
        changed["text_config"] = text
    stride = known.pool_stride if pool_stride is None else pool_stride
    mode = pool_mode or known.pool_mode
    if (stride, mode) != (known.pool_stride, known.pool_mode):
        _check_pooling(known, pool_stride)
        changed["spatial_pool_stride"], changed["spatial_pool_mode"] = stride, mode
    return changed


def factor_for(checkpoint: Checkpoint, tokens: int) -> float:
    """Return the least whole RoPE factor whose context holds so many tokens, or the checkpoint's own if that does.

    Source: LLaVA-NeXT's demo, which takes `ceil(tokens / max_position_embeddings)`.
    """
    if tokens <= checkpoint.context_tokens:
        return checkpoint.rope_factor
    return float(math.ceil(tokens / checkpoint.position_count))


def can_scale(checkpoint: Checkpoint) -> bool:
    """Return whether a linear factor can be put on a checkpoint's positions."""
    return checkpoint.rope_type in _SCALABLE


def strides_of(checkpoint: Checkpoint) -> list[int]:
    """Return the pooling strides that divide a frame's patches evenly, in ascending order."""
    side = checkpoint.frame_side
    return [stride for stride in range(2, side // 2 + 1) if side % stride == 0]


def _check_factor(known: Checkpoint, factor: float) -> None:
    if not can_scale(known):
        raise UsageError(
            f"--rope-factor is linear scaling, but the checkpoint has RoPE scaling of another kind: {known.rope_type}"
        )
    if not math.isfinite(factor) or factor < 1:
        raise UsageError(f"a RoPE factor must be 1 or more, got {factor:g}")
    if factor < known.rope_factor:
        raise UsageError(
            f"the checkpoint's positions are scaled by {known.rope_factor:g} already; --rope-factor {factor:g} "
            "would take context away",
            "the factor is the whole one: leave it out, or ask for more",
        )


def _check_pooling(known: Checkpoint, stride: int | None) -> None:
    if known.pool_mode not in ("average", "max"):
        raise UsageError(f"the checkpoint's pooling is learned ({known.pool_mode}): it can't be changed")
    if stride is not None and stride not in strides_of(known):
        side = known.frame_side
        strides = ", ".join(map(str, strides_of(known)))
        raise UsageError(
            f"--pool-stride {stride} doesn't divide the {side}x{side} patches of a frame", f"those that do: {strides}"
        )
