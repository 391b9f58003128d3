"""LLaVA-NeXT-Video through transformers: prompts to features to tokens to text."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ...checkpoint import revision_of
from ...conversation import Answer, Chunk, Request, Usage, join
from ...errors import ModelError, OutOfMemoryError
from ...model import Loading
from ...prompt.budget import Budget, refusal
from ...prompt.chat_template import IMAGE, VIDEO, render
from .. import device_memory as memory
from ..cuda_graph import Capture
from ..decoder import Decoder
from ..engine import Run, stop_ids
from ..loader import Loaded, load
from ..prefix_cache import Prompt, Span
from ..prompt_batch import Assembly
from ..sampler import Choice
from ..stop_strings import StoppedPieces
from ..vision import Vision

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


# Requests of a batch where memory is not what bounds it: on a CPU more don't pay, and their prefill takes memory.
_MOST_TOGETHER = {"cpu": 32}
_MOST_TOGETHER_ELSEWHERE = 256


class LlavaVideo:
    """A loaded checkpoint that answers requests, one at a time or as a batch."""

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
        self._vision = Vision(loaded)
        self._stop_ids = stop_ids(self._model, self._tokenizer)
        self._device = self._model.get_input_embeddings().weight.device
        self._busy = threading.Lock()
        self._decoder = Decoder(self._model, capture)
        self._assembly = self._assembled(conversations)

    @classmethod
    def open(cls, name: str, folder: Path, loading: Loading) -> LlavaVideo:
        """Load a checkpoint's folder; raises `ModelError` or `UsageError`."""
        loaded, revision = load(folder, loading, name), revision_of(folder)
        return cls(name, loaded, revision, loading.prefix_reuse, conversations=loading.conversations)

    def beside(self) -> LlavaVideo:
        """Return another one of the same weights, which answers at the same time: they take turns, step by step."""
        twin = copy(self)
        twin._alone_from(self._decoder)  # noqa: SLF001 - it is one of its own kind
        return twin

    def _alone_from(self, decoder: Decoder) -> None:
        """Have what only one thread at a time may use for itself."""
        self._busy, self._decoder = threading.Lock(), decoder.beside()
        self._assembly = self._assembled(1)

    def _assembled(self, conversations: int) -> Assembly:
        pad_id = self._tokenizer.pad_token_id
        return Assembly(
            self._decoder, self._vision, pad_id, self._loaded.answer_bytes, self._prefix_reuse, conversations
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
    def held_bytes(self) -> int:
        """What the caches take that are held for later prompts."""
        return self._assembly.held_bytes

    def stream(self, request: Request) -> Iterator[Chunk]:
        """Yield the answer in whole words as it is generated; closing the iterator stops the generation.

        Raises `ContextError` if the prompt and the longest answer don't fit the context, `ModelError` if the
        memory doesn't suffice.
        """
        return self._stream(request)

    def _stream(self, request: Request, same_media: bool = False) -> Iterator[Chunk]:
        with closing(self._generate([request], same_media=same_media)) as pieces:
            for _, chunk in pieces:
                yield chunk

    def stream_all(
        self, requests: Sequence[Request], gone: Callable[[int], bool] | None = None
    ) -> Iterator[tuple[int, Chunk]]:
        """Yield pieces of all answers, each with its request's number, as they are generated.

        Greedy requests with the same settings share a batch, but for their `max_new_tokens`. Each answer's last chunk
        comes at its own end. An answer that is `gone`, looked at before each token in another thread, is given up
        without a last chunk. Closing the iterator stops the generation. Raises as `stream` does, and
        `OutOfMemoryError` if fewer requests may be answered.
        """
        return self._stream_all(requests, gone, in_pieces=True)

    def answer_all(self, requests: Sequence[Request]) -> list[Answer]:
        """Return the answers in the requests' order; greedy ones with the same settings share a batch."""
        chunks: list[list[Chunk]] = [[] for _ in requests]
        for number, chunk in self._stream_all(requests, None, in_pieces=False):
            chunks[number].append(chunk)
        return [join(one) for one in chunks]

    def _stream_all(
        self, requests: Sequence[Request], gone: Callable[[int], bool] | None, in_pieces: bool
    ) -> Iterator[tuple[int, Chunk]]:
        for numbers in _batches(requests):
            mine = [requests[number] for number in numbers]
            is_gone = None if gone is None else _renumbered(gone, numbers)
            # what an answer costs should not hang on which video came before, or on how many fit a batch
            with closing(self._generate(mine, same_media=True, gone=is_gone, in_pieces=in_pieces)) as pieces:
                for row, chunk in pieces:
                    yield numbers[row], chunk

    def _generate(
        self,
        requests: Sequence[Request],
        same_media: bool = False,
        gone: Callable[[int], bool] | None = None,
        in_pieces: bool = True,
    ) -> Generator[tuple[int, Chunk]]:
        """Yield the pieces of answers that are generated together, each with its row, or each answer as one piece.

        With `same_media`, the last prompt serves a single request only if all media are the same.
        """
        started = time.perf_counter()
        last: tuple[int, Chunk] | None = None
        with self._busy, self._run_errors(requests):
            memory.reset_peak(self._device)
            limits = [request.generation.max_new_tokens for request in requests]
            with self._decoder.turns:
                prompts = [self._prompt(request) for request in requests]
                rows, cached = self._assembly.rows(prompts, max(limits), same_media)
                settings = requests[0].generation, self._model.generation_config, self._stop_ids
                choice = Choice(*settings, rows.ids, rows.mask)
            texts = [StoppedPieces(self._decode, request.stop) for request in requests]
            run = Run(self._decoder, rows, limits, self._stop_ids, choice, _ended_or(gone, texts))
            in_pieces = in_pieces or any(request.stop for request in requests)
            first_at, left, counts = 0.0, len(prompts), [0] * len(prompts)
            try:
                with run:
                    for token in run:
                        first_at = first_at or token.at_seconds
                        pieces = texts[token.row]
                        if pieces.ended:  # it was generated before that was seen
                            continue
                        counts[token.row] += 1
                        text = pieces.push([token.id]) if in_pieces else ""
                        if token.finish_reason is None and not pieces.ended:
                            if text:
                                yield token.row, Chunk(text)
                            continue
                        left -= 1
                        text += pieces.finish() if in_pieces else pieces.push(run.new_ids[token.row]) + pieces.finish()
                        usage = Usage(
                            prompt_tokens=len(prompts[token.row].ids),
                            cached_tokens=cached[token.row],
                            generated_tokens=counts[token.row],
                            first_token_seconds=first_at - started,
                            total_seconds=token.at_seconds - started,
                            peak_memory_bytes=memory.peak_bytes(self._device),
                        )
                        reason = "stop" if pieces.ended else token.finish_reason
                        last = token.row, Chunk(text, reason, usage)
                        if left:
                            yield last
                            last = None
            finally:
                if run.cache is not None:
                    self._assembly.keep(run.cache, prompts, run.new_ids)
        if last:
            yield last  # behind the lock: a reader that stops here must not keep others out

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
        """Return how many such requests fit the memory together, by the config's arithmetic."""
        tokens = len(self._prompt(request).ids) + request.generation.max_new_tokens
        free = memory.free_bytes(self._device) + self.held_bytes  # which a batch gets back
        most = _MOST_TOGETHER.get(self._device.type, _MOST_TOGETHER_ELSEWHERE)
        return max(1, int(min(free / self._loaded.answer_bytes(tokens), most)))

    def shrink(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return a frame at the vision tower's size, uint8 (side, side, 3), made as the processor makes it."""
        return self._vision.shrink(image)

    def _prompt(self, request: Request) -> Prompt:
        """Return a request's prompt, checked against the context before anything is encoded."""
        ids, budget = self._counted(request)
        counts = budget.media_tokens
        if budget.left < 0:
            raise refusal(self.name, self._loaded.checkpoint, budget, request.media)
        marks = {self._loaded.checkpoint.image_token_id, self._loaded.checkpoint.video_token_id}
        places = [at for at, token in enumerate(ids) if token in marks]
        if len(places) != sum(counts):
            raise ModelError(f"the prompt holds {len(places)} places for {sum(counts)} features")
        spans, begin = [], 0
        for medium, count in zip(request.media, counts, strict=True):
            spans.append(Span(places[begin], places[begin + count - 1] + 1, medium))
            begin += count
        return Prompt(ids, tuple(spans))

    def _tokenized(self, request: Request, media_tokens: Iterable[int]) -> list[int]:
        """Return the prompt's ids, with as many places for each medium as it has tokens."""
        tokenizer, family = self._tokenizer, self._loaded.checkpoint.family
        text = render(request.turns, self._chat_template, family, tokenizer.all_special_tokens, tokenizer.eos_token)
        counts = iter(media_tokens)
        text = re.sub(f"{IMAGE}|{VIDEO}", lambda mark: mark[0] * next(counts), text)
        # A template may write the opening token itself; the tokenizer must not write it again.
        opened = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
        ids: list[int] = tokenizer(text, add_special_tokens=not opened)["input_ids"]
        return ids

    def _chat_template(self, messages: list[dict[str, Any]]) -> str:
        text: str = self._loaded.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return text

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text

    @contextmanager
    def _run_errors(self, requests: Sequence[Request]) -> Iterator[None]:
        """Turn running out of memory into an `OutOfMemoryError`, with the device's memory given back."""
        try:
            yield
        except (RuntimeError, MemoryError, OSError) as error:
            if not memory.is_out_of_memory(error):
                raise
        else:
            return
        # Outside the handler: the error holds the frames, and so the tensors, of what failed.
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
        drawn = generation.temperature > 0  # a drawn answer would depend on its batch
        key = number if drawn else replace(generation, max_new_tokens=1, seed=None)
        batches.setdefault(key, []).append(number)
    return list(batches.values())


def _ended_or(gone: Callable[[int], bool] | None, texts: Sequence[StoppedPieces]) -> Callable[[int], bool]:
    """Return whether a row is given up: it is gone, or a text that ends it has come."""
    return lambda row: texts[row].ended or (gone is not None and gone(row))


def _renumbered(gone: Callable[[int], bool], numbers: Sequence[int]) -> Callable[[int], bool]:
    return lambda row: gone(numbers[row])
