"""Turns and media to the text of a prompt, checked.

The checkpoint's own chat template is used. If its result is wrong, the prompt is written in the family's format
instead. See https://github.com/huggingface/transformers/issues/35869 for what a wrong number of placeholders does.
"""

from __future__ import annotations

import atexit
import json
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..checkpoint.config import PromptFormat
from ..conversation import Media, Turn
from ..errors import ModelError

IMAGE, VIDEO = "<image>", "<video>"
# Turn marks of the families that are plain text to their tokenizers, not special tokens.
_TURN_MARKS = ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")

ChatTemplate = Callable[[list[dict[str, Any]]], str]
_START_SECONDS, _RENDER_SECONDS = 60.0, 20.0  # what renders ends by itself after 3 seconds of a processor


def render(turns: Sequence[Turn], template: ChatTemplate, form: PromptFormat, special: Iterable[str], eos: str) -> str:
    """Return the prompt's text, with one `<video>` or `<image>` for each medium, in their order.

    `special` are the tokenizer's special tokens: in the turns' texts, a space after the first character makes them
    ordinary text. `eos` ends earlier answers in the families' formats. Raises `ModelError` for a template that takes
    too much time or memory.
    """
    clean = [Turn(turn.role, harmless(turn.text, special), turn.media) for turn in turns]
    try:
        text = template(_messages(clean))
    except ValueError:
        return own_form(clean, form, eos)
    return text if _fault(text, clean) is None else own_form(clean, form, eos)


def render_own(
    name: str, turns: Sequence[Turn], template: ChatTemplate, special: Iterable[str], tokens: tuple[str, str]
) -> str:
    """Return the prompt's text as the checkpoint's own chat template writes it; `tokens` stand for picture and video.

    `special` are texts that have a meaning to the tokenizer or the processor: what a user writes of them is changed as
    by `render`. Raises `ModelError` for a template that fails, or leaves media out.
    """
    marks = {*tokens, *special}
    try:
        text = template(_messages([Turn(turn.role, harmless(turn.text, marks), turn.media) for turn in turns]))
    except ValueError as error:
        raise ModelError(f"the chat template of {name} can't write this conversation: {error}") from None
    wanted = [tokens[medium.is_video] for turn in turns for medium in turn.media]
    if tokens[0] != tokens[1] and re.findall("|".join(map(re.escape, tokens)), text) != wanted:
        raise ModelError(
            f"the chat template of {name} leaves media out, or repeats them",
            "take chat_template.jinja or chat_template.json from the checkpoint that it was trained from",
        )
    return text


def answer_opening(write: Callable[[Sequence[Turn]], str]) -> str:
    """Return what a template has between a prompt and its answer, often a space; `write` renders a conversation."""
    question, answer = Turn("user", "Question"), "Answer"
    prompt, text = write((question,)), write((question, Turn("assistant", answer), question))
    at = text.find(answer, len(prompt))
    return text[len(prompt) : at] if text.startswith(prompt) and at >= 0 else ""


def chat_template(name: str, source: str, special_tokens: Mapping[str, str]) -> ChatTemplate:
    """Return the template of the model `name`, which a process of its own renders: it is a stranger's program.

    `special_tokens` are what it may use, by their names (`bos_token`). It raises `ValueError` for what fails,
    `ModelError` for what takes too much time or memory, and that at once from the second time on.
    """
    is_costly = False

    def fill(messages: list[dict[str, Any]]) -> str:
        nonlocal is_costly
        values = {**special_tokens, "messages": messages, "add_generation_prompt": True}
        answer = None if is_costly else _worker.ask(json.dumps({"source": source, "values": values}))
        if answer is None:
            is_costly = True
            raise ModelError(
                f"the chat template of {name} takes too much time or memory",
                "take chat_template.jinja or chat_template.json from the checkpoint that it was trained from",
            )
        if "text" not in answer:
            raise ValueError(answer["error"])
        return answer["text"]

    return fill


class _RenderProcess:
    """The process that renders templates, started when it is needed first. Safe in threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        atexit.register(self.stop)

    def ask(self, line: str) -> dict[str, str] | None:
        """Return what comes of a request, or None if that takes too much."""
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._process = self._started()
            process = self._process
            assert process.stdin is not None
            try:
                process.stdin.write(line + "\n")
                process.stdin.flush()
                answer = _line(process, _RENDER_SECONDS)
            except OSError:  # it is gone
                answer = ""
            if not answer:
                self.stop()
            return dict(json.loads(answer)) if answer else None

    def stop(self) -> None:
        """End the process."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            with suppress(OSError):  # what it did not read
                process.communicate()

    @staticmethod
    def _started() -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("template_worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C is not for it: the run may go on for a while
        )
        _line(process, _START_SECONDS)
        return process


def _line(process: subprocess.Popen[str], seconds: float) -> str:
    """Return a line that a process writes, "" if it ends before; it is killed if it takes longer."""
    assert process.stdout is not None
    timer = threading.Timer(seconds, process.kill)
    timer.start()
    try:
        return process.stdout.readline()
    finally:
        timer.cancel()


_worker = _RenderProcess()


def own_form(turns: Sequence[Turn], form: PromptFormat, eos: str) -> str:
    """Return a conversation in the family's format, with the start of the next answer.

    Source: the prompts that LLaVA-NeXT trained with (`conv_vicuna_v1`, `conv_mistral_instruct`,
    `conv_chatml_direct`), media first in their turn.
    """
    return {"vicuna": _vicuna, "mistral": _mistral}.get(form, _chatml)(turns, eos)


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


def harmless(text: str, special: Iterable[str]) -> str:
    """Return a text without outer white space in which special tokens, placeholders and turn marks are plain text."""
    text = text.strip()
    for mark in sorted({IMAGE, VIDEO, *_TURN_MARKS, *special} - {""}, key=len, reverse=True):
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
