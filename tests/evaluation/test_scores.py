"""Accuracies, intervals and comparisons equal a few lines of numpy."""

from __future__ import annotations

import numpy as np
import pytest

from llava_video_cli import UsageError
from llava_video_cli.evaluation.scores import accuracy, by_group, compare


def by_numpy(values: np.ndarray, clusters: np.ndarray) -> tuple[float, float]:
    deviations = values - values.mean()
    sums = np.array([deviations[clusters == cluster].sum() for cluster in np.unique(clusters)])
    return float(values.mean()), float(np.sqrt((sums**2).sum()) / len(values))


@pytest.mark.parametrize("seed", range(5))
def test_the_interval_is_clustered_by_video(seed: int) -> None:
    rng = np.random.default_rng(seed)
    videos = rng.integers(0, 25, 150)
    easy = rng.random(25)
    rights = rng.random(150) < easy[videos]  # those about one video are alike
    score = accuracy(list(map(bool, rights)), list(map(str, videos)))
    mean, error = by_numpy(rights.astype(float), videos)
    assert score.accuracy == pytest.approx(mean) and score.high - mean == pytest.approx(1.959964 * error)
    assert mean - score.low == pytest.approx(1.959964 * error)
    assert (score.right, score.questions, score.videos) == (rights.sum(), 150, len(set(videos)))
    alone = accuracy(list(map(bool, rights)), range(150))
    assert score.high - score.low > alone.high - alone.low, "fewer videos tell less than as many questions"


def test_where_all_are_right_the_interval_is_not_empty() -> None:
    score = accuracy([True] * 40, [str(number // 2) for number in range(40)])
    assert score.accuracy == score.high == 1 and score.low == pytest.approx(0.025 ** (1 / 20))
    assert accuracy([False] * 4, range(4)).high == pytest.approx(1 - 0.025 ** (1 / 4))


def test_groups_have_their_own() -> None:
    scores = by_group([True, False, True, True], "aabb", ["x", "y", "", "x"])
    assert {name: (each.right, each.questions, each.videos) for name, each in scores.items()} == {
        "x": (2, 2, 2), "y": (0, 1, 1),
    }  # fmt: skip


def test_two_results_are_compared_by_pairs() -> None:
    rng = np.random.default_rng(1)
    before, after = rng.random(200) < 0.5, rng.random(200) < 0.65
    first = {str(number): (bool(right), f"v{number // 4}") for number, right in enumerate(before)}
    second = {str(number): (bool(right), f"v{number // 4}") for number, right in enumerate(after)} | {"x": (True, "v")}
    found = compare(first, second)
    mean, error = by_numpy(after.astype(float) - before, np.arange(200) // 4)
    assert found.difference == pytest.approx(mean) and found.high - found.low == pytest.approx(2 * 1.959964 * error)
    assert (found.first_only, found.second_only) == ((before & ~after).sum(), (after & ~before).sum())
    assert found.questions == 200 and 0 < found.p < 0.05
    same = compare(first, first)
    assert (same.difference, same.p) == (0, 1)
    right, wrong = (dict.fromkeys("ab", (is_right, "v")) for is_right in (True, False))
    always = compare(wrong, right)
    assert (always.difference, always.low, always.p) == (1, 1, 0), "nothing varies"
    with pytest.raises(UsageError, match="no question in common"):
        compare(first, {"y": (True, "v")})
