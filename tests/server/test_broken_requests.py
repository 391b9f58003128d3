"""A sample of the requests of broken_requests.py, and all those for forbidden files and hosts."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import TypeAlias

import pytest
from broken_requests import heads, hosts, paths, request, run
from grounds import Case, Grounds, grounds

from llava_video_cli import open_model

Kind: TypeAlias = Callable[[Grounds, random.Random], list[Case]]


@pytest.fixture(scope="module")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grounds]:
    with grounds(open_model("demo"), tmp_path_factory.mktemp("grounds")) as ready:
        yield ready


@pytest.mark.parametrize("count", [40, pytest.param(300, marks=pytest.mark.slow)])
def test_each_broken_request_gets_its_4xx_and_the_next_request_its_answer(ground: Grounds, count: int) -> None:
    lines: list[str] = []
    assert run(ground, count, 1, lines.append) == 0, lines


@pytest.mark.parametrize("kind", [paths, heads, hosts])
def test_each_broken_head_path_and_host(ground: Grounds, kind: Kind) -> None:
    faults = [ground.check(case) for case in kind(ground, random.Random(2))]
    assert [fault for fault in faults if fault] == []
    assert ground.answers()


def test_the_check_reports_a_wrong_status(ground: Grounds) -> None:
    good = request(b'{"messages":[{"role":"user","content":"?"}],"max_tokens":1}')
    assert ground.check(Case("good", [good])) == "good: 200, not [400]"
    assert ground.check(Case("good", [good], (401,), key=True)) is None
    assert ground.answers()
