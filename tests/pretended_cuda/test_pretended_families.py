"""Other families on a pretended card answer as on the CPU; nothing is left on the wrong device."""

from __future__ import annotations

from pathlib import Path

import pytest
from family_checkpoints import make_family
from pretended_device import Card, pretend
from scenes import OTHER, STILL, VIDEO

from llava_video_cli import Generation, Loading, Request, Turn, join, open_model

pytestmark = pytest.mark.cuda_pretended

GENERATION = Generation(max_new_tokens=4)
REQUESTS = [
    Request((Turn("user", "What happens?", (VIDEO,)),), GENERATION),
    Request((Turn("user", "Why is that?", (VIDEO,)),), GENERATION),
    Request((Turn("user", "Which?", (STILL, OTHER)),), GENERATION),
    Request((Turn("user", "Who are you?"),), Generation(choices=("nobody", "a model"))),
]


# By default those of whose layers and positions the others have some.
@pytest.mark.parametrize(
    "name",
    ["qwen3_5", "gemma4", *(pytest.param(name, marks=pytest.mark.slow) for name in ("qwen3_vl", "llava_onevision"))],
)
def test_answers_are_those_of_the_cpu(name: str, tmp_path: Path) -> None:
    folder = str(make_family(tmp_path / name, name))
    cpu = open_model(folder, Loading(device="cpu", dtype="float32"))
    wanted = [join(cpu.stream(request)).text for request in REQUESTS]
    with pretend(Card()):
        model = open_model(folder, Loading(device="cuda", dtype="float32"))
        assert [join(model.stream(request)).text for request in REQUESTS] == wanted
        assert [answer.text for answer in model.answer_all(REQUESTS)] == wanted
