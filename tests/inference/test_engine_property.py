"""Requests that come and go at random get, each of them, the tokens that they get alone, in transformers' own way.

Hundreds here; `tests/benchmarks/engine_random.py` asks as many as is wanted.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from random_requests import OPTIONS, Reference, opened, run_cases
from scenes import checkpoint


@pytest.fixture(scope="module", params=["demo", "vicuna", "mistral"])
def reference(request: pytest.FixtureRequest, layouts: dict[str, Path]) -> tuple[Path, Reference]:
    folder = checkpoint(request.param, layouts)
    return folder, Reference(folder)


@pytest.mark.parametrize("options", OPTIONS)
def test_random_arrivals_get_the_documented_tokens(reference: tuple[Path, Reference], options: str) -> None:
    model = opened(reference[0], **OPTIONS[options]())
    checked, near = run_cases(model, reference[1], 12, seed=len(options))
    assert checked > 6 and near <= 2
