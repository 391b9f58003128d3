from __future__ import annotations

from typing import Any

import jinja2
import numpy as np
import pytest
from checkpoints import TEMPLATES

from llava_video_cli import Frames, Picture, Sampling, Turn, VideoInfo
from llava_video_cli.checkpoint.config import Family
from llava_video_cli.prompt.chat_template import own_form, render

VIDEO = Frames(np.zeros((1, 2, 2, 3), np.uint8), (0.0,), VideoInfo("v.mp4", 1.0, 2, 2, 1.0, "h264", 0), Sampling(1))
STILL = Picture(np.zeros((2, 2, 3), np.uint8), "p.png")
SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
ONE = (Turn("user", "Why?", (VIDEO,)),)
TWO = (Turn("system", "Be brief."), Turn("user", "Why?", (VIDEO,)), Turn("assistant", "Because."), Turn("user", "And?"))


def template(source: str) -> Any:
    def fail(message: str) -> None:
        raise ValueError(message)

    compiled = jinja2.Environment(trim_blocks=True, lstrip_blocks=True).from_string(source)
    return lambda messages: compiled.render(
        messages=messages, add_generation_prompt=True, eos_token="</s>", raise_exception=fail
    )


FAMILIES: dict[str, Family] = {"vicuna": "vicuna", "mistral": "mistral", "yi": "chatml"}


def rendered(turns: tuple[Turn, ...], source: str, family: Family) -> str:
    return render(turns, template(source), family, SPECIAL, "</s>")


@pytest.mark.parametrize(
    ("family", "wanted"),
    [
        ("vicuna", "USER: <video>\nWhy? ASSISTANT:"),
        ("mistral", "[INST] <video>\nWhy? [/INST]"),
        ("chatml", "<|im_start|>user\n<video>\nWhy?<|im_end|>\n<|im_start|>assistant\n"),
    ],
)
def test_own_form_is_the_safe_form(family: Family, wanted: str) -> None:
    assert own_form(ONE, family, "</s>") == wanted


def test_own_form_of_a_conversation() -> None:
    assert (
        own_form(TWO, "vicuna", "</s>") == "Be brief. USER: <video>\nWhy? ASSISTANT: Because.</s>USER: And? ASSISTANT:"
    )
    assert (
        own_form(TWO, "mistral", "</s>") == "[INST] Be brief.\n\n<video>\nWhy? [/INST] Because.</s>[INST] And? [/INST]"
    )


@pytest.mark.parametrize("layout", TEMPLATES)
def test_a_good_template_is_used_as_it_is(layout: str) -> None:
    messages = [{"role": "user", "content": [{"type": "video"}, {"type": "text", "text": "Why?"}]}]
    assert rendered(ONE, TEMPLATES[layout], FAMILIES[layout]) == template(TEMPLATES[layout])(messages)


BROKEN = {
    "drops the video": "{% for m in messages %}USER: {{ m['content'][-1]['text'] }}{% endfor %} ASSISTANT:",
    "drops the text": "{% for m in messages %}USER: <video>\n{% endfor %} ASSISTANT:",
    "two placeholders": "{% for m in messages %}USER: <video><video>{{ m['content'][-1]['text'] }}{% endfor %}",
    "system text twice": "{% for m in messages %}{% if m['role'] == 'system' %}{{ m['content'][0]['text'] }} "
    "{{ m['content'][0]['text'] }}{% else %}{% if m['role'] == 'user' and loop.index < 3 %}<video>{% endif %}"
    "{{ m['content'][-1]['text'] }}{% endif %}{% endfor %}",
    "mistyped end": "{% for m in messages %}{% if m['role'] == 'user' and loop.index < 3 %}<video>{% endif %}"
    "{{ m['content'][-1]['text'] }}<\\s>{% endfor %}",
    "raises": "{{ raise_exception('no system role') }}",
    "not a template of this version": "{{ messages | no_such_filter_here if false }}{{ messages.nothing.at.all }}",
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_template_is_replaced(name: str) -> None:
    try:
        chat = template(BROKEN[name])
    except jinja2.TemplateError as error:
        reason = error

        def chat(_: Any) -> str:
            raise reason

    assert render(TWO, chat, "vicuna", SPECIAL, "</s>") == own_form(TWO, "vicuna", "</s>")


def test_media_keep_their_order_even_if_the_template_sorts_them() -> None:
    turns = (Turn("user", "Same?", (VIDEO, STILL)),)
    assert rendered(turns, TEMPLATES["vicuna"], "vicuna") == "USER: <video>\n<image>\nSame? ASSISTANT:"
    turns = (Turn("user", "Same?", (STILL, VIDEO)),)
    assert rendered(turns, TEMPLATES["vicuna"], "vicuna") == "USER: <image>\n<video>\nSame? ASSISTANT:"


@pytest.mark.parametrize("hostile", ["<video>", "<image>", "</s>", "<|im_end|>", "[/INST]", "<video><image></s>"])
def test_marks_in_a_text_are_text(hostile: str) -> None:
    for layout, family in FAMILIES.items():
        text = rendered((Turn("user", f"x {hostile} y", (VIDEO,)),), TEMPLATES[layout], family)
        harmless = rendered((Turn("user", "x  y", (VIDEO,)),), TEMPLATES[layout], family)
        for mark in ("<video>", "<image>", "</s>", "<|im_end|>", "[/INST]"):
            assert text.count(mark) == harmless.count(mark)
