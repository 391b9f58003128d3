"""Embeddings to tokens: transformers' own generate, in a thread of its own, as an iterator."""

from __future__ import annotations

import copy
import inspect
import queue
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from transformers import StoppingCriteriaList

from ..conversation import FinishReason, Generation

# An answer that ends in the same tokens this often, and for this long, goes round in circles.
_CIRCLES, _CIRCLING_TOKENS, _LONGEST_CIRCLE = 6, 64, 48
_CHECK_EVERY = 16  # tokens
# How long a reader that leaves waits for the step under way; a prefill on a CPU may take minutes.
_LEAVE_SECONDS = 2.0


def stop_ids(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Return the tokens that end an answer: those of the generation config, the text config, the tokenizer."""
    found: list[int] = []
    for source in (model.generation_config, model.config.get_text_config(), tokenizer):
        ids = source.eos_token_id
        found += ids if isinstance(ids, list) else [] if ids is None else [ids]
    return tuple(dict.fromkeys(found))


def generation_config(model: Any, generation: Generation, stops: Sequence[int], pad_id: int) -> Any:
    """Return transformers' settings for ours: greedy at temperature 0, else sampled by temperature and top-p."""
    config = copy.deepcopy(model.generation_config)
    sampled = generation.temperature > 0
    config.update(
        do_sample=sampled,
        temperature=generation.temperature if sampled else None,
        top_p=generation.top_p if sampled else None,
        top_k=0 if sampled else None,
        repetition_penalty=generation.repetition_penalty,
        max_new_tokens=generation.max_new_tokens,
        max_length=None,
        num_beams=1,
        eos_token_id=list(stops),
        pad_token_id=pad_id,
        use_cache=True,  # the 34B checkpoints' config says false
        return_dict_in_generate=False,
    )
    return config


def circles(ids: Sequence[int]) -> bool:
    """Tell whether the ids end in one block of tokens, repeated."""
    for length in range(1, _LONGEST_CIRCLE + 1):
        span = max(_CIRCLES * length, _CIRCLING_TOKENS)
        if len(ids) < span:
            continue
        tail = ids[-span:]
        if all(tail[i] == tail[i + length] for i in range(span - length)):
            return True
    return False


def finish_reason(ids: Sequence[int], stops: Sequence[int]) -> FinishReason:
    """Return why the new ids ended where they did."""
    if ids and ids[-1] in stops:
        return "stop"
    return "repetition" if circles(ids) else "length"


def until_end(ids: Sequence[int], stops: Sequence[int]) -> list[int]:
    """Return a batch's row up to its own end: one that ended early is padded to the longest."""
    for count, token in enumerate(ids, start=1):
        if token in stops or (count % _CHECK_EVERY == 0 and circles(ids[:count])):
            return list(ids[:count])
    return list(ids)


def cache_argument(model: Any, cache: Any) -> dict[str, Any]:
    """Return a KV cache under the name that this version of transformers has for it."""
    known = inspect.signature(model.forward).parameters
    return {"cache" if "cache" in known else "past_key_values": cache}


@dataclass(frozen=True, eq=False)
class Rows:
    """Prompts of the same length, padded on the left, and a KV cache of the first `cached` tokens of each.

    `ids` and `mask` are int64 (batch, tokens), `embeddings` (batch, tokens - cached, hidden): of those to be computed.
    """

    ids: torch.Tensor
    mask: torch.Tensor
    embeddings: torch.Tensor
    cache: Any

    @property
    def tokens(self) -> int:
        """The length of the rows, padding included."""
        return self.ids.shape[1]


@torch.inference_mode()
def prefill(model: Any, rows: Rows) -> None:
    """Fill the cache of the rows with all their tokens."""
    positions = (rows.mask.cumsum(-1) - 1).clamp(min=0)
    model(
        inputs_embeds=rows.embeddings,
        attention_mask=rows.mask,
        position_ids=positions,
        use_cache=True,
        logits_to_keep=1,
        **cache_argument(model, rows.cache),
    )


class Run:
    """One call of `generate`.

    Iterated, it yields the new ids of a single row as they come, from a thread that hands its exception over
    and stops when the reader leaves. `whole()` returns all rows at the end. `new_ids` are those of a single row so far.
    """

    def __init__(self, model: Any, rows: Rows, config: Any, seed: int | None = None) -> None:
        self._model, self._rows, self._config, self._seed = model, rows, config, seed
        self.new_ids: list[int] = []
        self._error: BaseException | None = None
        self._queue: queue.SimpleQueue[int | BaseException | None] = queue.SimpleQueue()
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._work, name="llvid-generate", daemon=True)
        self.first_token_at = 0.0

    def __enter__(self) -> Run:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        self._thread.join(_LEAVE_SECONDS)

    def __iter__(self) -> Iterator[int]:
        while (item := self._queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    @property
    def is_over(self) -> bool:
        """Whether it ended without an error, so that its cache holds the prompt and the new ids."""
        return self._error is None and not self._thread.is_alive()

    def whole(self) -> list[list[int]]:
        """Return the new ids of every row."""
        rows: list[list[int]] = self._generate(_Feed(self)).tolist()
        return rows

    def _work(self) -> None:
        try:
            self._generate(_Feed(self, self._queue))
            self._queue.put(None)
        except BaseException as error:  # noqa: BLE001 - the reader gets it, whatever it is
            self._error = error
            self._queue.put(error)

    @torch.inference_mode()
    def _generate(self, streamer: _Feed) -> torch.Tensor:
        """Return the new ids, int64 (batch, new tokens)."""
        if self._seed is not None:
            torch.manual_seed(self._seed)
        rows = self._rows
        known = rows.tokens - rows.embeddings.shape[1]
        # generate wants the embeddings of all tokens, and leaves out those that the cache holds
        blank = rows.embeddings.new_zeros(()).expand(len(rows.ids), known, rows.embeddings.shape[-1])
        output = self._model.generate(
            input_ids=rows.ids,
            inputs_embeds=torch.cat([blank, rows.embeddings], dim=1) if known else rows.embeddings,
            attention_mask=rows.mask,
            generation_config=self._config,
            streamer=streamer,
            stopping_criteria=StoppingCriteriaList([_Leaves(self._left), _Circles(rows.tokens)]),
            **cache_argument(self._model, rows.cache),
        )
        new: torch.Tensor = output[:, rows.tokens :]
        return new


class _Feed:
    """A streamer for `generate`: takes new ids, notes when the first came, and queues those of a single row."""

    def __init__(self, run: Run, rows: queue.SimpleQueue[int | BaseException | None] | None = None) -> None:
        self._run, self._queue, self._prompt_seen = run, rows, False

    def put(self, value: torch.Tensor) -> None:
        if not self._prompt_seen:  # generate hands over the prompt first
            self._prompt_seen = True
            return
        self._run.first_token_at = self._run.first_token_at or time.perf_counter()
        if self._queue is not None:
            for token in value.reshape(-1).tolist():
                self._run.new_ids.append(token)
                self._queue.put(token)

    def end(self) -> None:
        """The thread says when it is done, also after an exception."""


class _Leaves:
    """Stops all rows once the reader has left."""

    def __init__(self, left: threading.Event) -> None:
        self._left = left

    def __call__(self, input_ids: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return torch.full((len(input_ids),), self._left.is_set(), device=input_ids.device)


class _Circles:
    """Stops a row that repeats itself."""

    def __init__(self, prompt_tokens: int) -> None:
        self._prompt_tokens = prompt_tokens

    def __call__(self, input_ids: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        count = input_ids.shape[1] - self._prompt_tokens
        if count % _CHECK_EVERY:
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        rows = input_ids[:, -min(count, _CIRCLES * _LONGEST_CIRCLE) :].tolist() if count else [[]] * len(input_ids)
        return torch.tensor([circles(row) for row in rows], device=input_ids.device)
