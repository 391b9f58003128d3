"""On a real card: the same greedy answers as on the CPU, and no NaN in the card's own precision. `pytest -m gpu`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from scenes import OTHER, STILL, VIDEO, checkpoint

from llava_video_cli import Frames, Generation, Loading, Picture, Request, Turn, join, open_model
from llava_video_cli.model import Quantize

pytestmark = pytest.mark.gpu
MEDIA: list[tuple[Frames | Picture, ...]] = [(VIDEO,), (OTHER,), (STILL,), (STILL, VIDEO)]
# Two of each length: their steps are captured, and rows leave a batch before others.
REQUESTS = [
    Request((Turn("user", text, media),), Generation(max_new_tokens=tokens))
    for text, tokens in (("What happens?", 60), ("Why?", 24))
    for media in MEDIA
]


@pytest.fixture(autouse=True)
def card() -> None:
    if not torch.cuda.is_available():
        pytest.skip("there is no GPU here that torch can use")


@pytest.mark.parametrize("name", ["demo", "vicuna", "mistral", "yi"])
def test_answers_in_float32_are_those_of_the_cpu(name: str, layouts: dict[str, Path]) -> None:
    """Twice: the second time, what was captured is used again."""
    folder = str(checkpoint(name, layouts))
    cpu, card = (open_model(folder, Loading(device=device, dtype="float32")) for device in ("cpu", "cuda"))
    wanted = [join(cpu.stream(request)).text for request in REQUESTS]
    for _ in range(2):
        assert [join(card.stream(request)).text for request in REQUESTS] == wanted
        assert [answer.text for answer in card.answer_all(REQUESTS)] == wanted


@pytest.mark.parametrize("quantize", ["none", "8bit", "4bit"])
def test_answers_in_the_precision_of_the_card(quantize: Quantize) -> None:
    card = open_model("demo", Loading(device="cuda", quantize=quantize))  # a NaN would raise
    answers = card.answer_all(REQUESTS)
    assert all(answer.text and answer.usage.peak_memory_bytes > 0 for answer in answers)
    assert join(card.stream(REQUESTS[0])).text
