"""A loaded video model that answers requests: prompts to tokens to text, whatever its family."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

from ..checkpoint import revision_of
from ..checkpoint.families import family_of, is_generic
from ..conversation import Answer, Chunk, Request, Turn
from ..errors import ModelError, OutOfMemoryError
from ..model import Event, Loading, answers, streamed
from ..prompt.budget import Budget
from ..prompt.chat_template import answer_opening
from ..prompt.continuation import Choices
from ..prompt.thinking import Thoughts
from ..video.fit import FrameResize
from . import device_memory as memory
from .constraints import Grammars, Vocabulary
from .cuda_graph import Capture
from .decode_step import Decoder, InputSource
from .detokenizer import Detokenizer, stop_ids
from .engine import Engine
from .families.generic import ProcessorPrompts
from .families.llava_next_video import LlavaPrompts
from .loader import Loaded, load
from .placement import reasons
from .prefix_cache import Prompt
from .row import NotFiniteError, Row
from .sampler import Sampler
from .tokenizer import Tokenizer


class Prompts(Protocol):
    """From requests to prompts, as a family has it."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The checkpoint's tokenizer and chat template."""

    @property
    def hidden_ids(self) -> frozenset[int]:
        """The special tokens that are no part of an answer's text, beside those that end it."""

    @property
    def settings(self) -> dict[str, Any]:
        """What of the settings only this family has."""

    @property
    def reuses(self) -> bool:
        """Whether keys and values of a prompt's beginning serve the next prompt."""

    @property
    def shrink(self) -> FrameResize:
        """See `Model`."""

    @property
    def source(self) -> InputSource:
        """Where the engine gets what is computed of prompts."""

    def render(self, turns: Sequence[Turn]) -> str:
        """Return the text of a conversation, with the start of the next answer."""

    def budget(self, request: Request) -> Budget:
        """Return what a request takes of the context, whether it fits or not; nothing is encoded."""

    def prompt(self, request: Request) -> tuple[Prompt, Choices | None]:
        """Return a request's prompt and choices, checked against the context before anything is encoded."""


class VideoModel:
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
        config = loaded.model.config.to_dict()
        self.name, self.family, self.notes = name, family_of(config), loaded.notes
        self._loaded, self._revision, self._model = loaded, revision, loaded.model
        kind = ProcessorPrompts if is_generic(config) else LlavaPrompts
        self.prompts: Prompts = kind(name, loaded, prefix_reuse)
        self._stop_ids = stop_ids(self._model.generation_config, self._model.config, self.prompts.tokenizer.own)
        hidden = self.prompts.hidden_ids | {*self._stop_ids}
        self.decode: Callable[[list[int]], str] = partial(self.prompts.tokenizer.decode, hidden=hidden)
        self._device = self._model.get_input_embeddings().weight.device
        self._engine = Engine(
            Decoder(self._model, capture),
            self.prompts.source,
            self._stop_ids,
            loaded.answer_bytes,
            lambda row, error: _told(name, loaded, row.request, error),
            self.prompts.reuses,
            conversations,
        )
        # not at exit: a thread that ends while the interpreter does can abort the process
        weakref.finalize(self, self._engine.close).atexit = False

    @classmethod
    def open(cls, name: str, folder: Path, loading: Loading) -> VideoModel:
        """Load a checkpoint's folder; raises `ModelError` or `UsageError`."""
        loaded, revision = load(folder, loading, name), revision_of(folder)
        return cls(name, loaded, revision, loading.prefix_reuse, conversations=loading.conversations)

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
            **self.prompts.settings,
        }

    @property
    def cached_bytes(self) -> int:
        """The size of the KV cache, which stays allocated for later requests."""
        return self._engine.cached_bytes

    @property
    def at_a_time(self) -> int:
        """How many requests keep it busy: those that are answered together, and a third as many that wait.

        All of them are finished when a run is stopped.
        """
        return 4 * self._engine.most_rows // 3

    @property
    def shrink(self) -> FrameResize:
        """Makes frames as large as the model gets them, so that they take less memory."""
        return self.prompts.shrink

    def budget(self, request: Request) -> Budget:
        """Return what a request takes of the context, whether it fits or not; nothing is encoded."""
        return self.prompts.budget(request)

    def submit(self, request: Request, deliver: Callable[[Event], None], in_pieces: bool = True) -> Callable[[], None]:
        """Answer a request in the background; see `Model`.

        The error is a `ContextError` if the prompt and the longest answer don't fit the context, a `ModelError` if the
        memory does not suffice for this request alone, or if the logits are not finite.
        """
        return self._submit(request, deliver, in_pieces).cancel

    def _submit(self, request: Request, deliver: Callable[[Event], None], in_pieces: bool) -> Row:
        thoughts, byte_ids = Thoughts(are_shown=request.generation.show_thinking), self.prompts.tokenizer.byte_ids
        text = Detokenizer(self.decode, request.stop, thoughts=thoughts, byte_ids=byte_ids)
        row = Row(request, self._prepare, text, deliver, in_pieces, self.prompts.tokenizer.describe)
        try:
            self._engine.submit(row)
        except RuntimeError as error:
            if not memory.is_out_of_memory(error):
                raise
            row.has_left.set()
            deliver(_told(self.name, self._loaded, request, error))
        return row

    def _prepare(self, row: Row) -> None:
        """Set what the engine needs of a request; in a thread of its own."""
        row.prompt, row.choices = self.prompts.prompt(row.request)
        generation, config, ids = row.request.generation, self._model.generation_config, row.prompt.ids
        constraint = None
        if generation.is_constrained:
            constraint = self._grammars.constraint(generation)
            row.text = Detokenizer(self._grammars.decode, row.request.stop, len(self._grammars.opening))
        row.text.begin(generation.prefill.strip(), ids)
        row.text.thoughts.is_thinking = row.prompt.opens_thought
        row.sampler = Sampler(generation, config, self._stop_ids, ids, self._device, constraint, row.request.logprobs)
        row.prompt_tokens = len(ids)

    @cached_property
    def _grammars(self) -> Grammars:
        vocabulary = self._loaded.vocabulary or Vocabulary(self.prompts.tokenizer.tokens, self._stop_ids)
        return Grammars(vocabulary, answer_opening(self.prompts.render))

    def stream(self, request: Request) -> Iterator[Chunk]:
        """Yield the answer in whole words as it is generated; closing the iterator stops the generation.

        Raises what `submit` delivers.
        """
        return streamed(lambda *asked: self._submit(*asked).leave, request)

    def answer_all(self, requests: Sequence[Request]) -> list[Answer]:
        """Return the answers in the requests' order; raises what `submit` delivers for any of them."""
        return answers(self.submit, requests)


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
