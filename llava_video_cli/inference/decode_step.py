"""The decode step: one token of each row in, the logits of the next one out."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch.nn import functional

# Decoders whose layers are written out below; others, and what differs inside, go through transformers' own forward.
_WRITTEN_OUT = ("LlamaModel", "MistralModel")


class Step(Protocol):
    """One step of a model's decoder for a batch."""

    def visible(self, mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return a mask, int64 (rows, tokens), in the form that the step takes; the last dimension stays the tokens."""

    def __call__(
        self, ids: torch.Tensor, positions: torch.Tensor, visible: torch.Tensor | None, cache: Any
    ) -> torch.Tensor:
        """Append a token to each row of the cache, ids and positions int64 (rows, 1).

        Returns the logits, (rows, vocabulary). Without `visible`, every row sees all that the cache holds.
        """


class WholeStep:
    """transformers' own forward: right for every model and every device."""

    def __init__(self, model: Any) -> None:
        self._model, self._cache_name = model, cache_name(model)

    def visible(self, mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return the mask as it is."""
        del dtype
        return mask

    def __call__(
        self, ids: torch.Tensor, positions: torch.Tensor, visible: torch.Tensor | None, cache: Any
    ) -> torch.Tensor:
        """Do the step."""
        output = self._model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=visible,
            use_cache=True,
            **{self._cache_name: cache},
        )
        logits: torch.Tensor = output.logits[:, -1].to(ids.device)
        return logits


class LayerStep:
    """The decoder's layers called one by one, with what transformers' forward does besides left out.

    It does the same sums in the same order with fewer, wider operations: a third of the kernels, and, for a small
    model, a third of the time. Linear layers are called as modules, so they may be quantized.
    """

    def __init__(self, model: Any) -> None:
        decoder = model.get_decoder()
        self._embed, self._head = decoder.embed_tokens, model.get_output_embeddings()
        self._rotary, self._norm = decoder.rotary_emb, decoder.norm
        self._layers = list(decoder.layers)
        # bitsandbytes' 8-bit product asks the device which columns are outliers
        self.is_static = not any(type(module).__name__ == "Linear8bitLt" for module in decoder.modules())

    def visible(self, mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return a mask to add to the attention's scores, (rows, 1, 1, tokens)."""
        hidden = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(mask == 0, float("-inf"))
        return hidden[:, None, None]

    def __call__(
        self, ids: torch.Tensor, positions: torch.Tensor, visible: torch.Tensor | None, cache: Any
    ) -> torch.Tensor:
        """Do the step."""
        return self.run(ids, positions, visible, cache.layers, None)

    def run(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        visible: torch.Tensor | None,
        layers: Sequence[Any],
        slot: torch.Tensor | None,
    ) -> torch.Tensor:
        """Do the step on a cache's layers; with a `slot`, int64 (1), no shape hangs on how much they hold.

        Keys and values then go to that place of the cache's buffers, which are attended to where `visible` says.
        """
        hidden = self._embed(ids)  # (rows, 1, width)
        cos, sin = self._rotary(hidden, positions)  # (rows, 1, head width)
        half = sin.shape[-1] // 2
        # rotating by half the width and changing the sign of its first half is a roll times a signed sine
        cos, sin = cos[:, :, None], torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)[:, :, None]
        for layer, kept in zip(self._layers, layers, strict=True):
            attention = layer.self_attn
            width = attention.head_dim
            normed = _normed(layer.input_layernorm, hidden)
            query, key = attention.q_proj(normed), attention.k_proj(normed)
            value = attention.v_proj(normed).unflatten(-1, (-1, width)).transpose(1, 2)
            turned = torch.cat([query, key], dim=-1).unflatten(-1, (-1, width))  # (rows, 1, heads + KV heads, width)
            turned = turned * cos + turned.roll(half, -1) * sin
            heads = query.shape[-1] // width
            # heads that share a key stand as its queries: (rows, KV heads, heads of each, width)
            query = turned[:, 0, :heads].unflatten(1, (value.shape[1], -1))
            key = turned[:, :, heads:].transpose(1, 2)
            if slot is None:
                keys, values = kept.update(key, value)
            else:
                keys, values = kept.room
                keys.index_copy_(2, slot, key)
                values.index_copy_(2, slot, value)
            seen = functional.scaled_dot_product_attention(
                query, keys, values, attn_mask=visible, scale=attention.scaling
            )
            hidden = hidden + attention.o_proj(seen.reshape(len(seen), 1, -1))
            hidden = hidden + layer.mlp(_normed(layer.post_attention_layernorm, hidden))
        logits: torch.Tensor = self._head(_normed(self._norm, hidden))[:, -1]
        return logits


def choose_step(model: Any) -> Step:
    """Return the step that fits a model."""
    return LayerStep(model) if _is_written_out(model) else WholeStep(model)


def cache_name(model: Any) -> str:
    """Return the name that this version of transformers has for a forward's KV cache."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def _is_written_out(model: Any) -> bool:
    """Whether the decoder is of the kind whose layers are written out, on one device."""
    decoder, config = model.get_decoder(), model.config.get_text_config()
    devices = {parameter.device for parameter in decoder.parameters()} | {model.get_output_embeddings().weight.device}
    return (
        type(decoder).__name__ in _WRITTEN_OUT
        and getattr(config, "sliding_window", None) is None
        and decoder.config._attn_implementation in ("sdpa", "flash_attention_2")  # noqa: SLF001 - stands nowhere else
        and len(devices) == 1
        and "meta" not in {device.type for device in devices}
    )


def _normed(norm: Any, hidden: torch.Tensor) -> torch.Tensor:
    """RMSNorm, rounded before the weight as transformers does it, in two kernels instead of seven."""
    scaled = functional.rms_norm(hidden, hidden.shape[-1:], None, norm.variance_epsilon)
    result: torch.Tensor = norm.weight * scaled
    return result
