"""A request on its way through the engine, from its prompt to its text; and why an answer ends."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field

from ..conversation import Chunk, FinishReason, Media, Request, Scores, TokenLogprob, Usage
from ..model import Event
from ..prompt.continuation import Choices
from .detokenizer import Detokenizer
from .prefix_cache import Prompt
from .sampler import NOT_FINITE, Sampler
from .vision import SentPixels

# An answer ends when it repeats a block of up to 48 tokens, at least 6 times and over at least 64 tokens.
_LEAST_REPEATS, _LEAST_REPEATED_TOKENS, _LONGEST_BLOCK_TOKENS = 6, 64, 48
_CHECK_EVERY_TOKENS = 16
_LEAVE_SECONDS = 2.0  # how long a reader that leaves waits for the step under way; a prefill on a CPU may take minutes


class NotFiniteError(ArithmeticError):
    """The logits of a row hold a NaN or an infinity."""


@dataclass(eq=False)
class Row:
    """A request on its way: it waits, is prefilled, runs in a slot, and has ended. With `choices`, it ends there.

    `prepare` sets its prompt and sampler; it may raise what the sender is to be told. `describe` names a token, and
    gives its bytes. `deliver` is called in another thread: with pieces of the text and a last chunk, or, without
    `in_pieces`, with that alone; or with an error. It has to return at once. `is_cancelled` may be set in any thread.
    """

    request: Request
    prepare: Callable[[Row], None]
    text: Detokenizer
    deliver: Callable[[Event], None]
    in_pieces: bool
    describe: Callable[[int], tuple[str, bytes]]
    began_at: float = field(default_factory=time.perf_counter)  # as all times here
    prompt: Prompt = field(init=False)
    sampler: Sampler = field(init=False)
    prompt_tokens: int = field(init=False)
    sent: Mapping[Media, SentPixels] = field(default_factory=dict)
    choices: Choices | None = None
    logprobs: Callable[[], list[float]] | None = None  # of the choices; waits for the device
    is_cancelled: bool = False
    has_left: threading.Event = field(default_factory=threading.Event)
    ids: list[int] = field(default_factory=list)  # new ones
    sampled: int = 0  # new ones, with those that are still on the device
    in_prompt: int = 0  # new ones that are a part of `prompt`, as the row was put back once
    cached_tokens: int = 0
    joined_at: float = 0.0
    first_at: float = 0.0
    peak_bytes: int = 0
    was_alone: bool = False  # when memory ran out
    is_sound: bool = True  # no NaN is in its slot
    written: int = 0  # tokens that became text
    held_text: str = ""
    held_logprobs: list[TokenLogprob] = field(default_factory=list)

    @property
    def limit(self) -> int:
        """The most new tokens; with choices one, which nobody sees: only its logits count."""
        return 1 if self.choices else self.request.generation.max_new_tokens

    @property
    def room(self) -> int:
        """The tokens of its prompt and of its longest answer."""
        return self.prompt_tokens + self.limit

    @property
    def length(self) -> int:
        """The tokens that its slot holds after the step that is under way."""
        return self.prompt_tokens + self.sampled - 1

    @property
    def reads_each(self) -> bool:
        """Whether each of its tokens is wanted as it comes."""
        return not self.choices and (self.in_pieces or bool(self.request.stop))

    def cancel(self) -> None:
        """End it without a further word; in any thread."""
        self.is_cancelled = True

    def leave(self, seconds: float = _LEAVE_SECONDS) -> None:  # a default, as names of modules are gone at the end
        """End it as a reader that leaves does: the device should be free then."""
        self.cancel()
        self.has_left.wait(seconds)

    def put_back(self) -> None:
        """Let it begin once more, behind the tokens that were read."""
        self.prompt, self.in_prompt = self.prompt.extended(self.ids[self.in_prompt :]), len(self.ids)
        self.sampled = len(self.ids)
        self.sampler.restart(self.ids)

    def take(self, new_id: int, stop_ids: Container[int]) -> FinishReason | Exception | None:
        """Append a new token; return why the answer ends, the error that ends it, or None."""
        if new_id == NOT_FINITE or not all(map(math.isfinite, self.logprobs() if self.logprobs else ())):
            self.is_sound = False
            return NotFiniteError()
        self.ids.append(new_id)
        constraint = self.sampler.constraint
        if constraint is None:
            return finish_reason(self.ids, stop_ids, self.limit)
        constraint.take(new_id)
        if constraint.failure is not None or constraint.is_complete:
            return constraint.failure or "stop"
        return "length" if len(self.ids) >= self.limit else None  # a repetition may be what a schema asks for

    def written_out(self, ids: Sequence[int], reason: FinishReason | None, at: float) -> Chunk | None:
        """Turn new tokens into text, and return what is to be delivered of it; in the text thread."""
        if self.text.is_stopped:
            return None
        if self.choices is not None:
            return self._chosen(at)
        self._hold_logprobs(len(ids))
        self.written += len(ids)
        self.held_text += self.text.push(ids)
        if reason is None and not self.text.is_stopped:
            if not (self.in_pieces and self.held_text):
                return None
            text, self.held_text = self.held_text, ""
            logprobs, self.held_logprobs = tuple(self.held_logprobs), []
            return Chunk(text, logprobs=logprobs)
        text = self.held_text + self.text.finish()
        reason = "stop" if self.text.is_stopped else reason
        return Chunk(text, reason, self._usage(self.written, at), logprobs=tuple(self.held_logprobs))

    def _chosen(self, at: float) -> Chunk:
        assert self.choices is not None and self.logprobs is not None, "the prefill computes them"
        generation = self.request.generation
        logprobs = dict(zip(generation.choices, self.logprobs(), strict=True))
        tokens = dict(zip(generation.choices, self.choices.counts, strict=True))
        scores = Scores(logprobs, tokens, generation.length_normalized)
        return Chunk(scores.best, "stop", self._usage(tokens[scores.best], at), scores)

    def _usage(self, generated_tokens: int, at: float) -> Usage:
        return Usage(
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            generated_tokens=generated_tokens,
            first_token_seconds=self.first_at - self.began_at,
            total_seconds=at - self.began_at,
            peak_memory_bytes=self.peak_bytes,
            thinking_tokens=self.text.thinking_tokens,
            media_tokens=self.prompt.media_tokens,
        )

    def _hold_logprobs(self, count: int) -> None:
        for (number, logprob), *top in self.sampler.logprobs[self.written : self.written + count]:
            token, content = self.describe(number)
            if content:  # not the token that ends the answer
                likely = tuple(TokenLogprob(*self.describe(other), value) for other, value in top)
                self.held_logprobs.append(TokenLogprob(token, content, logprob, likely))


def finish_reason(ids: Sequence[int], stop_ids: Container[int], limit: int) -> FinishReason | None:
    """Return why an answer ends with these new ids; None if it does not."""
    if ids[-1] in stop_ids:
        return "stop"
    is_over = len(ids) >= limit
    if (is_over or len(ids) % _CHECK_EVERY_TOKENS == 0) and ends_in_repetition(ids):
        return "repetition"
    return "length" if is_over else None


def ends_in_repetition(ids: Sequence[int]) -> bool:
    """Return whether the ids end in one block of tokens, repeated."""
    for length in range(1, _LONGEST_BLOCK_TOKENS + 1):
        span = max(_LEAST_REPEATS * length, _LEAST_REPEATED_TOKENS)
        tail = ids[-span:]
        if len(tail) == span and tail[length:] == tail[:-length]:
            return True
    return False
