"""Turns and media to the text of a prompt, checked.

The checkpoint's own chat template is used; where what it renders is wrong, the family's own form is written
instead. See https://github.com/huggingface/transformers/issues/35869 for what a wrong count of placeholders does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..checkpoint.config import Family
from ..conversation import Media, Turn

IMAGE, VIDEO = "<image>", "<video>"
# Text of the families' turn marks that tokenizers hold as plain text, not as special tokens.
_TURN_MARKS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")

ChatTemplate = Callable[[list[dict[str, Any]]], str]


def render(turns: Sequence[Turn], template: ChatTemplate, family: Family, special: Iterable[str], eos: str) -> str:
    """Return the prompt's text, with one `<video>` or `<image>` for each medium, in their order.

    `special` are the tokenizer's special tokens: in anybody's text they are made harmless by a space behind
    the first character. `eos` closes earlier answers in the families' own forms.
    """
    marks = sorted({IMAGE, VIDEO, *_TURN_MARKS, *special} - {""}, key=len, reverse=True)
    clean = [Turn(turn.role, _harmless(turn.text, marks), turn.media) for turn in turns]
    try:
        text = template(_messages(clean))
    except Exception:  # noqa: BLE001 - a template is a program of the checkpoint's: it can raise anything
        return own_form(clean, family, eos)
    return text if _fault(text, clean) is None else own_form(clean, family, eos)


def own_form(turns: Sequence[Turn], family: Family, eos: str) -> str:
    """Return the family's safe form of a conversation, with the opening of the next answer.

    Source: the prompts that LLaVA-NeXT trained with (`conv_vicuna_v1`, `conv_mistral_instruct`,
    `conv_chatml_direct`), media first in their turn.
    """
    write = {"vicuna": _vicuna, "mistral": _mistral, "chatml": _chatml}[family]
    return write(turns, eos)


def _vicuna(turns: Sequence[Turn], eos: str) -> str:
    text = ""
    for turn in turns:
        body = _placeholders(turn) + turn.text
        text += {"system": f"{body} ", "user": f"USER: {body} ", "assistant": f"ASSISTANT: {body}{eos}"}[turn.role]
    return text + "ASSISTANT:"


def _mistral(turns: Sequence[Turn], eos: str) -> str:
    text = system = ""
    for turn in turns:
        if turn.role == "system":  # the family has no system turn: it stands at the head of the next question
            system += turn.text + "\n\n"
        elif turn.role == "user":
            text += f"[INST] {system}{_placeholders(turn)}{turn.text} [/INST]"
            system = ""
        else:
            text += f" {turn.text}{eos}"
    return text


def _chatml(turns: Sequence[Turn], eos: str) -> str:
    del eos  # <|im_end|> closes every turn
    text = "".join(f"<|im_start|>{turn.role}\n{_placeholders(turn)}{turn.text}<|im_end|>\n" for turn in turns)
    return text + "<|im_start|>assistant\n"


def _placeholders(turn: Turn) -> str:
    return "".join(f"{_placeholder(medium)}\n" for medium in turn.media)


def _placeholder(medium: Media) -> str:
    return VIDEO if medium.is_video else IMAGE


def _messages(turns: Iterable[Turn]) -> list[dict[str, Any]]:
    """The conversation in the chat format of transformers."""
    kinds = {IMAGE: "image", VIDEO: "video"}
    return [
        {
            "role": turn.role,
            "content": [{"type": kinds[_placeholder(medium)]} for medium in turn.media]
            + ([{"type": "text", "text": turn.text}] if turn.text else []),
        }
        for turn in turns
    ]


def _harmless(text: str, marks: Iterable[str]) -> str:
    text = text.strip()
    for mark in marks:
        text = text.replace(mark, f"{mark[0]} {mark[1:]}")
    return text


def _fault(text: str, turns: Sequence[Turn]) -> str | None:
    """Say what is wrong with a rendered prompt, or None: media, texts, turn ends, each once and in order."""
    wanted = [_placeholder(medium) for turn in turns for medium in turn.media]
    if re.findall(f"{IMAGE}|{VIDEO}", text) != wanted:
        return "placeholders missing, repeated or out of order"
    position, between = 0, ""
    for turn in turns:
        found = text.find(turn.text, position)
        if found < 0:
            return f"the {turn.role}'s text is missing"
        between += text[position:found] + "\n"
        position = found + len(turn.text)
    between += text[position:]
    if any(turn.role == "system" and turn.text and turn.text in between for turn in turns):
        return "the system text stands there twice"
    if r"<\s>" in between:
        return "a mistyped end-of-text token"
    return None
