"""The language model, one step at a time: prompts into a KV cache, then a token of each row in, its logits out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import torch
from torch.nn import functional
from transformers import AttentionInterface

from .cuda_graph import Capture, CapturedStep, cuda_graphs
from .kv_cache import SlotCache, attend, causal_mask

if TYPE_CHECKING:
    from ..conversation import Media
    from .prefix_cache import Prompt
    from .vision import SentPixels

# Decoders whose layers are written out below; others, and what differs inside, go through transformers' own forward.
_WRITTEN_OUT = ("LlamaModel", "MistralModel")
# A device that captures steps, or plans kernels for each shape, gets few shapes: tokens in steps of this.
_BUCKET_TOKENS = 256

# A decode step: ids and positions, int64 (rows, 1), are appended to the rows of a cache; returns the logits, (rows,
# vocabulary). The mask is that of `causal_mask`, or None if every row sees all.
Step: TypeAlias = Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None, Any], torch.Tensor]


@dataclass(frozen=True, eq=False)
class PromptBatch:
    """Prompts that are computed together: the `cached` tokens of each end at one place, where its `new` ones begin.

    What is left over before and behind them is padding. `ids`, int64 (rows, tokens), are the new ones, `starts`, int64
    (rows), the positions of the first of these.
    """

    cached: Sequence[int]
    new: Sequence[int]
    ids: torch.Tensor
    starts: torch.Tensor


@dataclass
class Inputs:
    """What is computed of prompts.

    `compute` appends the part `[begin, end)` of the new tokens to a cache of transformers' own kind, and returns the
    logits behind the last token of each row that ends in it, (rows, vocabulary). The first part has at least
    `together` tokens: media.
    """

    compute: Callable[[int, int, Any], torch.Tensor]
    together: int = 0


class InputSource(Protocol):
    """Where the engine gets what is computed of prompts."""

    def send(self, media: Iterable[Media]) -> Mapping[Media, SentPixels]:
        """Begin to copy pixels to the device, beside what it computes."""

    def inputs(
        self, decoder: Decoder, prompts: Sequence[Prompt], batch: PromptBatch, sent: Mapping[Media, SentPixels]
    ) -> Inputs:
        """Return what is computed of prompts, of each from its cached tokens on."""


class TransformersStep:
    """transformers' own forward, with an attention that takes rows of different lengths: for every model and device."""

    def __init__(self, model: Any) -> None:
        self._model, self._cache_name = model, cache_name(model)
        self._config = model.config.get_text_config()

    def __call__(
        self, ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None, cache: Any
    ) -> torch.Tensor:
        """Do the step."""
        usual = self._config._attn_implementation  # noqa: SLF001 - stands nowhere else
        self._config._attn_implementation = _ATTENTION  # noqa: SLF001
        try:
            output = self._model(
                input_ids=ids, position_ids=positions, attention_mask=mask, use_cache=True, **{self._cache_name: cache}
            )
        finally:
            self._config._attn_implementation = usual  # noqa: SLF001
        logits: torch.Tensor = output.logits[:, -1].to(ids.device)
        return logits


_ATTENTION = "llvid_slots"


def _attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: torch.Tensor | None,
    scaling: float | None = None, sliding_window: int | None = None, **_: object,
) -> tuple[torch.Tensor, None]:  # fmt: skip
    """Attend to slots, as transformers calls it: query (rows, heads, 1, width)."""
    del module
    if sliding_window and attention_mask is None:
        key, value = key[:, :, -sliding_window:], value[:, :, -sliding_window:]
    elif sliding_window and attention_mask is not None:
        seen = (attention_mask == 0).sum(-1, keepdim=True)
        outside = torch.arange(key.shape[2], device=key.device) < seen - sliding_window
        attention_mask = attention_mask.masked_fill(outside, -torch.inf)
    return attend(query[:, :, 0], key, value, attention_mask, scaling)[:, None], None


AttentionInterface.register(_ATTENTION, _attention)


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

    def __call__(
        self, ids: torch.Tensor, positions: torch.Tensor, mask: torch.Tensor | None, cache: Any
    ) -> torch.Tensor:
        """Do the step."""
        hidden = self._embed(ids)  # (rows, 1, width)
        cos, sin = self._rotary(hidden, positions)  # (rows, 1, head width)
        half = sin.shape[-1] // 2
        # rotating by half the width and changing the sign of its first half is a roll times a signed sine
        cos, sin = cos[:, :, None], torch.cat([-sin[..., :half], sin[..., half:]], dim=-1)[:, :, None]
        for layer, cached in zip(self._layers, cache.layers, strict=True):
            attention = layer.self_attn
            width = attention.head_dim
            normed = _rms_norm(layer.input_layernorm, hidden)
            query, key = attention.q_proj(normed), attention.k_proj(normed)
            value = attention.v_proj(normed).unflatten(-1, (-1, width)).transpose(1, 2)
            both = torch.cat([query, key], dim=-1).unflatten(-1, (-1, width))  # (rows, 1, heads + KV heads, width)
            both = both * cos + both.roll(half, -1) * sin
            heads = query.shape[-1] // width
            keys, values = cached.update(both[:, :, heads:].transpose(1, 2), value)
            output = attend(both[:, 0, :heads], keys, values, mask, attention.scaling)
            hidden = hidden + attention.o_proj(output.flatten(1)[:, None])
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


class Decoder:
    """A model's language model, its decode step, and the slots of its KV cache. For one thread at a time.

    `capture` is how a decode step is captured; the default is a CUDA graph on a GPU, and nothing elsewhere.
    """

    def __init__(self, model: Any, capture: Capture | None = None) -> None:
        self.model, self._step = model, choose_step(model)
        self.device = model.get_input_embeddings().weight.device
        self.runs_ahead = self.device.type == "cuda"  # a step is launched before the last one's token is read
        self._capture = None
        if isinstance(self._step, LayerStep) and self._step.is_static:
            self._capture = capture or (cuda_graphs(self.device) if self.runs_ahead else None)
        self._has_buckets = self._capture is not None or self.device.type != "cpu"
        self._captured: dict[tuple[int, int], CapturedStep] = {}
        self._cache_name, self.dtype = cache_name(model), model.get_input_embeddings().weight.dtype
        self.slots = SlotCache(model.config, self.device)

    def size(self, rows: int, tokens: int) -> tuple[int, int]:
        """Return the rows and tokens of the smallest step for so many."""
        if not self._has_buckets:
            return rows, tokens
        return _bucket(rows), _BUCKET_TOKENS * _bucket(-(-tokens // _BUCKET_TOKENS))

    def reserve(self, slots: int, room: int) -> None:
        """Allocate the cache anew, with this size; what it holds is kept as far as there is room."""
        self._captured.clear()
        self.slots.reserve(slots, room)

    @property
    def takes_masks(self) -> bool:
        """Whether a prefill's tokens can be told one by one what they see."""
        implementation = self.model.get_decoder().config._attn_implementation  # noqa: SLF001 - stands nowhere else
        return self.slots.is_plain and implementation in ("sdpa", "eager")

    def batch(self, prompts: Sequence[Prompt], cached: Sequence[int]) -> PromptBatch:
        """Return prompts as a batch, of each the tokens behind its `cached` ones."""
        rows = [prompt.ids[start:] for prompt, start in zip(prompts, cached, strict=True)]
        new = list(map(len, rows))
        ids = torch.tensor([[*row, *[0] * (max(new) - len(row))] for row in rows], device=self.device)
        starts = [start + prompt.shift for prompt, start in zip(prompts, cached, strict=True)]
        return PromptBatch(cached, new, ids, torch.tensor(starts, device=self.device))

    @torch.inference_mode()
    def prefill(self, cache: Any, batch: PromptBatch, begin: int, **inputs: torch.Tensor) -> torch.Tensor:
        """Append `input_ids` or `inputs_embeds` to a cache of transformers' own kind.

        They are the batch's new tokens from `begin` on; the cache holds what stands before. Returns the logits behind
        the last one of each row, if it is among them, (rows, vocabulary).
        """
        (tokens,) = (each.shape[1] for each in inputs.values())
        width, end = max(batch.cached), begin + tokens
        places = torch.arange(begin, end, device=self.device)
        positions = batch.starts[:, None] + places
        if len({*batch.cached}) > 1:  # what comes behind is hidden by causality, what stands before is not
            padding, keys = width - torch.tensor(batch.cached), torch.arange(width + end)
            sees = (keys >= padding[:, None])[:, None] & (keys <= width + torch.arange(begin, end)[:, None])
            inputs["attention_mask"] = self._mask(sees)
        lasts = [min(max(new, begin + 1), end) - begin - 1 for new in batch.new]
        kept = sorted({*lasts})
        if kept == [tokens - 1]:
            return self._append(cache, positions, logits_to_keep=1, **inputs)[:, -1]
        index = torch.tensor(kept, device=self.device)
        logits = self._append(cache, positions, logits_to_keep=index, **inputs)
        return torch.stack([logits[row, kept.index(last)] for row, last in enumerate(lasts)])

    @torch.inference_mode()
    def continue_from(
        self, cache: Any, begin: int, ids: torch.Tensor, positions: torch.Tensor, sees: torch.Tensor | None
    ) -> torch.Tensor:
        """Append ids at positions, both int64 (rows, tokens), to such a cache.

        Each sees the `begin` tokens that the cache holds. `sees`, bool (rows, tokens, tokens), tells which of the
        others it sees; None means all that stand before it. Returns the logits of all, (rows, tokens, vocabulary).
        """
        mask = None
        if sees is not None:
            mask = self._mask(functional.pad(sees, (begin, 0), value=True))
        ids = ids.to(self.device)
        return self._append(cache, positions, input_ids=ids, attention_mask=mask, logits_to_keep=0)

    def _mask(self, sees: torch.Tensor) -> torch.Tensor:
        """Return what to add to scores, (rows, 1, tokens, keys), where `sees`, (rows, tokens, keys), is of the host."""
        mask = torch.zeros(sees.shape, dtype=self.dtype, device=self.device)
        return mask.masked_fill_(~sees.to(self.device), torch.finfo(mask.dtype).min)[:, None]

    def _append(self, cache: Any, positions: torch.Tensor, **inputs: Any) -> torch.Tensor:
        output = self.model(position_ids=positions, use_cache=True, **{self._cache_name: cache}, **inputs)
        logits: torch.Tensor = output.logits.to(self.device)
        return logits

    @torch.inference_mode()
    def advance(self, rows: int, longest: int, *, are_alike: bool) -> torch.Tensor:
        """Append the slots' `last_ids` to the first `rows`; return the next logits, valid until the next step.

        The longest row holds `longest` tokens then. `are_alike` tells whether all are of that length.
        """
        size = self.size(rows, longest)
        size = min(size[0], self.slots.slots), min(size[1], self.slots.room)
        if self._capture is None:
            return self._run(*size, is_masked=not are_alike or size != (rows, longest))[:rows]
        if size not in self._captured:
            self._captured[size] = CapturedStep(lambda: self._run(*size), self.slots.lengths, self._capture)
        return self._captured[size]()[:rows]

    def _run(self, rows: int, tokens: int, is_masked: bool = True) -> torch.Tensor:
        slots = self.slots
        lengths = slots.lengths[:rows]
        mask = causal_mask(lengths, tokens, self.dtype) if is_masked else None
        slots.begin(rows, tokens)
        logits = self._step(slots.last_ids[:rows, None], (lengths + slots.shifts[:rows])[:, None], mask, slots)
        lengths.add_(1).clamp_(max=slots.room - 1)  # slots without a row take part where shapes are few
        return logits


def _bucket(number: int) -> int:
    """Return the next of 1, 2, 3, 4, 6, 8, 12, 16, 24, ..."""
    power = 1 << max(0, number - 1).bit_length()
    return 3 * power // 4 if power >= 4 and number <= 3 * power // 4 else power
