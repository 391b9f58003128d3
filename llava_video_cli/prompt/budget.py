"""A checkpoint before its weights are read: what a request would take of its context. Nothing heavy is imported."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..checkpoint.adaptation import LEAST_TEXT_TOKENS, can_scale, factor_for
from ..checkpoint.config import Checkpoint
from ..checkpoint.tokens import picture_tokens
from ..conversation import Budget, Media, Request, Turn
from ..video.image import Picture
from .chat_template import IMAGE, VIDEO, ChatTemplate, render

# A text has at most so many tokens for each of its bytes (a space is three bytes to a tokenizer that lacks it), and
# each turn's marks so many.
_MOST_TOKENS_A_BYTE, _MOST_TOKENS_A_TURN = 3, 100


@dataclass(frozen=True)
class Outline:
    """What is known of a checkpoint without its weights; `folder` has its tokenizer and its chat template."""

    name: str
    checkpoint: Checkpoint
    folder: Path

    @property
    def counts_text(self) -> bool:
        """Whether texts can be counted."""
        return self._tokenizer is not None

    def media_tokens(self, medium: Media) -> int:
        """Return how many tokens of a prompt a medium takes."""
        if isinstance(medium, Picture):
            return picture_tokens(self.checkpoint, *medium.pixels.shape[:2])
        return len(medium.images) * self.checkpoint.frame_tokens

    def budget(self, request: Request) -> Budget:
        """Return what a request takes of the context, as `Model.budget` does; of text that can't be counted, nothing.

        The text of a checkpoint without `tokenizer.json` can't be counted.
        """
        media = tuple(self.media_tokens(medium) for medium in request.media)
        return self._budget(request, media, self._text_tokens(request.turns))

    def bound(self, request: Request) -> Budget:
        """Return a budget that a request surely keeps; costs next to nothing."""
        media = tuple(self.media_tokens(medium) for medium in request.media)
        text = sum(_MOST_TOKENS_A_BYTE * len(turn.text.encode()) + _MOST_TOKENS_A_TURN for turn in request.turns)
        return self._budget(request, media, text)

    def stretched(self, budgets: Iterable[Budget]) -> Outline:
        """Return the checkpoint with the RoPE factor that requests of such budgets need; where none is, as it is.

        Source: LLaVA-NeXT's demo, which leaves 1,000 tokens for text.
        """
        known = self.checkpoint
        if not can_scale(known):
            return self
        needed = [
            sum(budget.media_tokens)
            + max(LEAST_TEXT_TOKENS, budget.prompt_tokens - sum(budget.media_tokens) + budget.answer_tokens)
            for budget in budgets
        ]
        return replace(self, checkpoint=replace(known, rope_factor=factor_for(known, max(needed, default=0))))

    def _budget(self, request: Request, media: tuple[int, ...], text_tokens: int) -> Budget:
        answer = request.generation.max_new_tokens
        return Budget(sum(media) + text_tokens, answer, self.checkpoint.context_tokens, media)

    def _text_tokens(self, turns: Sequence[Turn]) -> int:
        tokenizer = self._tokenizer
        if tokenizer is None:
            return 0
        special, bos, eos = self._special_tokens
        text = render(turns, self._template, self.checkpoint.family, special, eos)
        opened = bool(bos) and text.startswith(bos)
        ids = tokenizer.encode(text, add_special_tokens=not opened).ids
        return len(ids) - len(re.findall(f"{IMAGE}|{VIDEO}", text))

    @cached_property
    def _tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        try:
            return Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        except Exception:  # noqa: BLE001 - it raises nothing narrower; what is wrong is said when the checkpoint is loaded
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
        """The chat template, in an environment as transformers makes it."""
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        def refuse(message: str) -> None:
            raise ValueError(message)

        _, bos, eos = self._special_tokens
        source = _json(self.folder / "chat_template.json").get("chat_template")
        if source is None and (file := self.folder / "chat_template.jinja").is_file():
            source = file.read_text(encoding="utf-8")
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals["raise_exception"] = refuse

        def fill(messages: list[dict[str, Any]]) -> str:
            values = {"messages": messages, "add_generation_prompt": True, "bos_token": bos, "eos_token": eos}
            return environment.from_string(source or "").render(values)

        return fill


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _content(token: object) -> str:
    """Return a token's text; old files have it in a mapping."""
    return str(token.get("content") if isinstance(token, dict) else token or "")
