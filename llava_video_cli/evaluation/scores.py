"""Accuracy with an interval, by group and by length of the video, and the comparison of two results."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..errors import UsageError

_NORMAL_95 = 1.959964  # standard errors on each side of a 95 % interval
_TAIL = 0.025  # what lies on either side of it


@dataclass(frozen=True)
class Accuracy:
    """The share of right answers, from 0 to 1, and the ends of its 95 % interval.

    The standard error is clustered by video, as questions about one video are not independent (arXiv 2411.00640,
    equation 4): sqrt(sum over videos of (sum of its deviations)^2) / questions. It is 0 where all answers are right, or
    all are wrong; the interval is then the exact one of Clopper and Pearson for so many videos.
    """

    accuracy: float
    low: float
    high: float
    right: int
    questions: int
    videos: int

    def values(self) -> dict[str, Any]:
        """Return the fields as JSON values, the interval as a list."""
        values = asdict(self)
        return {"accuracy": self.accuracy, "interval_95": [values.pop("low"), values.pop("high")]} | values


def accuracy(rights: Sequence[bool], clusters: Sequence[Hashable]) -> Accuracy:
    """Return the accuracy of answers, of which each belongs to a cluster (its video); there must be one at least."""
    mean, error = clustered([float(right) for right in rights], clusters)
    low, high = max(0.0, mean - _NORMAL_95 * error), min(1.0, mean + _NORMAL_95 * error)
    videos, right = len(set(clusters)), sum(rights)
    if right == len(rights):
        low = _TAIL ** (1 / videos)
    elif not right:
        high = 1 - _TAIL ** (1 / videos)
    return Accuracy(mean, low, high, right, len(rights), videos)


def clustered(values: Sequence[float], clusters: Sequence[Hashable]) -> tuple[float, float]:
    """Return the mean of values, and its standard error clustered by `clusters`."""
    mean = math.fsum(values) / len(values)
    sums: dict[Hashable, float] = defaultdict(float)
    for value, cluster in zip(values, clusters, strict=True):
        sums[cluster] += value - mean
    return mean, math.sqrt(math.fsum(each * each for each in sums.values())) / len(values)


def by_group(rights: Sequence[bool], clusters: Sequence[Hashable], groups: Sequence[str]) -> dict[str, Accuracy]:
    """Return the accuracy of each group that has a name, in the order in which they come."""
    members: dict[str, list[int]] = defaultdict(list)
    for place, group in enumerate(groups):
        if group:
            members[group].append(place)
    return {
        group: accuracy([rights[place] for place in places], [clusters[place] for place in places])
        for group, places in members.items()
    }


@dataclass(frozen=True)
class Comparison:
    """Two results on the same questions: what the second one is better by, with its 95 % interval and p.

    p is two-sided, of the paired differences clustered by video. `first_only` and `second_only` are the questions that
    only one of them got right.
    """

    difference: float
    low: float
    high: float
    p: float
    questions: int
    first_only: int
    second_only: int
    first_accuracy: float
    second_accuracy: float


def compare(first: Mapping[str, tuple[bool, str]], second: Mapping[str, tuple[bool, str]]) -> Comparison:
    """Compare two results, each by question: whether it was right, and its video. Raises UsageError without a pair."""
    common = [question for question in first if question in second]
    if not common:
        raise UsageError("the two results have no question in common")
    pairs = [(first[question][0], second[question][0]) for question in common]
    clusters = [first[question][1] for question in common]
    mean, error = clustered([float(after) - float(before) for before, after in pairs], clusters)
    p = math.erfc(abs(mean) / error / math.sqrt(2)) if error else float(mean == 0)
    return Comparison(
        mean, mean - _NORMAL_95 * error, mean + _NORMAL_95 * error, p, len(pairs),
        sum(before and not after for before, after in pairs), sum(after and not before for before, after in pairs),
        _share(before for before, _ in pairs), _share(after for _, after in pairs),
    )  # fmt: skip


def _share(rights: Iterable[bool]) -> float:
    listed = list(rights)
    return sum(listed) / len(listed)
