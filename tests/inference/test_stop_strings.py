"""Texts that end an answer: found wherever the pieces are cut, and the same answer on every path."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from fakes import events, joined

from llava_video_cli import Answer, Request, Sampling, Turn, join, open_model, read_frames
from llava_video_cli.inference.detokenizer import StopStrings

TEXT = "A red circle moves right. It stays red, and it stays a circle."
CASES: list[list[str]] = [
    ["circle"],
    ["stays", "moves"],
    ["nothing"],
    ["A"],
    ["."],
    [" red"],
    ["circle.", "circlex"],
    [],
]


def pushed(stop: list[str], pieces: list[str]) -> str:
    strings, text = StopStrings(stop), ""
    for piece in pieces:
        text += strings.push(piece)
        if strings.is_found:
            return text
    return text + strings.finish()


@pytest.mark.parametrize("stop", CASES)
def test_however_it_is_cut(stop: list[str]) -> None:
    found = [at for at in map(TEXT.find, stop) if at >= 0]
    expected = TEXT[: min(found, default=len(TEXT))]
    draw = random.Random(1)
    for _ in range(200):
        cuts = sorted(draw.sample(range(len(TEXT)), draw.randrange(0, 20)))
        pieces = [TEXT[a:b] for a, b in zip([0, *cuts], [*cuts, len(TEXT)], strict=True)]
        assert pushed(stop, pieces) == expected


def test_nothing_of_a_stop_string_is_shown_and_nothing_else_is_held_back() -> None:
    strings = StopStrings(["END"])
    assert [strings.push(piece) for piece in ("one", " E", "N", "x E", "ND two")] == ["one", " ", "", "ENx ", ""]
    assert strings.is_found


def test_every_path_ends_there_and_counts_what_was_generated(clip: Path) -> None:
    model = open_model("demo")
    request = Request((Turn("user", "Describe the video.", (read_frames(clip, Sampling(8)),)),))
    whole = join(model.stream(request))
    cut = whole.text.index(" moves")
    stopped = replace(request, stop=(" moves",))
    rows = joined(events(model, [stopped, request, stopped]))
    answers: list[Answer] = [
        join(model.stream(stopped)),
        *model.answer_all([stopped, stopped]),
        rows[0],
        rows[2],
    ]
    for answer in answers:
        assert (answer.text, answer.finish_reason) == (whole.text[:cut], "stop")
        assert 0 < answer.usage.generated_tokens < whole.usage.generated_tokens
    assert rows[1].text == whole.text
    assert join(model.stream(request)).text == whole.text
