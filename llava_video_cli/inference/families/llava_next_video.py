"""LLaVA-NeXT-Video through transformers: prompts to features to tokens to text."""

from __future__ import annotations

import re
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from ...checkpoint import revision_of
from ...checkpoint.families import family_of
from ...checkpoint.files import tokenizer_errors
from ...conversation import Answer, Chunk, Request, Turn
from ...errors import ModelError, OutOfMemoryError
from ...model import Event, Loading, answers, streamed
from ...prompt.budget import Budget, too_long
from ...prompt.chat_template import IMAGE, VIDEO, answer_opening, chat_template, render
from ...prompt.continuation import Choices, answer_tokens, beginnings, read_choices
from ...prompt.thinking import Thoughts
from ...video.fit import FrameResize
from .. import device_memory as memory
from ..constraints import Grammars, Vocabulary
from ..cuda_graph import Capture
from ..decode_step import Decoder, InputSource
from ..detokenizer import Detokenizer, hidden_ids, stop_ids, token_bytes
from ..engine import Engine
from ..loader import Loaded, load
from ..placement import reasons
from ..prefix_cache import Prompt, Span
from ..row import NotFiniteError, Row
from ..sampler import Sampler
from ..vision import Vision

_LEAVE_SECONDS = 2.0  # how long a reader that leaves waits for the step under way; a prefill on a CPU may take minutes


class LlavaVideo:
    """A loaded checkpoint that answers requests: those of all threads run together.

    `conversations` is how many alternate, each with a KV cache of its own; `capture` is how a decode step is captured,
    see `Decoder`.
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
        self.name, self.family = name, family_of(loaded.model.config.to_dict())
        self._loaded, self._revision = loaded, revision
        self._model, self.tokenizer = loaded.model, loaded.processor.tokenizer
        self._tokenizer_lock = threading.Lock()  # it is changed while it is used
        self._stop_ids = stop_ids(self._model.generation_config, self._model.config, self.tokenizer)
        source = loaded.processor.chat_template or self.tokenizer.chat_template
        source = source.get("default") if isinstance(source, dict) else source
        self._template = chat_template(name, source or "", self.tokenizer.special_tokens_map)
        self.decode = _decoding(self.tokenizer, self._hidden_ids())
        self._device = self._model.get_input_embeddings().weight.device
        self._engine = Engine(
            Decoder(self._model, capture),
            self._source(),
            self._stop_ids,
            loaded.answer_bytes,
            lambda row, error: _told(name, loaded, row.request, error),
            prefix_reuse,
            conversations,
        )
        # not at exit: a thread that ends while the interpreter does can abort the process
        weakref.finalize(self, self._engine.close).atexit = False

    def _hidden_ids(self) -> frozenset[int]:
        """Return the tokens that are no part of an answer's text."""
        return hidden_ids(self.tokenizer, self._loaded.checkpoint, self._stop_ids)

    def _source(self) -> InputSource:
        """Return where the engine gets what is computed of prompts."""
        self._vision = Vision(self._loaded)
        return self._vision

    @classmethod
    def open(cls, name: str, folder: Path, loading: Loading) -> LlavaVideo:
        """Load a checkpoint's folder; raises `ModelError` or `UsageError`."""
        loaded, revision = load(folder, loading, name), revision_of(folder)
        return cls(name, loaded, revision, loading.prefix_reuse, conversations=loading.conversations)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know about how it was loaded."""
        return self._loaded.notes

    @property
    def reasons(self) -> dict[str, str]:
        """Why `auto` came to some of the settings."""
        loaded = self._loaded
        return reasons(loaded.placement, loaded.attention, loaded.checkpoint.parameters.total)

    @property
    def settings(self) -> dict[str, Any]:
        """What was decided while loading."""
        loaded = self._loaded
        return {
            "model": self.name,
            "family": self.family.name,
            "revision": self._revision,
            **({"adapter": loaded.adapter.name} if loaded.adapter else {}),
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
        """The size of the KV cache, which stays allocated for later requests."""
        return self._engine.cached_bytes

    @property
    def at_a_time(self) -> int:
        """How many requests keep it busy: those that are answered together, and as many that wait."""
        return 2 * self._engine.most_rows

    def submit(self, request: Request, deliver: Callable[[Event], None], in_pieces: bool = True) -> Callable[[], None]:
        """Answer a request in the background; see `Model`.

        The error is a `ContextError` if the prompt and the longest answer don't fit the context, a `ModelError` if the
        memory does not suffice for this request alone, or if the logits are not finite.
        """
        return self._submit(request, deliver, in_pieces).cancel

    def _submit(self, request: Request, deliver: Callable[[Event], None], in_pieces: bool) -> Row:
        row = Row(request, self._prepare, self._detokenizer(request), deliver, in_pieces, self._describe)
        try:
            self._engine.submit(row)
        except RuntimeError as error:
            if not memory.is_out_of_memory(error):
                raise
            row.has_left.set()
            deliver(_told(self.name, self._loaded, request, error))
        return row

    def _detokenizer(self, request: Request) -> Detokenizer:
        thoughts = Thoughts(are_shown=request.generation.show_thinking)
        return Detokenizer(self.decode, request.stop, thoughts=thoughts)

    def _prepare(self, row: Row) -> None:
        """Set what the engine needs of a request; in a thread of its own."""
        row.prompt, row.choices = self._prompt(row.request)
        generation, config, ids = row.request.generation, self._model.generation_config, row.prompt.ids
        constraint = None
        if generation.is_constrained:
            constraint = self._grammars.constraint(generation)
            row.text = Detokenizer(self._grammars.decode, row.request.stop, len(self._grammars.opening))
        row.text.begin(generation.prefill.strip(), ids)
        row.sampler = Sampler(generation, config, self._stop_ids, ids, self._device, constraint, row.request.logprobs)
        row.prompt_tokens = len(ids)

    @cached_property
    def _tokens(self) -> Sequence[bytes]:
        if self._loaded.vocabulary is not None:
            return self._loaded.vocabulary.tokens
        with self._tokenizer_lock:
            return token_bytes(self.tokenizer, self._model.config.get_text_config().vocab_size)

    @cached_property
    def _grammars(self) -> Grammars:
        vocabulary = self._loaded.vocabulary or Vocabulary(self._tokens, self._stop_ids)
        return Grammars(vocabulary, answer_opening(self._rendered))

    def _describe(self, number: int) -> tuple[str, bytes]:
        """Return the text of a token, or the name of a special one, and its bytes."""
        if content := self._tokens[number]:
            return content.decode("utf-8", "replace"), content
        with self._tokenizer_lock:
            return self.tokenizer.convert_ids_to_tokens(number) or "", b""

    def stream(self, request: Request) -> Iterator[Chunk]:
        """Yield the answer in whole words as it is generated; closing the iterator stops the generation.

        Raises what `submit` delivers.
        """

        def submit(request: Request, deliver: Callable[[Event], None], in_pieces: bool) -> Callable[[], None]:
            row = self._submit(request, deliver, in_pieces)

            def leave() -> None:
                row.cancel()
                row.has_left.wait(_LEAVE_SECONDS)  # the device should be free when the iterator has ended

            return leave

        return streamed(submit, request)

    def answer_all(self, requests: Sequence[Request]) -> list[Answer]:
        """Return the answers in the requests' order; raises what `submit` delivers for any of them."""
        return answers(self.submit, requests)

    def budget(self, request: Request) -> Budget:
        """Return what a request takes of the context, whether it fits or not; nothing is encoded."""
        return self._counted(request)[2]

    def _counted(self, request: Request) -> tuple[list[int], Choices | None, Budget]:
        """Return the ids of a request's prompt, those of its choices, and what it takes of the context."""
        checkpoint = self._loaded.checkpoint
        media = tuple(medium.tokens(checkpoint.rates) for medium in request.media)
        generation = request.generation
        text, wholes = beginnings(self._rendered(request.turns), generation, self.tokenizer.all_special_tokens)
        counts = iter(media)
        ids = self._tokenized(re.sub(f"{IMAGE}|{VIDEO}", lambda mark: mark[0] * next(counts), text))
        base, whole_ids = self._tokenized(text) if wholes else [], list(map(self._tokenized, wholes))
        longest = answer_tokens(generation, base, whole_ids)
        budget = Budget(len(ids), longest, checkpoint.context_tokens, media)
        if not wholes:
            return ids, None, budget
        stays, choices = read_choices(base, whole_ids, generation.choices)
        return ids[: len(ids) + stays - len(base)], choices, budget

    @property
    def shrink(self) -> FrameResize:
        """Makes frames what the vision tower takes, uint8 (side, side, 3), resized as the processor does it."""
        return self._vision.shrink

    def _prompt(self, request: Request) -> tuple[Prompt, Choices | None]:
        """Return a request's prompt and choices, checked against the context before anything is encoded."""
        ids, choices, budget = self._counted(request)
        counts = budget.media_tokens
        if budget.left < 0:
            raise too_long(self.name, self._loaded.checkpoint, budget, request.frame_counts)
        marks = {self._loaded.checkpoint.image_token_id, self._loaded.checkpoint.video_token_id}
        places = [at for at, token in enumerate(ids) if token in marks]
        if len(places) != sum(counts):
            raise ModelError(f"the prompt has {len(places)} placeholders for {sum(counts)} features")
        spans, begin = [], 0
        for medium, count in zip(request.media, counts, strict=True):
            spans.append(Span(places[begin], places[begin + count - 1] + 1, medium))
            begin += count
        return Prompt(ids, tuple(spans)), choices

    def _tokenized(self, text: str) -> list[int]:
        """Return a prompt's ids."""
        tokenizer = self.tokenizer
        # A template may write the opening token itself; the tokenizer must not write it again.
        has_opening = tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)
        with self._tokenizer_lock, tokenizer_errors(self.name):
            ids: list[int] = tokenizer(text, add_special_tokens=not has_opening)["input_ids"]
        return ids

    def _rendered(self, turns: Sequence[Turn]) -> str:
        tokenizer, form = self.tokenizer, self._loaded.checkpoint.prompt_format
        return render(turns, self._template, form, tokenizer.all_special_tokens, tokenizer.eos_token)


def _decoding(tokenizer: Any, hidden: frozenset[int]) -> Callable[[list[int]], str]:
    def decode(ids: list[int]) -> str:
        text: str = tokenizer.decode([token for token in ids if token not in hidden], skip_special_tokens=False)
        return text

    return decode


def _told(name: str, loaded: Loaded, request: Request, error: Exception) -> Exception:
    """Return what a request's sender is told of an error that ended it."""
    checkpoint, placement = loaded.checkpoint, loaded.placement
    if isinstance(error, NotFiniteError):
        weights = "the weights are damaged: download them again, or use an earlier checkpoint of the training"
        hints = {
            "float16": "try `--dtype bfloat16` or `--dtype float32`: float16 ends at 65,504",
            "bfloat16": f"try `--dtype float32`; if that fails too, {weights}",
        }
        message = f"{name} gives NaN or infinite logits in {placement.dtype}"
        return ModelError(message, hints.get(placement.dtype, weights))
    if not memory.is_out_of_memory(error):
        return error
    device = loaded.model.get_input_embeddings().weight.device
    can_quantize = placement.quantize != "4bit" and device.type != "mps"
    hint = memory.what_fits(device, checkpoint, placement.dtype, [request], can_quantize=can_quantize)
    return OutOfMemoryError(f"out of memory on {device}", hint)
