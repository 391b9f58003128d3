"""Requests that come and go at random get, each of them, the tokens that they get alone, in transformers' own way.

Hundreds here; `tests/benchmarks/engine_random.py` asks as many as is wanted.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from random_requests import OPTIONS, Reference, opened, run_cases
from scenes import checkpoint


@pytest.fixture(scope="module")
def references(layouts: dict[str, Path]) -> Callable[[str], tuple[Path, Reference]]:
    @cache
    def reference(name: str) -> tuple[Path, Reference]:
        folder = checkpoint(name, layouts)
        return folder, Reference(folder)

    return reference


# By default each way to answer on two checkpoints.
QUICK = {("vicuna", "as it is"), ("vicuna", "captured"), ("mistral", "many conversations"), ("mistral", "no reuse")}
RUNS = [
    pytest.param(name, way, marks=() if name == "demo" or (name, way) in QUICK else pytest.mark.slow)
    for name in ("demo", "vicuna", "mistral")
    for way in OPTIONS
]


@pytest.mark.parametrize(("name", "options"), RUNS)
def test_random_arrivals_get_the_documented_tokens(
    name: str, options: str, references: Callable[[str], tuple[Path, Reference]]
) -> None:
    folder, reference = references(name)
    model = opened(folder, **OPTIONS[options]())
    checked, near = run_cases(model, reference, 12, seed=len(options))
    assert checked > 6 and near <= 2
