"""A batch's way through the model: its prompts into the cache, then a token of each row at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from .cuda_graph import Capture, Captured, cuda_graphs
from .decode_step import LayerStep, cache_name, choose_step
from .kv_cache import KVCache, new_cache
from .turns import Turns

# Prompts of about one length get as much room, and so share a captured step.
_ROOM_TOKENS = 256
# Steps of an answer before its step is captured, which takes as long as a few: many answers are a word.
_STEPS_BEFORE_CAPTURE, _STEPS_WORTH_CAPTURE = 3, 12


@dataclass(frozen=True, eq=False)
class Rows:
    """Prompts of the same length, padded on the left, and a KV cache of the first `cached` tokens of each.

    `ids` and `mask` are int64 (batch, tokens), `embeddings` (batch, tokens - cached, hidden): of those to be computed.
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
    """A model's decoder: how it takes a step, and the caches that it fills.

    `capture` is how a step is captured; by itself, as a CUDA graph on a GPU, and not elsewhere. `turns` are taken by
    those that use the same weights: nothing is asked of the device outside them.
    """

    def __init__(self, model: Any, capture: Capture | None = None, turns: Turns | None = None) -> None:
        self.model, self.step, self.turns = model, choose_step(model), turns or Turns()
        device = model.get_input_embeddings().weight.device
        self.device = device
        self.is_ahead = device.type == "cuda"  # its steps are asked for before the last one's token is seen
        self.capture = None
        if isinstance(self.step, LayerStep) and self.step.is_static:
            self.capture = capture or (cuda_graphs(device) if self.is_ahead else None)
        self._cache_name = cache_name(model)

    def beside(self) -> Decoder:
        """Return another one of the same weights, for another thread."""
        return Decoder(self.model, self.capture, self.turns)

    def cache(self, rows: int, tokens: int, spare: Any = None) -> Any:
        """Return an empty cache with room for the tokens of these rows: the spare one, where it fits.

        Only a captured step makes a spare one worth keeping.
        """
        if self.capture is not None:
            tokens = -(-tokens // _ROOM_TOKENS) * _ROOM_TOKENS
            if isinstance(spare, KVCache) and spare.rows == rows and spare.tokens == tokens:
                spare.show(0)
                return spare
        return new_cache(self.model.config, tokens)

    def select(self, cache: Any, rows: torch.Tensor, tokens: int, spare: Any = None) -> Any:
        """Return a cache of these rows of another, int64 (rows), with room for the tokens; the other is used up."""
        if not isinstance(cache, KVCache):
            cache.batch_select_indices(rows)
            return cache
        into = self.cache(len(rows), tokens, spare)
        cache.select(rows, into)
        return into

    def reserve(self, cache: Any, tokens: int) -> None:
        """Make room in a cache that is gone on with."""
        if isinstance(cache, KVCache):
            cache.reserve(tokens if self.capture is None else -(-tokens // _ROOM_TOKENS) * _ROOM_TOKENS)

    @torch.inference_mode()
    def prefill(self, rows: Rows) -> torch.Tensor:
        """Fill the cache of the rows with all their tokens; return the last one's logits, (rows, vocabulary)."""
        positions = (rows.mask.cumsum(-1) - 1).clamp(min=0)[:, -rows.embeddings.shape[1] :]
        output = self.model(
            inputs_embeds=rows.embeddings,
            attention_mask=rows.mask,
            position_ids=positions,
            use_cache=True,
            logits_to_keep=1,
            **{self._cache_name: rows.cache},
        )
        logits: torch.Tensor = output.logits[:, -1].to(rows.ids.device)
        return logits

    def begin(self, rows: Rows, most_new: int) -> Decoding:
        """Return the rows on their way, to get at most so many new tokens each."""
        return Decoding(self, rows, most_new)


class Decoding:
    """A batch on its way. On a GPU the steps run ahead of the host: what they return need not be there yet."""

    def __init__(self, decoder: Decoder, rows: Rows, most_new: int) -> None:
        self._decoder, self._rows, self.cache = decoder, rows, rows.cache
        self._tokens, self._end = rows.tokens, rows.tokens + most_new
        self._visible: torch.Tensor | None = None
        if rows.is_padded:
            room = self.cache.tokens if isinstance(self.cache, KVCache) else self._end
            mask = functional.pad(rows.mask, (0, room - rows.tokens), value=1)
            self._visible = decoder.step.visible(mask, rows.embeddings.dtype)
        self._first, self._steps = rows.mask.sum(-1, keepdim=True), 0  # the position of each row's first new token
        self._captured: Captured | None = None
        self._capture_at = _STEPS_BEFORE_CAPTURE

    def prefill(self) -> torch.Tensor:
        """Compute the prompts; return the logits of the first new token, (rows, vocabulary)."""
        return self._decoder.prefill(self._rows)

    def advance(self, chosen: torch.Tensor) -> torch.Tensor:
        """Append a token to each row, int64 (rows); return the logits of the next, good until the next step."""
        ids = chosen[:, None]
        if self._captured is None:
            self._captured = self._take_up(ids)
        if self._captured is not None:
            logits = self._captured(ids)
        else:
            visible = None if self._visible is None else self._visible[..., : self._tokens + 1]
            logits = self._decoder.step(ids, self._first + self._steps, visible, self.cache)
        self._tokens += 1
        self._steps += 1
        return logits

    def select(self, rows: torch.Tensor) -> None:
        """Go on with these rows alone, int64 (rows): what the others take is given back."""
        self.finish()
        self.cache = self._decoder.select(self.cache, rows, self._end)
        self._first = self._first[rows]
        self._visible = None if self._visible is None else self._visible[rows]
        self._captured, self._capture_at = None, self._steps + _STEPS_BEFORE_CAPTURE

    def finish(self) -> None:
        """Let the cache tell how much it holds."""
        if self._captured is not None:
            self.cache.show(self._tokens)

    def _take_up(self, ids: torch.Tensor) -> Captured | None:
        """Return the step that was captured on the cache, or is now, if that pays."""
        decoder, cache, step = self._decoder, self.cache, self._decoder.step
        if decoder.capture is None or not isinstance(cache, KVCache) or not isinstance(step, LayerStep):
            return None
        captured: Captured | None = cache.captured
        pays = self._steps >= self._capture_at and self._end - self._tokens >= _STEPS_WORTH_CAPTURE
        if captured is None and not pays:
            return None
        taken = captured or Captured(step, cache.layers)
        taken.begin(self._first + self._steps, self._tokens, self._visible)
        if captured is None and not taken.capture(decoder.capture, ids):
            decoder.capture = None  # it would fail again
            return None
        cache.captured = taken
        return taken
