"""Whether a prompt and its answer fit the context of a model, and what helps if they don't.

Nothing heavy is imported: prompts are checked before the weights are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..checkpoint.config import Checkpoint
from ..checkpoint.files import read_json, tokenizer_errors
from ..conversation import Request
from ..errors import ContextError, ModelError
from .chat_template import IMAGE, VIDEO, ChatTemplate, chat_template, render
from .continuation import answer_tokens, beginnings

# Tokens of question and answer, without the frames, in LLaVA-NeXT's demo: `ceil((144 * frames + 1000) / 4096)`.
TEXT_TOKENS = 1000
SHORT_TEXT_TOKENS = 512  # of a short question and answer, for messages on how many frames would fit
QUESTION_TOKENS = 100  # of a short question, with the chat template's text
_LEAST_CONTEXT_TOKENS = 4096  # of the published checkpoints
# A text has at most so many tokens for each of its bytes (a space is three bytes to a tokenizer that lacks it), and
# the marks around each turn at most so many.
_MOST_TOKENS_A_BYTE, _MOST_TOKENS_A_TURN = 3, 100
# High estimates for a server's model, whose tokenizer isn't here: a token of text is seldom shorter than three bytes; a
# frame of the published checkpoints takes 144 tokens, and a picture, which is cut into tiles, at most 20 times as many.
_TOKEN_BYTES, _TURN_TOKENS, _FRAME_TOKENS, _PICTURE_FRAMES = 3, 16, 144, 20
# The tokenizers library counts the text before the model is loaded; transformers may add or drop a token or two.
_SLACK_TOKENS = 16
# Beyond this factor, a checkpoint that wasn't trained on scaled positions gives useless answers; with this stride, a
# frame still has 9 tokens.
_MOST_FACTOR, _MOST_STRIDE = 4.0, 8
_FEWEST_ANSWER_TOKENS = 64  # a hint proposes no shorter answer
# In a hint where several pictures don't fit: the frames of a video take fewer tokens.
AS_ONE_VIDEO = "ask about the pictures as one video (their folder, or a pattern in quotes: '*.jpg')"


@dataclass(frozen=True)
class Budget:
    """What a request takes of a model's context, all in tokens.

    `answer_tokens` is the longest answer that is allowed; `media_tokens` has the part of the prompt that each medium
    takes, in their order. An estimate tends to be too high; `context_tokens` is 0 if it is unknown.
    """

    prompt_tokens: int
    answer_tokens: int
    context_tokens: int
    media_tokens: tuple[int, ...] = ()
    is_estimate: bool = False

    @property
    def left(self) -> int:
        """What is left; below zero the request does not fit."""
        return (self.context_tokens or _LEAST_CONTEXT_TOKENS) - self.prompt_tokens - self.answer_tokens

    @property
    def is_exceeded(self) -> bool:
        """Whether the request certainly does not fit."""
        return self.left < 0 and not self.is_estimate

    @property
    def text_tokens(self) -> int:
        """The part of the prompt that is text."""
        return self.prompt_tokens - sum(self.media_tokens)

    @property
    def longest_answer(self) -> int:
        """The longest answer that would fit; below zero the prompt alone is too long."""
        return self.context_tokens - self.prompt_tokens

    def frames_each(self, counts: Sequence[int]) -> int:
        """Return how many frames of each video would fit, if each had as many.

        `counts` has the frames of each medium now, 0 for a picture. Without videos, the result is 0.
        """
        videos = [(tokens, count) for tokens, count in zip(self.media_tokens, counts, strict=True) if count]
        frame_tokens = sum(tokens // count for tokens, count in videos)
        return max(0, sum(tokens for tokens, _ in videos) + self.left) // frame_tokens if frame_tokens else 0


@dataclass(frozen=True)
class _EstimatedRates:
    """How many tokens a server's model uses for media; each picture counts as the largest possible one."""

    frame_tokens: int

    def picture_tokens(self, height: int, width: int) -> int:
        del height, width
        return _PICTURE_FRAMES * self.frame_tokens


def estimated(request: Request, frame_tokens: int, context_tokens: int) -> Budget:
    """Return the budget of a request to a server; a number is 0 if the server doesn't report it."""
    rates = _EstimatedRates(frame_tokens or _FRAME_TOKENS)
    media = tuple(medium.tokens(rates) for medium in request.media)
    text = sum(len(turn.text.encode("utf-8", "replace")) // _TOKEN_BYTES + _TURN_TOKENS for turn in request.turns)
    text += len(request.generation.prefill.encode("utf-8", "replace")) // _TOKEN_BYTES
    return Budget(text + sum(media), _longest_answer(request), context_tokens, media, is_estimate=True)


def _longest_answer(request: Request) -> int:
    """Return the most tokens that an answer takes, which is too high for choices."""
    sizes = [len(choice.encode("utf-8", "replace")) for choice in request.generation.choices]
    return _MOST_TOKENS_A_BYTE * max(sizes) + 1 if sizes else request.generation.max_new_tokens


def too_long(
    name: str, checkpoint: Checkpoint, budget: Budget, counts: Sequence[int], each: int | None = None
) -> ContextError:
    """Return the error of a request that doesn't fit; `budget` is what it takes.

    `counts` are the frames of each of its media, in their order, 0 for a picture. `each` is how many frames of each
    video would fit, where the budget doesn't tell exactly.

    The hint names each setting that alone would make it fit: fewer frames, another pooling or RoPE scaling, a shorter
    answer; and that pictures can be a video, whose frames take fewer tokens.
    """
    frames, videos, each = sum(counts), sum(map(bool, counts)), budget.frames_each(counts) if each is None else each
    takes = (
        f"the prompt takes {budget.prompt_tokens:,} tokens and the answer up to {budget.answer_tokens:,}, but the "
        f"context has {budget.context_tokens:,}"
    )
    if each:
        fit = _frames(each * videos) + (f" of {videos} videos" if videos > 1 else "")
        takes = f"too many frames: {frames}; with this question, {fit} fit the context of {name} ({takes})"
    else:
        takes = takes.replace("context has", f"context of {name} has") + (f" ({_frames(frames)})" if frames else "")
    ways = [f"--frames {each}"] * bool(each) + _ways(checkpoint, budget, frames)
    hints = [f"use {' or '.join(ways)}"] * bool(ways) + [AS_ONE_VIDEO] * (counts.count(0) > 1)
    return ContextError(takes, "; or ".join(hints) or "ask a shorter question")


def question_too_long(name: str, budget: Budget) -> ContextError:
    """Return the error of a question without media that doesn't fit."""
    return ContextError(
        f"the question takes {budget.prompt_tokens:,} tokens and the answer up to {budget.answer_tokens:,}, "
        f"but the context of {name} has {budget.context_tokens:,}",
        "ask a shorter question, or use a smaller --max-new-tokens",
    )


def _frames(count: int) -> str:
    return "1 frame" if count == 1 else f"{count} frames"


def _ways(checkpoint: Checkpoint, budget: Budget, frames: int) -> list[str]:
    """Return the settings, except the number of frames, each of which alone would make the request fit."""
    ways, rates, needed = [], checkpoint.rates, budget.prompt_tokens + budget.answer_tokens
    for stride in rates.strides if frames and checkpoint.can_pool else ():
        saved = frames * (rates.frame_tokens - replace(rates, pool_stride=stride).frame_tokens)
        if needed - saved <= budget.context_tokens and rates.pool_stride < stride <= _MOST_STRIDE:
            ways.append(f"--pool-stride {stride}")
            break
    factor = checkpoint.factor_for(needed)
    if checkpoint.can_scale and factor <= _MOST_FACTOR:
        ways.append(f"--rope-factor {factor:g}")
    if budget.longest_answer >= _FEWEST_ANSWER_TOKENS:
        ways.append(f"--max-new-tokens {budget.longest_answer}")
    return ways


@dataclass(frozen=True)
class TokenCounter:
    """Counts the tokens of requests for a checkpoint; `folder` has its tokenizer and its chat template."""

    name: str
    checkpoint: Checkpoint
    folder: Path

    @property
    def counts_text(self) -> bool:
        """Whether texts can be counted: that needs `tokenizer.json`."""
        return self._tokenizer is not None

    def budget(self, request: Request) -> Budget:
        """Return what a request takes, as `Model.budget` does; text that can't be counted counts as 0 tokens."""
        return self._budget(request, *self._text_tokens(request))

    def bound(self, request: Request) -> Budget:
        """Return a budget that a request certainly does not exceed; this is quick."""
        texts = [*(turn.text for turn in request.turns), request.generation.prefill]
        tokens = sum(_MOST_TOKENS_A_BYTE * len(text.encode()) + _MOST_TOKENS_A_TURN for text in texts)
        return self._budget(request, tokens, _longest_answer(request))

    def surely_fits(self, request: Request) -> bool:
        """Whether a request certainly fits."""
        if self.bound(request).left >= 0:
            return True
        return self.counts_text and self.budget(request).left >= _SLACK_TOKENS

    def check(self, request: Request) -> None:
        """Raise `ContextError` for a request that certainly does not fit."""
        budget = self.budget(request)
        if budget.left < -_SLACK_TOKENS:
            raise too_long(self.name, self.checkpoint, budget, request.frame_counts)

    def stretched(self, budgets: Iterable[Budget]) -> TokenCounter:
        """Return a counter with the RoPE factor that such budgets need; the same one if no factor can be applied.

        Source: LLaVA-NeXT's demo, which leaves 1,000 tokens for text.
        """
        if not self.checkpoint.can_scale:
            return self
        needed = (
            sum(budget.media_tokens) + max(TEXT_TOKENS, budget.text_tokens + budget.answer_tokens) for budget in budgets
        )
        factor = self.checkpoint.factor_for(max(needed, default=0))
        return replace(self, checkpoint=replace(self.checkpoint, rope_factor=factor))

    def _budget(self, request: Request, text_tokens: int, longest_answer: int) -> Budget:
        media = tuple(medium.tokens(self.checkpoint.rates) for medium in request.media)
        return Budget(sum(media) + text_tokens, longest_answer, self.checkpoint.context_tokens, media)

    def _text_tokens(self, request: Request) -> tuple[int, int]:
        """Return how many tokens the prompt's text has, and how many the longest answer."""
        if self._tokenizer is None:
            return 0, _longest_answer(request)
        special, bos, eos = self._special_tokens
        text = render(request.turns, self._template, self.checkpoint.prompt_format, special, eos)
        text, wholes = beginnings(text, request.generation, special)
        has_opening = bool(bos and text.startswith(bos))
        with tokenizer_errors(self.name):
            ids, *whole_ids = (
                self._tokenizer.encode(each, add_special_tokens=not has_opening).ids for each in (text, *wholes)
            )
        return len(ids) - len(re.findall(f"{IMAGE}|{VIDEO}", text)), answer_tokens(request.generation, ids, whole_ids)

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        try:
            with tokenizer_errors(self.name):
                return Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        except Exception:  # noqa: BLE001 - it raises nothing narrower; loading the checkpoint says what is wrong
            return None

    @cached_property
    def _special_tokens(self) -> tuple[list[str], str, str]:
        """All special tokens, the one that begins a text, and the one that ends it."""
        added = _json(self.folder / "tokenizer.json").get("added_tokens", [])
        special = [token["content"] for token in added if token["special"]]
        config = _json(self.folder / "tokenizer_config.json")
        return special, _content(config.get("bos_token")), _content(config.get("eos_token"))

    @cached_property
    def _template(self) -> ChatTemplate:
        _, bos, eos = self._special_tokens
        source = _json(self.folder / "chat_template.json").get("chat_template")
        if source is None and (file := self.folder / "chat_template.jinja").is_file():
            source = file.read_text(encoding="utf-8")
        return chat_template(self.name, source or "", {"bos_token": bos, "eos_token": eos})


def _json(path: Path) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (OSError, ModelError):
        return {}
    return content if isinstance(content, dict) else {}


def _content(token: object) -> str:
    """Return a token's text; old files have it in a mapping."""
    return str((token.get("content") if isinstance(token, dict) else token) or "")
