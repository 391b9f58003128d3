"""LLaVA-NeXT-Video through transformers: prompts to features to tokens to text."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..conversation import Answer, Budget, Chunk, Generation, Request, Usage, join
from ..errors import ContextError, ModelError, OutOfMemoryError
from ..image import Picture
from . import memory
from .generation import Run, finish_reason, generation_config, stop_ids, until_end
from .loading import Loaded, Loading, load
from .pieces import TextPieces
from .prompt import IMAGE, VIDEO, render
from .source import revision_of
from .vision import Vision

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


_MOST_TOGETHER = 256  # requests of a batch: memory is not what bounds it any more


@dataclass(frozen=True)
class _Prompt:
    """A prompt ready to run: ids int64 (1, tokens), embeddings (1, tokens, hidden)."""

    ids: torch.Tensor
    embeddings: torch.Tensor

    @property
    def tokens(self) -> int:
        return self.ids.shape[1]


class LlavaVideo:
    """A loaded checkpoint that answers requests, one at a time or as a batch."""

    def __init__(self, name: str, loaded: Loaded, revision: str | None = None) -> None:
        self.name = name
        self._loaded, self._revision = loaded, revision
        self._model, self._tokenizer = loaded.model, loaded.processor.tokenizer
        self._vision = Vision(loaded)
        self._stop_ids = stop_ids(self._model, self._tokenizer)
        self._device = self._model.get_input_embeddings().weight.device
        self._busy = threading.Lock()

    @classmethod
    def open(cls, name: str, folder: Path, loading: Loading) -> LlavaVideo:
        """Load a checkpoint's folder; raises `ModelError` or `UsageError`."""
        return cls(name, load(folder, loading), revision_of(folder))

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
        }

    def stream(self, request: Request) -> Iterator[Chunk]:
        """Yield the answer in whole words as it is generated; closing the iterator stops the generation.

        Raises `ContextError` if the prompt and the longest answer don't fit the context, `ModelError` if the
        memory doesn't suffice.
        """
        started = time.perf_counter()
        with self._busy, self._run_errors():
            memory.reset_peak(self._device)
            (ready,) = self._prepare([request])
            pieces, ids = TextPieces(self._decode), list[int]()
            with self._run(ready.ids, ready.embeddings, request.generation) as run:
                for token in run:
                    ids.append(token)
                    if text := pieces.push([token]):
                        yield Chunk(text)
            usage = self._usage(ready, ids, started, run.first_token_at)
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
                answers |= {index: join(self.stream(requests[index])) for index in indices}
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
        tokens = self._ids(request).shape[1] + request.generation.max_new_tokens
        free = memory.free_bytes(self._device)
        return max(1, int(min(free / memory.answer_bytes(self._model, tokens), _MOST_TOGETHER)))

    def shrink(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return a frame at the vision tower's size, uint8 (side, side, 3), made as the processor makes it."""
        return self._vision.shrink(image)

    def _answer_batch(self, requests: Sequence[Request], generation: Generation) -> list[Answer]:
        started = time.perf_counter()
        with self._busy, self._run_errors():
            memory.reset_peak(self._device)
            prompts = self._prepare(requests)
            ids, embeddings, mask = self._pad_left(prompts)
            run = self._run(ids, embeddings, generation, mask)
            rows = [until_end(row, self._stop_ids) for row in run.whole()]
            return [
                Answer(
                    self._decode(row).strip(),
                    finish_reason(row, self._stop_ids),
                    self._usage(ready, row, started, run.first_token_at),
                )
                for ready, row in zip(prompts, rows, strict=True)
            ]

    def _run(
        self, ids: torch.Tensor, embeddings: torch.Tensor, generation: Generation, mask: torch.Tensor | None = None
    ) -> Run:
        config = generation_config(self._model, generation, self._stop_ids, self._tokenizer.pad_token_id)
        return Run(self._model, ids, embeddings, config, generation.seed, mask)

    def _pad_left(self, prompts: Sequence[_Prompt]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return ids (batch, longest), embeddings (batch, longest, hidden) and mask (batch, longest)."""
        longest = max(ready.tokens for ready in prompts)
        first = prompts[0]
        ids = first.ids.new_full((len(prompts), longest), self._tokenizer.pad_token_id)
        embeddings = first.embeddings.new_zeros((len(prompts), longest, first.embeddings.shape[-1]))
        mask = torch.zeros_like(ids)
        for row, ready in enumerate(prompts):
            here = slice(longest - ready.tokens, None)
            ids[row, here], embeddings[row, here], mask[row, here] = ready.ids[0], ready.embeddings[0], 1
        return ids, embeddings, mask

    @torch.inference_mode()
    def _prepare(self, requests: Sequence[Request]) -> list[_Prompt]:
        """Return the requests' prompts, with the features of their media in their places; all ids are checked first."""
        ids = [self._ids(request) for request in requests]
        features = iter(self._vision.encode(medium for request in requests for medium in request.media))
        return [
            self._with_features(row, [next(features) for _ in request.media])
            for row, request in zip(ids, requests, strict=True)
        ]

    def _with_features(self, ids: torch.Tensor, features: list[torch.Tensor]) -> _Prompt:
        embeddings = self._model.get_input_embeddings()(ids)
        if features:
            together = torch.cat(features)
            places = (ids == self._loaded.checkpoint.image_token_id) | (ids == self._loaded.checkpoint.video_token_id)
            if int(places.sum()) != len(together):
                raise ModelError(f"the prompt holds {int(places.sum())} places for {len(together)} features")
            embeddings[places] = together.to(embeddings)
        return _Prompt(ids, embeddings)

    def _ids(self, request: Request) -> torch.Tensor:
        """Return the prompt's ids, int64 (1, tokens), checked against the context before anything is encoded."""
        ids = self._tokenized(request, [self._vision.token_count(medium) for medium in request.media])
        self._check_context(len(ids), request)
        return torch.tensor([ids], device=self._device)

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

    def _usage(self, ready: _Prompt, ids: Sequence[int], started: float, first_token_at: float) -> Usage:
        return Usage(
            prompt_tokens=ready.tokens,
            cached_tokens=0,
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
