"""What is measured of selections: accuracies with their intervals, and what a picture or a text alone could reach."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence

import numpy as np


def right_leaders(picked: Sequence[str], leaders: Sequence[Sequence[str]]) -> list[bool]:
    """Whether each picked robot is among those that may lead."""
    return [name in names for name, names in zip(picked, leaders, strict=True)]


def leader_accuracy(picked: Sequence[str], leaders: Sequence[Sequence[str]]) -> float:
    """Share of tasks whose picked robot is among those that may lead."""
    return float(np.mean(right_leaders(picked, leaders)))


def exact_set(selected: Sequence[Iterable[str]], expected: Sequence[Iterable[str]]) -> float:
    """Share of tasks for which exactly the expected robots are sent."""
    return float(np.mean([set(s) == set(e) for s, e in zip(selected, expected, strict=True)]))


def bootstrap_interval(
    right: Sequence[bool] | np.ndarray, groups: Sequence[Hashable], *, seed: int = 0, draws: int = 2000
) -> tuple[float, float]:
    """The 95% interval of a mean by the percentile bootstrap (Efron, 1979), drawing whole groups.

    Args:
        right: one outcome a task.
        groups: which tasks belong together, such as those about one picture; they are drawn together.
        seed: of the draws.
        draws: how many.
    """
    sums: dict[Hashable, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for outcome, group in zip(right, groups, strict=True):
        sums[group][0] += float(outcome)
        sums[group][1] += 1.0
    totals = np.array(list(sums.values()))  # (groups, 2): right, all
    drawn = np.random.default_rng(seed).integers(len(totals), size=(draws, len(totals)))
    means = totals[drawn, 0].sum(1) / totals[drawn, 1].sum(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


def best_possible(keys: Sequence[Hashable], leaders: Sequence[Sequence[str]]) -> float:
    """The highest accuracy that anyone could reach who sees only ``keys``, knowing these very labels.

    For each key the robot is counted that is right most often. With texts as keys this bounds every model without
    eyes, with pictures as keys every model that does not read.
    """
    by_key: dict[Hashable, Counter[str]] = defaultdict(Counter)
    for key, names in zip(keys, leaders, strict=True):
        by_key[key].update(set(names))
    return sum(max(counts.values()) for counts in by_key.values()) / len(leaders)
