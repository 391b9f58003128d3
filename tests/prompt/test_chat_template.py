from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import jinja2
import numpy as np
import pytest
from checkpoints import TEMPLATES

from llava_video_cli import Frames, ModelError, Picture, Sampling, Turn, VideoInfo
from llava_video_cli.checkpoint.config import PromptFormat
from llava_video_cli.prompt.chat_template import chat_template, own_form, render

VIDEO = Frames(np.zeros((1, 2, 2, 3), np.uint8), (0.0,), VideoInfo("v.mp4", 1.0, 2, 2, 1.0, "h264", 0), Sampling(1))
STILL = Picture(np.zeros((2, 2, 3), np.uint8), "p.png")
SPECIAL = ("<s>", "</s>", "<|im_start|>", "<|im_end|>")
ONE = (Turn("user", "Why?", (VIDEO,)),)
TWO = (Turn("system", "Be brief."), Turn("user", "Why?", (VIDEO,)), Turn("assistant", "Because."), Turn("user", "And?"))


FAMILIES: dict[str, PromptFormat] = {"vicuna": "vicuna", "mistral": "mistral", "yi": "chatml"}


def rendered(turns: tuple[Turn, ...], source: str, family: PromptFormat) -> str:
    return render(turns, chat_template("it", source, {"eos_token": "</s>"}), family, SPECIAL, "</s>")


@pytest.mark.parametrize(
    ("family", "wanted"),
    [
        ("vicuna", "USER: <video>\nWhy? ASSISTANT:"),
        ("mistral", "[INST] <video>\nWhy? [/INST]"),
        ("chatml", "<|im_start|>user\n<video>\nWhy?<|im_end|>\n<|im_start|>assistant\n"),
    ],
)
def test_own_form_is_the_safe_form(family: PromptFormat, wanted: str) -> None:
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
    assert rendered(ONE, TEMPLATES[layout], FAMILIES[layout]) == jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True
    ).from_string(TEMPLATES[layout]).render(messages=messages, add_generation_prompt=True)


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
    chat = chat_template("it", BROKEN[name], {"eos_token": "</s>"})
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


@pytest.mark.parametrize(
    "source",
    [
        pytest.param(  # as 7**(9**9), which doesn't even look at signals, takes too much time
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", marks=pytest.mark.slow
        ),
        "{{ '%999999999d' % 1 }}",
        "{{ 'x'|center(5*10**9) }}",
        "{{ '{:>9999999999}'.format(1) }}",
        "{{ 7**(9**9) }}",
        "{% set n = namespace(x='a') %}{% for i in range(60) %}{% set n.x = n.x ~ n.x %}{% endfor %}{{ n.x }}",
        "{{ 'x' * 10**7 }}",
    ],
)
def test_a_template_that_costs_too_much_is_refused_in_time(source: str) -> None:
    template, began = chat_template("it", source, {}), time.monotonic()
    for _ in range(20):  # that it costs too much is found out once
        with pytest.raises(ModelError, match="the chat template of it takes too much time or memory"):
            render(ONE, template, "vicuna", (), "</s>")
    assert time.monotonic() - began < 25
    good = chat_template("it", "{{ messages[0].role }}", {})
    assert good([{"role": "user"}]) == "user"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc to find the process")
def test_the_process_that_renders_is_started_again() -> None:
    template = chat_template("it", "{{ messages[0].role }}{{ eos_token }}", {"eos_token": "</s>"})
    assert template([{"role": "user"}]) == "user</s>"
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            is_child = int(path.read_text().rpartition(")")[2].split()[1]) == os.getpid()
            if is_child and b"template_worker" in path.with_name("cmdline").read_bytes():
                os.kill(int(path.parent.name), signal.SIGKILL)
                os.waitid(os.P_PID, int(path.parent.name), os.WEXITED | os.WNOWAIT)
    assert template([{"role": "a\nb\u2028\ud800"}]) == "a\nb\u2028\ud800</s>"


@pytest.mark.parametrize(
    "source",
    [
        *TEMPLATES.values(),
        "{{ bos_token }}{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m|tojson }}{% endfor %}",
        "{% generation %}\n  {{ messages|tojson(indent=2) }}\n{% endgeneration %} {{ strftime_now('%Y') }}",
    ],
)
def test_templates_are_rendered_as_the_library_does(source: str) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    special = {"bos_token": "<s>", "eos_token": "</s>"}
    media = [{"type": "video"}, {"type": "text", "text": "Wh\u00e4t?"}]
    messages = [{"role": "user", "content": media}, {"role": "assistant", "content": [{"type": "text", "text": "A"}]}]
    ((wanted,), _) = render_jinja_template([messages], chat_template=source, add_generation_prompt=True, **special)
    assert chat_template("it", source, special)(messages) == wanted
