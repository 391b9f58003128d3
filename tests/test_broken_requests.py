"""A hundred of the requests of broken_requests.py, and that it would notice a server that gives way."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from broken_requests import request, run
from grounds import Case, Grounds, grounds

from llava_video_cli import open_model


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grounds]:
    with grounds(open_model("demo"), tmp_path_factory.mktemp("grounds")) as ready:
        yield ready


def test_each_broken_request_gets_its_4xx_and_the_next_its_answer(ground: Grounds) -> None:
    said: list[str] = []
    assert run(ground, 100, 1, said.append) == 0, said


def test_a_good_request_would_be_noticed(ground: Grounds) -> None:
    good = request(b'{"messages":[{"role":"user","content":"?"}],"max_tokens":1}')
    assert ground.check(Case("good", [good])) == "good: 200, not [400]"
    assert ground.check(Case("good", [good], (401,), key=True)) is None
    assert ground.answers()
