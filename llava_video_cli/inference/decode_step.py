"""The language model, one step at a time: prompts into the KV cache, then a token of each row in, its logits out."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn import functional

from .cuda_graph import Capture, CapturedStep, cuda_graphs
from .kv_cache import KVCache, new_cache

# Decoders whose layers are written out below; others, and what differs inside, go through transformers' own forward.
_WRITTEN_OUT = ("LlamaModel", "MistralModel")
# Capacities are rounded up to this, so that prompts of about one length can share a captured step.
_CAPACITY_STEP_TOKENS = 256
# Steps of an answer before its step is captured, which takes as long as a few: many answers are a word.
_STEPS_BEFORE_CAPTURE, _STEPS_WORTH_CAPTURE = 3, 12


class Step(Protocol):
    """One decode step of a batch."""

    def attention_mask(self, mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return a mask, int64 (rows, tokens), in the form that the step takes; its last dimension is the tokens."""

    def __call__(
        self, ids: torch.Tensor, positions: torch.Tensor, attention_mask: torch.Tensor | None, cache: Any
    ) -> torch.Tensor:
        """Append a token to each row of the cache, ids and positions int64 (rows, 1).

        Returns the logits, (rows, vocabulary). Without `attention_mask`, every row sees all that the cache holds.
        """


class TransformersStep:
    """transformers' own forward: right for every model and every device."""

    def __init__(self, model: Any) -> None:
        self._model, self._cache_name = model, cache_name(model)

    def attention_mask(self, mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return the mask unchanged."""
        del dtype
        return mask

    def __call__(
        self, ids: torch.Tensor, positions: torch.Tensor, attention_mask: torch.Tensor | None, cache: Any
    ) -> torch.Tensor:
        """Do the step."""
        output = self._model(
            input_ids=ids,
            position_ids=positions,
            attention_mask=attention_mask,
            use_cache=True,
            **{self._cache_name: cache},
        )
        logits: torch.Tensor = output.logits[:, -1].to(ids.device)
        return logits


class LayerStep:
    """The decoder's layers called one by one, without what else transformers' forward does.

    It computes the same sums in the same order with fewer, wider operations: a third of the kernels, and, for a small
    model, a third of the time. Linear layers are called as modules, so they may be quantized. `is_static` tells
    whether the step can be captured: it never waits for the device.
    """

    def __init__(self, model: Any) -> None:
        decoder = model.get_decoder()
        self._embed, self._head = decoder.embed_tokens, model.get_output_embeddings()
        self._rotary, self._norm = decoder.rotary_emb, decoder.norm
        self._layers = list(decoder.layers)
        # bitsandbytes' 8-bit product asks the device which columns are outliers
        self.is_static = not any(type(module).__name__ == "Linear8bitLt" for module in decoder.modules())

    def attention_mask(self, mask: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return a mask to add to the attention's scores, (rows, 1, 1, tokens)."""
        hidden = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(mask == 0, float("-inf"))
        return hidden[:, None, None]

    def __call__(
        self, ids: torch.Tensor, positions: torch.Tensor, attention_mask: torch.Tensor | None, cache: Any
    ) -> torch.Tensor:
        """Do the step."""
        return self.run(ids, positions, attention_mask, cache.layers, None)

    def run(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        attention_mask: torch.Tensor | None,
        layers: Sequence[Any],
        slot: torch.Tensor | None,
    ) -> torch.Tensor:
        """Do the step on a cache's layers; with a `slot`, int64 (1), no shape depends on how much they hold.

        Keys and values are then written to that place of the cache's buffers; `attention_mask` is as wide as these.
        """
        hidden = self._embed(ids)  # (rows, 1, width)
        cos, sin = self._rotary(hidden, positions)  # (rows, 1, head width)
        half = sin.shape[-1] // 2
        # rotating by half the width and changing the sign of its first half is a roll times a signed sine
        cos, sin = cos[:, :, None], torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)[:, :, None]
        for layer, cached in zip(self._layers, layers, strict=True):
            attention = layer.self_attn
            width = attention.head_dim
            normed = _rms_norm(layer.input_layernorm, hidden)
            query, key = attention.q_proj(normed), attention.k_proj(normed)
            value = attention.v_proj(normed).unflatten(-1, (-1, width)).transpose(1, 2)
            both = torch.cat([query, key], dim=-1).unflatten(-1, (-1, width))  # (rows, 1, heads + KV heads, width)
            both = both * cos + both.roll(half, -1) * sin
            heads = query.shape[-1] // width
            # heads that share a key stand as its queries: (rows, KV heads, heads of each, width)
            query = both[:, 0, :heads].unflatten(1, (value.shape[1], -1))
            key = both[:, :, heads:].transpose(1, 2)
            if slot is None:
                keys, values = cached.update(key, value)
            else:
                keys, values = cached.buffers
                keys.index_copy_(2, slot, key)
                values.index_copy_(2, slot, value)
            output = functional.scaled_dot_product_attention(
                query, keys, values, attn_mask=attention_mask, scale=attention.scaling
            )
            hidden = hidden + attention.o_proj(output.reshape(len(output), 1, -1))
            hidden = hidden + layer.mlp(_rms_norm(layer.post_attention_layernorm, hidden))
        logits: torch.Tensor = self._head(_rms_norm(self._norm, hidden))[:, -1]
        return logits


def choose_step(model: Any) -> Step:
    """Return the step that fits a model: its layers written out, if they are of a known kind and on one device."""
    decoder, config = model.get_decoder(), model.config.get_text_config()
    devices = {parameter.device for parameter in decoder.parameters()} | {model.get_output_embeddings().weight.device}
    is_written_out = (
        type(decoder).__name__ in _WRITTEN_OUT
        and getattr(config, "sliding_window", None) is None
        and decoder.config._attn_implementation in ("sdpa", "flash_attention_2")  # noqa: SLF001 - stands nowhere else
        and len(devices) == 1
        and "meta" not in {device.type for device in devices}
    )
    return LayerStep(model) if is_written_out else TransformersStep(model)


def cache_name(model: Any) -> str:
    """Return the name that this version of transformers has for a forward's KV cache."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def _rms_norm(norm: Any, hidden: torch.Tensor) -> torch.Tensor:
    """RMSNorm, rounded before the weight as transformers does it, in two kernels instead of seven."""
    scaled = functional.rms_norm(hidden, hidden.shape[-1:], None, norm.variance_epsilon)
    result: torch.Tensor = norm.weight * scaled
    return result


@dataclass(frozen=True, eq=False)
class BatchInputs:
    """Prompts of the same length, padded on the left, and a KV cache of the first `cached` tokens of each.

    `ids` and `mask` are int64 (rows, tokens); `embeddings` (rows, tokens - cached, hidden) has what is to be computed.
    `is_padded` tells whether any of the mask is 0.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    embeddings: torch.Tensor
    cache: Any
    is_padded: bool

    @property
    def tokens(self) -> int:
        """The length of the rows, padding included."""
        return self.ids.shape[1]


class Decoder:
    """A model's language model, its decode step, and the KV caches that fit it. For one thread at a time.

    `capture` is how a decode step is captured; the default is a CUDA graph on a GPU, and nothing elsewhere.
    """

    def __init__(self, model: Any, capture: Capture | None = None) -> None:
        self.model, self.step = model, choose_step(model)
        self.device = model.get_input_embeddings().weight.device
        self.runs_ahead = self.device.type == "cuda"  # a step is launched before the last one's token is read
        self.capture = None
        if isinstance(self.step, LayerStep) and self.step.is_static:
            self.capture = capture or (cuda_graphs(self.device) if self.runs_ahead else None)
        self._cache_name = cache_name(model)

    def cache(self, rows: int, tokens: int, reusable: Any = None) -> Any:
        """Return an empty cache for so many tokens of each row: `reusable`, where it has the same size.

        Only a captured step makes a cache worth using again.
        """
        capacity = self._capacity(tokens)
        can_reuse = self.capture is not None and isinstance(reusable, KVCache)
        if can_reuse and reusable.rows == rows and reusable.capacity == capacity:
            reusable.set_length(0)
            return reusable
        return new_cache(self.model.config, capacity)

    def select(self, cache: Any, rows: torch.Tensor, tokens: int, reusable: Any = None) -> Any:
        """Move these rows of a cache, int64 (rows), to one with room for so many tokens; the old one ends up empty."""
        if not isinstance(cache, KVCache):
            cache.batch_select_indices(rows)
            return cache
        target = self.cache(len(rows), tokens, reusable)
        cache.move(rows, target)
        return target

    def reserve(self, cache: Any, tokens: int) -> None:
        """Enlarge a cache that is in use to so many tokens, if it has less."""
        if isinstance(cache, KVCache):
            cache.reserve(self._capacity(tokens))

    @torch.inference_mode()
    def prefill(self, batch: BatchInputs) -> torch.Tensor:
        """Fill the batch's cache with all its tokens; return the logits of the last ones, (rows, vocabulary)."""
        positions = (batch.mask.cumsum(-1) - 1).clamp(min=0)[:, -batch.embeddings.shape[1] :]
        output = self.model(
            inputs_embeds=batch.embeddings,
            attention_mask=batch.mask,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
            **{self._cache_name: batch.cache},
        )
        logits: torch.Tensor = output.logits[:, -1].to(batch.ids.device)
        return logits

    def _capacity(self, tokens: int) -> int:
        return tokens if self.capture is None else -(-tokens // _CAPACITY_STEP_TOKENS) * _CAPACITY_STEP_TOKENS


class DecodingBatch:
    """A batch after its prefill, which grows by a token of each row at a time, by at most `most_new`.

    On a GPU its steps run ahead of the host: the logits that they return may still be on their way.
    """

    def __init__(self, decoder: Decoder, batch: BatchInputs, most_new: int) -> None:
        self._decoder, self.cache = decoder, batch.cache
        self._tokens, self._end = batch.tokens, batch.tokens + most_new
        self._attention_mask: torch.Tensor | None = None
        if batch.is_padded:
            width = self.cache.capacity if isinstance(self.cache, KVCache) else self._end
            mask = functional.pad(batch.mask, (0, width - batch.tokens), value=1)
            self._attention_mask = decoder.step.attention_mask(mask, batch.embeddings.dtype)
        self._first, self._steps = batch.mask.sum(-1, keepdim=True), 0  # the position of each row's first new token
        self._captured: CapturedStep | None = None
        self._capture_at = _STEPS_BEFORE_CAPTURE

    def advance(self, new_ids: torch.Tensor) -> torch.Tensor:
        """Append a token to each row, int64 (rows); return the next one's logits, valid until the next step."""
        ids = new_ids[:, None]
        if self._captured is None:
            self._captured = self._captured_step(ids)
        if self._captured is not None:
            logits = self._captured(ids)
        else:
            mask = None if self._attention_mask is None else self._attention_mask[..., : self._tokens + 1]
            logits = self._decoder.step(ids, self._first + self._steps, mask, self.cache)
        self._tokens += 1
        self._steps += 1
        return logits

    def select(self, rows: torch.Tensor) -> None:
        """Keep these rows alone, int64 (rows), and give the memory of the others back."""
        self.finish()
        self.cache = self._decoder.select(self.cache, rows, self._end)
        self._first = self._first[rows]
        self._attention_mask = None if self._attention_mask is None else self._attention_mask[rows]
        self._captured, self._capture_at = None, self._steps + _STEPS_BEFORE_CAPTURE

    def finish(self) -> None:
        """Set the cache's length, which a captured step does not count."""
        if self._captured is not None:
            self.cache.set_length(self._tokens)

    def _captured_step(self, ids: torch.Tensor) -> CapturedStep | None:
        """Return the step that was captured on the cache; capture it now, if that pays."""
        decoder, cache, step = self._decoder, self.cache, self._decoder.step
        if decoder.capture is None or not isinstance(cache, KVCache) or not isinstance(step, LayerStep):
            return None
        earlier: CapturedStep | None = cache.captured
        pays = self._steps >= self._capture_at and self._end - self._tokens >= _STEPS_WORTH_CAPTURE
        if earlier is None and not pays:
            return None
        captured = earlier or CapturedStep(step, cache.layers)
        captured.begin(self._first + self._steps, self._tokens, self._attention_mask)
        if earlier is None and not captured.capture(decoder.capture, ids):
            decoder.capture = None  # it would fail again
            return None
        cache.captured = captured
        return captured
