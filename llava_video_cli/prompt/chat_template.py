"""Turns and media to the text of a prompt, checked.

The checkpoint's own chat template is used. If its result is wrong, the prompt is written in the family's format
instead. See https://github.com/huggingface/transformers/issues/35869 for what a wrong number of placeholders does.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..checkpoint.config import Family
from ..conversation import Media, Turn

IMAGE, VIDEO = "<image>", "<video>"
# Turn marks of the families that are plain text to their tokenizers, not special tokens.
_TURN_MARKS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")

ChatTemplate = Callable[[list[dict[str, Any]]], str]


def render(turns: Sequence[Turn], template: ChatTemplate, family: Family, special: Iterable[str], eos: str) -> str:
    """Return the prompt's text, with one `<video>` or `<image>` for each medium, in their order.

    `special` are the tokenizer's special tokens: in the turns' texts, a space after the first character makes them
    ordinary text. `eos` ends earlier answers in the families' formats.
    """
    marks = sorted({IMAGE, VIDEO, *_TURN_MARKS, *special} - {""}, key=len, reverse=True)
    clean = [Turn(turn.role, _harmless(turn.text, marks), turn.media) for turn in turns]
    try:
        text = template(_messages(clean))
    except Exception:  # noqa: BLE001 - a template is a program that comes with the checkpoint: it can raise anything
        return own_form(clean, family, eos)
    return text if _fault(text, clean) is None else own_form(clean, family, eos)


def own_form(turns: Sequence[Turn], family: Family, eos: str) -> str:
    """Return a conversation in the family's format, with the start of the next answer.

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
        if turn.role == "system":  # the family has no system turn: its text begins the next question
            system += turn.text + "\n\n"
        elif turn.role == "user":
            text += f"[INST] {system}{_placeholders(turn)}{turn.text} [/INST]"
            system = ""
        else:
            text += f" {turn.text}{eos}"
    return text


def _chatml(turns: Sequence[Turn], eos: str) -> str:
    del eos  # <|im_end|> ends every turn
    text = "".join(f"<|im_start|>{turn.role}\n{_placeholders(turn)}{turn.text}<|im_end|>\n" for turn in turns)
    return text + "<|im_start|>assistant\n"


def _placeholders(turn: Turn) -> str:
    return "".join(f"{_placeholder(medium)}\n" for medium in turn.media)


def _placeholder(medium: Media) -> str:
    return VIDEO if medium.is_video else IMAGE


def _messages(turns: Iterable[Turn]) -> list[dict[str, Any]]:
    """Return the conversation in the chat format of transformers."""
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
    """Return what is wrong with a rendered prompt, or None: it must have all media and texts once each, in order."""
    wanted = [_placeholder(medium) for turn in turns for medium in turn.media]
    if re.findall(f"{IMAGE}|{VIDEO}", text) != wanted:
        return "placeholders missing, repeated or out of order"
    position, between = 0, ""
    for turn in turns:
        start = text.find(turn.text, position)
        if start < 0:
            return f"the {turn.role}'s text is missing"
        between += text[position:start] + "\n"
        position = start + len(turn.text)
    between += text[position:]
    if any(turn.role == "system" and turn.text and turn.text in between for turn in turns):
        return "the system text appears twice"
    if r"<\s>" in between:
        return "a mistyped end-of-text token"
    return None
