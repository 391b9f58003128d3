"""LLaVA-NeXT-Video through transformers: prompts to features to tokens to text."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from transformers import DynamicCache

from ..conversation import Answer, Budget, Chunk, Generation, Request, Usage, join
from ..errors import ContextError, ModelError, OutOfMemoryError
from ..image import Picture
from . import memory
from .generation import Rows, Run, finish_reason, generation_config, prefill, stop_ids, until_end
from .loading import Loaded, Loading, load
from .pieces import TextPieces
from .prefix import Prefix, Prompt, Span, heads
from .prompt import IMAGE, VIDEO, render
from .source import revision_of
from .vision import Vision

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


# Requests of a batch where memory is not what bounds it: on a CPU more don't pay, and their prefill takes memory.
_MOST_TOGETHER = {"cpu": 32}
_MOST_TOGETHER_ELSEWHERE = 256


class LlavaVideo:
    """A loaded checkpoint that answers requests, one at a time or as a batch."""

    def __init__(self, name: str, loaded: Loaded, revision: str | None = None, prefix_reuse: bool = True) -> None:
        self.name = name
        self._loaded, self._revision = loaded, revision
        self._model, self._tokenizer = loaded.model, loaded.processor.tokenizer
        self._vision = Vision(loaded)
        self._stop_ids = stop_ids(self._model, self._tokenizer)
        self._device = self._model.get_input_embeddings().weight.device
        self._busy = threading.Lock()
        self._prefix, self._prefix_reuse = Prefix(), prefix_reuse

    @classmethod
    def open(cls, name: str, folder: Path, loading: Loading) -> LlavaVideo:
        """Load a checkpoint's folder; raises `ModelError` or `UsageError`."""
        return cls(name, load(folder, loading), revision_of(folder), loading.prefix_reuse)

    @property
    def settings(self) -> dict[str, Any]:
        """What was decided while loading."""
        loaded = self._loaded
        return {
            "model": self.name,
            "revision": self._revision,
            "device": loaded.device,
            "dtype": loaded.dtype,
            "quantize": loaded.quantize,
            "attention": loaded.attention,
            "rope_factor": loaded.checkpoint.rope_factor,
            "pool_stride": loaded.checkpoint.pool_stride,
            "pool_mode": loaded.checkpoint.pool_mode,
        }

    def stream(self, request: Request) -> Iterator[Chunk]:
        """Yield the answer in whole words as it is generated; closing the iterator stops the generation.

        Raises `ContextError` if the prompt and the longest answer don't fit the context, `ModelError` if the
        memory doesn't suffice.
        """
        return self._stream(request)

    def _stream(self, request: Request, same_media: bool = False) -> Iterator[Chunk]:
        """Do so; with `same_media`, the last prompt serves only if all media are the same."""
        started = time.perf_counter()
        with self._busy, self._run_errors():
            memory.reset_peak(self._device)
            prompt = self._prompt(request)
            cache, cached = self._prefix.take(prompt, self._model.config, prompt.media_end if same_media else 1)
            rows = self._rows([prompt], cache, cached)
            pieces = TextPieces(self._decode)
            run = self._run(rows, request.generation)
            try:
                with run:
                    for token in run:
                        if text := pieces.push([token]):
                            yield Chunk(text)
            finally:
                if run.is_over and self._prefix_reuse:
                    self._prefix.keep(prompt, run.new_ids, cache)
            ids = run.new_ids
            usage = self._usage(prompt, cached, ids, started, run.first_token_at)
            last = Chunk(pieces.finish(), finish_reason(ids, self._stop_ids), usage)
        yield last  # behind the lock: a reader that stops here must not keep others out

    def answer_all(self, requests: Sequence[Request]) -> list[Answer]:
        """Return the answers in the requests' order; greedy ones with the same settings share a batch."""
        answers: dict[int, Answer] = {}
        groups: dict[Generation, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(request.generation, []).append(index)
        for generation, indices in groups.items():
            if generation.temperature > 0 or len(indices) == 1:  # a sampled answer would depend on its batch
                # what it costs should not hang on which video came before, or on how many fit a batch
                answers |= {index: join(self._stream(requests[index], same_media=True)) for index in indices}
            else:
                batch = self._answer_batch([requests[index] for index in indices], generation)
                answers |= dict(zip(indices, batch, strict=True))
        return [answers[index] for index in range(len(requests))]

    def budget(self, request: Request) -> Budget:
        """Return what a request takes of the context, whether it fits or not; nothing is encoded."""
        media = tuple(self._vision.token_count(medium) for medium in request.media)
        tokens = len(self._tokenized(request, media))
        return Budget(tokens, request.generation.max_new_tokens, self._loaded.checkpoint.context_tokens, media)

    def fits(self, request: Request) -> int:
        """Return how many such requests fit the memory together, by the config's arithmetic."""
        tokens = len(self._prompt(request).ids) + request.generation.max_new_tokens
        free = memory.free_bytes(self._device)
        most = _MOST_TOGETHER.get(self._device.type, _MOST_TOGETHER_ELSEWHERE)
        return max(1, int(min(free / memory.answer_bytes(self._model, tokens), most)))

    def shrink(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return a frame at the vision tower's size, uint8 (side, side, 3), made as the processor makes it."""
        return self._vision.shrink(image)

    def _answer_batch(self, requests: Sequence[Request], generation: Generation) -> list[Answer]:
        started = time.perf_counter()
        with self._busy, self._run_errors():
            memory.reset_peak(self._device)
            self._prefix.drop()
            prompts = [self._prompt(request) for request in requests]
            rows, cached = self._batch(prompts)
            run = self._run(rows, generation)
            answers = [until_end(row, self._stop_ids) for row in run.whole()]
            return [
                Answer(
                    self._decode(ids).strip(),
                    finish_reason(ids, self._stop_ids),
                    self._usage(prompt, count, ids, started, run.first_token_at),
                )
                for prompt, count, ids in zip(prompts, cached, answers, strict=True)
            ]

    def _run(self, rows: Rows, generation: Generation) -> Run:
        config = generation_config(self._model, generation, self._stop_ids, self._tokenizer.pad_token_id)
        return Run(self._model, rows, config, generation.seed)

    def _batch(self, prompts: Sequence[Prompt]) -> tuple[Rows, list[int]]:
        """Return the rows of a batch, and how many tokens of each prompt are computed for another one.

        What several prompts begin with, up to their last medium, is computed once.
        """
        first = heads(prompts)
        shared = sorted(set(first))
        if not self._prefix_reuse or len(shared) == len(prompts) or not all(prompt.media_end for prompt in prompts):
            return self._rows(prompts, DynamicCache(config=self._model.config)), [0] * len(prompts)
        beginnings = [Prompt(prompts[n].ids[: prompts[n].media_end], prompts[n].spans) for n in shared]
        beginning = self._rows(beginnings, DynamicCache(config=self._model.config))
        prefill(self._model, beginning)
        places = torch.tensor([shared.index(n) for n in first], device=self._device)
        beginning.cache.batch_select_indices(places)
        ends = self._rows([Prompt(prompt.ids[prompt.media_end :]) for prompt in prompts], beginning.cache)
        ids = torch.cat([beginning.ids[places], ends.ids], dim=1)
        mask = torch.cat([beginning.mask[places], ends.mask], dim=1)
        cached = [0 if n == number else prompts[n].media_end for number, n in enumerate(first)]
        return Rows(ids, mask, ends.embeddings, beginning.cache), cached

    @torch.inference_mode()
    def _rows(self, prompts: Sequence[Prompt], cache: Any, cached: int = 0) -> Rows:
        """Return prompts padded on the left, with the features of their media in their places.

        The cache holds the first `cached` tokens of each prompt: nothing of them is encoded.
        """
        spans = [[span for span in prompt.spans if span.stop > cached] for prompt in prompts]
        features = iter(self._vision.encode(span.medium for row in spans for span in row))
        longest = max(len(prompt.ids) for prompt in prompts)
        ids = torch.full((len(prompts), longest), self._tokenizer.pad_token_id, device=self._device)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            here = slice(longest - len(prompt.ids), None)
            ids[row, here], mask[row, here] = torch.tensor(prompt.ids, device=self._device), 1
        embeddings = self._model.get_input_embeddings()(ids[:, cached:])
        for row, prompt in enumerate(prompts):
            shift = longest - len(prompt.ids) - cached
            for span in spans[row]:
                begin = max(span.start, cached)
                embeddings[row, begin + shift : span.stop + shift] = next(features)[begin - span.start :].to(embeddings)
        return Rows(ids, mask, embeddings, cache)

    def _prompt(self, request: Request) -> Prompt:
        """Return a request's prompt, checked against the context before anything is encoded."""
        counts = [self._vision.token_count(medium) for medium in request.media]
        ids = self._tokenized(request, counts)
        self._check_context(len(ids), request)
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

    def _check_context(self, prompt_tokens: int, request: Request) -> None:
        context, answer = self._loaded.checkpoint.context_tokens, request.generation.max_new_tokens
        over = prompt_tokens + answer - context
        if over <= 0:
            return
        videos = [medium for medium in request.media if not isinstance(medium, Picture)]
        frames = sum(len(video.images) for video in videos)
        fit = frames - -(-over // self._loaded.checkpoint.frame_tokens)
        hint = "ask a shorter question, or allow a shorter answer with --max-new-tokens"
        if fit >= len(videos) > 0:
            hint = f"--frames {fit // len(videos)} fits with this question, or a shorter answer with --max-new-tokens"
        raise ContextError(
            f"the prompt takes {prompt_tokens:,} tokens ({frames} frames) and the answer up to {answer:,}, "
            f"but the context of {self.name} is {context:,}",
            hint,
        )

    def _chat_template(self, messages: list[dict[str, Any]]) -> str:
        text: str = self._loaded.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        return text

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(ids, skip_special_tokens=True)
        return text

    def _usage(self, prompt: Prompt, cached: int, ids: Sequence[int], started: float, first_token_at: float) -> Usage:
        return Usage(
            prompt_tokens=len(prompt.ids),
            cached_tokens=cached,
            generated_tokens=len(ids),
            first_token_seconds=first_token_at - started,
            total_seconds=time.perf_counter() - started,
            peak_memory_bytes=memory.peak_bytes(self._device),
        )

    @contextmanager
    def _run_errors(self) -> Iterator[None]:
        """Turn running out of memory into an `OutOfMemoryError`, with the device's memory given back."""
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not memory.is_out_of_memory(error):
                raise
        else:
            return
        # Outside the handler: the error holds the frames, and so the tensors, of what failed.
        memory.give_back(self._device)
        raise OutOfMemoryError(
            f"out of memory on {self._device}", "fewer --frames, a smaller --max-new-tokens, or --quantize 4bit"
        )
