"""What a model thinks is no part of its answer, unless it is asked for, and is counted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from family_checkpoints import make_family
from openai_server import OpenAIServer, listed, said
from scenes import VIDEO

from llava_video_cli import Generation, Request, Turn, join, open_model
from llava_video_cli.cli.app import run
from llava_video_cli.conversation import Answer
from llava_video_cli.inference.detokenizer import Detokenizer
from llava_video_cli.prompt.thinking import Thoughts, opens_thought
from llava_video_cli.remote import open_remote

REQUEST = Request((Turn("user", "What happens?", (VIDEO,)),), Generation(max_new_tokens=12))


def decode(ids: list[int]) -> str:
    return bytes(ids).decode("utf-8", errors="replace")


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
@pytest.mark.parametrize(
    ("text", "left", "count"),
    [
        ("<think>\nA square?\n</think>\n\nA circle.", "A circle.", len("<think>\nA square?\n</think>")),
        ("<think></think>Yes", "Yes", len("<think></think>")),
        ("No thought < here <thi", "No thought < here <thi", 0),
        ("One<think>two</think> three <think>four</think>", "One three", len("<think>two</think>") * 2 + 1),
        ("日本<think>語</think>語", "日本語", len("<think>語</think>".encode())),
        ("<think>it has not ended", "", len("<think>it has not ended")),
    ],
)
def test_thoughts_are_left_out_and_counted(text: str, left: str, count: int, size: int) -> None:
    ids = list(text.encode())
    pieces = Detokenizer(decode, thoughts=Thoughts())
    got = "".join(pieces.push(ids[at : at + size]) for at in range(0, len(ids), size)) + pieces.finish()
    assert (got, pieces.thinking_tokens) == (left, count)
    shown = Detokenizer(decode)
    assert "".join(shown.push([each]) for each in ids) + shown.finish() == text
    assert shown.thinking_tokens == count, "those that are shown are counted, too"


def test_a_prompt_may_have_begun_the_thought() -> None:
    assert opens_thought("<|assistant|><think>\n") and not opens_thought("What is <think>?\n<|assistant|>")
    pieces = Detokenizer(decode, stop=["?"], thoughts=Thoughts())
    pieces.thoughts.is_thinking = True
    text = b"Is it? </think>\nIt is. Or? No."
    assert pieces.push(list(text)) + pieces.finish() == "It is. Or", "a thought has no stop text"
    assert pieces.thinking_tokens == len(b"Is it? </think>")


def test_a_template_that_opens_the_thought(tmp_path: Path) -> None:
    """A tiny model never closes it: all of its answer is a thought."""
    folder = make_family(tmp_path / "qwen3_vl", "qwen3_vl")
    plain = join(open_model(str(folder)).stream(REQUEST))
    template = folder / "chat_template.jinja"
    template.write_text(template.read_text() + "{% if add_generation_prompt %}{{ '<think>\n' }}{% endif %}")
    model = open_model(str(folder))
    hidden = join(model.stream(REQUEST))
    assert (hidden.text, hidden.usage.thinking_tokens) == ("", hidden.usage.generated_tokens)
    assert (plain.usage.thinking_tokens, hidden.usage.prompt_tokens) == (0, plain.usage.prompt_tokens + 8)
    generation = Generation(max_new_tokens=12, show_thinking=True)
    assert join(model.stream(Request(REQUEST.turns, generation))).text


def asked(reply: str, owner: str = "vllm", show_thinking: bool = False) -> tuple[Answer, dict[str, object]]:
    server = OpenAIServer(listed(owner=owner), [said(reply)])
    with server.running():
        answer = join(open_remote([server.url]).stream(Request(REQUEST.turns, Generation(show_thinking=show_thinking))))
    return answer, server.asked[0]


def test_a_server_s_thoughts() -> None:
    assert asked("<think> So what? </think> It moves.")[0].text == "It moves."
    assert asked("<think> So what?")[0].text == ""
    assert asked("It <b moves <")[0].text == "It <b moves <"
    answer, body = asked("<think> So what? </think> It moves.", show_thinking=True)
    assert answer.text == "<think> So what? </think> It moves." and "show_thinking" not in body
    assert asked("Yes", "llvid", show_thinking=True)[1]["show_thinking"] is True


def test_the_option_is_in_the_settings_only_if_it_is_used(clip: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flags in ([], ["--show-thinking"]):
        assert run(["ask", str(clip), "What shape is it?", "--json", "-q", "-m", "demo", *flags]) == 0
        row = json.loads(capsys.readouterr().out)
        assert row["settings"]["generation"].get("show_thinking") == (True if flags else None)
        assert row["usage"]["thinking_tokens"] == 0
