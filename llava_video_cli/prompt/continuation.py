"""How an answer begins, or which texts it may be: prompts that go on with the first words of their answer."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from ..conversation import Generation
from ..errors import ModelError
from .chat_template import harmless


@dataclass(frozen=True)
class Choices:
    """The tokens of each choice, after those that all prompts with a choice have in common.

    `has_end` tells of which ones an end token belongs to them: where they are the beginning of another choice, only
    that tells the two apart.
    """

    ids: tuple[tuple[int, ...], ...]
    has_end: tuple[bool, ...]

    @property
    def counts(self) -> tuple[int, ...]:
        """How many tokens each one has, with its end."""
        return tuple(len(ids) + end for ids, end in zip(self.ids, self.has_end, strict=True))


def beginnings(prompt: str, generation: Generation, special: Collection[str]) -> tuple[str, list[str]]:
    """Return a prompt's text with the prefill of its answer, and, for each choice, with the prefill and the choice.

    White space at the end of a prefill is left to the model; before a choice it stays. `special` are the tokenizer's
    special tokens, which become ordinary text.
    """
    prefill = generation.prefill
    return (
        _continued(prompt, prefill, special),
        [_continued(prompt, prefill + choice, special) for choice in generation.choices],
    )


def _continued(prompt: str, text: str, special: Collection[str]) -> str:
    """Return a prompt with the beginning of its answer; a space stands between them as between other words."""
    text = harmless(text, special)
    if not text:
        return prompt
    is_apart = not prompt or prompt[-1].isspace() or any(prompt.endswith(mark) for mark in special if mark)
    return prompt + ("" if is_apart else " ") + text


def read_choices(base: Sequence[int], wholes: Sequence[Sequence[int]], choices: Sequence[str]) -> tuple[int, Choices]:
    """Return how many of a prompt's tokens stay, and the choices' tokens behind them.

    `base` are the tokens of the prompt, `wholes` those of the prompt with each choice. All of `base` stay, unless the
    tokenizer joins its last characters with the first ones of a choice. Raises `ModelError` for choices that are the
    same tokens, or none.
    """
    stays = min(_common(base, whole) for whole in wholes)
    ids = tuple(tuple(whole[stays:]) for whole in wholes)
    for number, each in enumerate(ids):
        if each in ids[:number] or not each:
            other = choices[ids.index(each)]
            raise ModelError(f"the choices {other!r} and {choices[number]!r} are the same to the tokenizer")
    return stays, Choices(ids, tuple(any(other[: len(each)] == each != other for other in ids) for each in ids))


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return min(len(one), len(other))


def answer_tokens(generation: Generation, base: Sequence[int], wholes: Sequence[Sequence[int]]) -> int:
    """Return the most tokens that an answer takes behind the prompt `base`: the longest choice and its end."""
    return max((len(whole) + 1 - len(base) for whole in wholes), default=generation.max_new_tokens)
