"""LLaVA-NeXT-Video through transformers: prompts to features to tokens to text."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from ...checkpoint import revision_of
from ...checkpoint.files import tokenizer_errors
from ...conversation import Answer, Chunk, Request, Usage, join
from ...errors import ModelError, OutOfMemoryError
from ...model import Loading
from ...prompt.budget import Budget, too_long
from ...prompt.chat_template import IMAGE, VIDEO, chat_template, render
from ...video.fit import FrameResize
from .. import device_memory as memory
from ..cuda_graph import Capture
from ..decode_step import Decoder
from ..detokenizer import Detokenizer, hidden_ids
from ..engine import FairLock, TokenStream, stop_ids
from ..loader import Loaded, load
from ..prefix_cache import Prompt, Span
from ..prompt_batch import PromptBatcher
from ..sampler import NOT_FINITE, Sampler
from ..vision import Vision

_Piece = TypeVar("_Piece")
# The most requests of a batch: on a CPU more don't pay, and their prefill takes memory.
_MOST_TOGETHER = {"cpu": 32}
_MOST_TOGETHER_ELSEWHERE = 256


class LlavaVideo:
    """A loaded checkpoint that answers requests, one at a time or as a batch.

    Threads wait for each other's answers. `conversations` is how many alternate, each with a KV cache of its own;
    `capture` is how a decode step is captured, see `Decoder`.
    """

    def __init__(
        self,
        name: str,
        loaded: Loaded,
        revision: str | None = None,
        prefix_reuse: bool = True,
        capture: Capture | None = None,
        conversations: int = 1,
    ) -> None:
        self.name = name
        self._loaded, self._revision, self._prefix_reuse = loaded, revision, prefix_reuse
        self._model, self._tokenizer = loaded.model, loaded.processor.tokenizer
        self._stop_ids = stop_ids(self._model, self._tokenizer)
        source = loaded.processor.chat_template
        source = source.get("default") if isinstance(source, dict) else source
        self._template = chat_template(name, source or "", self._tokenizer.special_tokens_map)
        self._hidden_ids = hidden_ids(self._tokenizer, loaded.checkpoint, self._stop_ids)
        self._vision = Vision(loaded)
        self._device = self._model.get_input_embeddings().weight.device
        self._device_lock = FairLock()  # for a step at a time; shared by models on the same weights
        self._begin(Decoder(self._model, capture), conversations)

    @classmethod
    def open(cls, name: str, folder: Path, loading: Loading) -> LlavaVideo:
        """Load a checkpoint's folder; raises `ModelError` or `UsageError`."""
        loaded, revision = load(folder, loading, name), revision_of(folder)
        return cls(name, loaded, revision, loading.prefix_reuse, conversations=loading.conversations)

    def with_shared_weights(self) -> LlavaVideo:
        """Return another model on the same weights, which answers at the same time: their steps alternate."""
        other = copy(self)
        other._begin(Decoder(self._model, self._decoder.capture), conversations=1)  # noqa: SLF001 - of its own class
        return other

    def _begin(self, decoder: Decoder, conversations: int) -> None:
        """Set what models on the same weights have each of their own."""
        self._answer_lock, self._answering_thread = threading.Lock(), 0
        self._decoder, pad_id = decoder, self._tokenizer.pad_token_id or 0  # any will do: it is masked
        self._batcher = PromptBatcher(
            decoder, self._vision, pad_id, self._loaded.answer_bytes, self._prefix_reuse, conversations
        )

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about how it was loaded."""
        return self._loaded.notes

    @property
    def settings(self) -> dict[str, Any]:
        """What was decided while loading."""
        loaded = self._loaded
        return {
            "model": self.name,
            "revision": self._revision,
            "device": loaded.placement.device.name,
            "dtype": loaded.placement.dtype,
            "quantize": loaded.placement.quantize,
            "attention": loaded.attention,
            "rope_factor": loaded.checkpoint.rope_factor,
            "pool_stride": loaded.checkpoint.rates.pool_stride,
            "pool_mode": loaded.checkpoint.pool_mode,
        }

    @property
    def cached_bytes(self) -> int:
        """The size of the KV caches that are kept for later prompts."""
        return self._batcher.cached_bytes

    def stream(self, request: Request) -> Iterator[Chunk]:
        """Yield the answer in whole words as it is generated; closing the iterator stops the generation.

        Raises `ContextError` if the prompt and the longest answer don't fit the context, `ModelError` if the memory
        does not suffice, if the logits are not finite, or if this thread has an iterator of this model that it has not
        finished or closed.
        """
        return self._generate([request], [0], lambda _, chunk: chunk)

    def stream_all(
        self,
        requests: Sequence[Request],
        is_cancelled: Callable[[int], bool] = lambda _: False,
        in_pieces: bool = True,
    ) -> Iterator[tuple[int, Chunk]]:
        """Yield pieces of all answers, each with its request's number, as they are generated.

        Greedy requests with the same settings share a batch; their `max_new_tokens` may differ. Each answer's last
        chunk comes at its own end; without `in_pieces` it is the whole answer. `is_cancelled` is called with a
        request's number before each of its tokens, in another thread; a cancelled answer has no last chunk. Closing the
        iterator stops the generation. Raises as `stream` does, and `OutOfMemoryError` if fewer requests may fit. Where
        the logits of some rows are not finite, the others are answered first if answers come in pieces.
        """
        for numbers in _batches(requests):
            batch = [requests[number] for number in numbers]
            # an answer's cost should not depend on which video came before, or on how many requests fit a batch
            yield from self._generate(
                batch, numbers, lambda *piece: piece, is_cancelled, same_media=True, in_pieces=in_pieces
            )

    def answer_all(self, requests: Sequence[Request]) -> list[Answer]:
        """Return the answers in the requests' order; greedy ones with the same settings share a batch."""
        chunks: list[list[Chunk]] = [[] for _ in requests]
        for number, chunk in self.stream_all(requests, in_pieces=False):
            chunks[number].append(chunk)
        return [join(one) for one in chunks]

    def _generate(
        self,
        requests: Sequence[Request],
        numbers: Sequence[int],
        piece: Callable[[int, Chunk], _Piece],
        is_cancelled: Callable[[int], bool] = lambda _: False,
        same_media: bool = False,
        in_pieces: bool = True,
    ) -> Generator[_Piece]:
        """Yield the chunks of answers that are generated together, each as `piece` of its request's number and it.

        With `same_media`, the cache of an earlier prompt serves a single request only if all media are the same.
        """
        started = time.perf_counter()
        last: tuple[int, Chunk] | None = None
        failed = False
        with self._one_answer_at_a_time(), self._memory_errors(requests):
            memory.reset_peak(self._device)
            limits = [request.generation.max_new_tokens for request in requests]
            with self._device_lock:
                prompts = list(map(self._prompt, requests))
                batch, cached = self._batcher.batch(prompts, max(limits), same_media)
                generation, config = requests[0].generation, self._model.generation_config
                sampler = Sampler(generation, config, self._stop_ids, batch.ids, batch.mask)
            texts = [Detokenizer(self._decode, request.stop) for request in requests]
            tokens = TokenStream(
                self._decoder,
                self._device_lock,
                batch,
                limits,
                self._stop_ids,
                sampler,
                lambda row: texts[row].is_stopped or is_cancelled(numbers[row]),
            )
            in_pieces = in_pieces or any(request.stop for request in requests)
            first_at, unfinished, counts = 0.0, len(prompts), [0] * len(prompts)
            try:
                with tokens:
                    for token in tokens:
                        first_at = first_at or token.at_seconds
                        row, detokenizer = token.row, texts[token.row]
                        if detokenizer.is_stopped:  # the token was generated before the stop string was seen
                            continue
                        if token.id == NOT_FINITE:
                            failed = True
                            unfinished -= 1
                            if in_pieces:  # answers that are being read go on
                                continue
                            break
                        counts[row] += 1
                        text = detokenizer.push([token.id]) if in_pieces else ""
                        if token.finish_reason is None and not detokenizer.is_stopped:
                            if text:
                                yield piece(numbers[row], Chunk(text))
                                self._answering_thread = threading.get_ident()  # it may have changed
                            continue
                        unfinished -= 1
                        text += "" if in_pieces else detokenizer.push(tokens.new_ids[row])
                        text += detokenizer.finish()
                        usage = Usage(
                            prompt_tokens=len(prompts[row].ids),
                            cached_tokens=cached[row],
                            generated_tokens=counts[row],
                            first_token_seconds=first_at - started,
                            total_seconds=token.at_seconds - started,
                            peak_memory_bytes=memory.peak_bytes(self._device),
                        )
                        reason = "stop" if detokenizer.is_stopped else token.finish_reason
                        last = numbers[row], Chunk(text, reason, usage)
                        if unfinished:
                            yield piece(*last)
                            self._answering_thread = threading.get_ident()
                            last = None
            finally:
                if tokens.cache is not None and not failed:  # a NaN in a cache spoils what is computed from it later
                    self._batcher.keep(tokens.cache, prompts, tokens.new_ids)
        if last:
            yield piece(*last)  # outside the lock: a reader that stops here must not keep others out
        if failed:
            raise self._not_finite()

    @contextmanager
    def _one_answer_at_a_time(self) -> Iterator[None]:
        """Wait for other threads' answers; raise `ModelError` where this thread would wait for itself."""
        if self._answering_thread == threading.get_ident():
            raise ModelError(
                "this model is still answering in this thread", "finish or close the first iterator before the next"
            )
        with self._answer_lock:
            self._answering_thread = threading.get_ident()
            try:
                yield
            finally:
                self._answering_thread = 0

    def budget(self, request: Request) -> Budget:
        """Return what a request takes of the context, whether it fits or not; nothing is encoded."""
        return self._counted(request)[1]

    def _counted(self, request: Request) -> tuple[list[int], Budget]:
        """Return the ids of a request's prompt, and what it takes of the context."""
        checkpoint = self._loaded.checkpoint
        media = tuple(medium.tokens(checkpoint.rates) for medium in request.media)
        ids = self._tokenized(request, media)
        return ids, Budget(len(ids), request.generation.max_new_tokens, checkpoint.context_tokens, media)

    def fits(self, request: Request) -> int:
        """Return how many such requests fit the memory together; at least 1."""
        tokens = len(self._prompt(request).ids) + request.generation.max_new_tokens
        free = memory.free_bytes(self._device) + self.cached_bytes  # which a batch gets back
        most = _MOST_TOGETHER.get(self._device.type, _MOST_TOGETHER_ELSEWHERE)
        return max(1, int(min(free / self._loaded.answer_bytes(tokens), most)))

    @property
    def shrink(self) -> FrameResize:
        """Makes frames what the vision tower takes, uint8 (side, side, 3), resized as the processor does it."""
        return self._vision.shrink

    def _prompt(self, request: Request) -> Prompt:
        """Return a request's prompt, checked against the context before anything is encoded."""
        ids, budget = self._counted(request)
        counts = budget.media_tokens
        if budget.left < 0:
            raise too_long(self.name, self._loaded.checkpoint, budget, request.media)
        marks = {self._loaded.checkpoint.image_token_id, self._loaded.checkpoint.video_token_id}
        places = [at for at, token in enumerate(ids) if token in marks]
        if len(places) != sum(counts):
            raise ModelError(f"the prompt has {len(places)} placeholders for {sum(counts)} features")
        spans, begin = [], 0
        for medium, count in zip(request.media, counts, strict=True):
            spans.append(Span(places[begin], places[begin + count - 1] + 1, medium))
            begin += count
        return Prompt(ids, tuple(spans))

    def _tokenized(self, request: Request, media_tokens: Iterable[int]) -> list[int]:
        """Return the prompt's ids, with as many places for each medium as it has tokens."""
        tokenizer, family = self._tokenizer, self._loaded.checkpoint.family
        text = render(request.turns, self._template, family, tokenizer.all_special_tokens, tokenizer.eos_token)
        counts = iter(media_tokens)
        text = re.sub(f"{IMAGE}|{VIDEO}", lambda mark: mark[0] * next(counts), text)
        # A template may write the opening token itself; the tokenizer must not write it again.
        has_opening = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
        with tokenizer_errors(self.name):
            ids: list[int] = tokenizer(text, add_special_tokens=not has_opening)["input_ids"]
        return ids

    def _decode(self, ids: list[int]) -> str:
        shown = [token for token in ids if token not in self._hidden_ids]
        text: str = self._tokenizer.decode(shown, skip_special_tokens=False)
        return text

    def _not_finite(self) -> ModelError:
        dtype = self._loaded.placement.dtype
        weights = "the weights are damaged: get them again, or an earlier step of the training"
        hint = {
            "float16": "try `--dtype bfloat16` or `--dtype float32`: float16 ends at 65,504",
            "bfloat16": f"try `--dtype float32`; if that fails too, {weights}",
        }
        return ModelError(f"{self.name} gives NaN or infinite logits in {dtype}", hint.get(dtype, weights))

    @contextmanager
    def _memory_errors(self, requests: Sequence[Request]) -> Iterator[None]:
        """Turn running out of memory into an `OutOfMemoryError`, with the device's memory given back."""
        try:
            yield
        except (RuntimeError, MemoryError, OSError) as error:
            if not memory.is_out_of_memory(error):
                raise
        else:
            return
        # Outside the handler: the error refers to the frames, and so to the tensors, of what failed.
        memory.give_back(self._device)
        checkpoint, placement = self._loaded.checkpoint, self._loaded.placement
        can_quantize = placement.quantize != "4bit" and self._device.type != "mps"
        hint = memory.what_fits(self._device, checkpoint, placement.dtype, requests, can_quantize=can_quantize)
        raise OutOfMemoryError(f"out of memory on {self._device}", hint)


def _batches(requests: Sequence[Request]) -> list[list[int]]:
    """Return the numbers of the requests that are answered together: greedy ones alike but for their longest answer."""
    batches: dict[object, list[int]] = {}
    for number, request in enumerate(requests):
        generation = request.generation
        is_sampled = generation.temperature > 0  # a sampled answer would depend on its batch
        key = number if is_sampled else replace(generation, max_new_tokens=1, seed=None)
        batches.setdefault(key, []).append(number)
    return list(batches.values())
