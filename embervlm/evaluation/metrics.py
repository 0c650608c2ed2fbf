"""What is measured of selections: accuracies with their intervals, and what a picture or a text alone could reach."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

#: Bins of the expected calibration error (Guo et al., arXiv 1706.04599, use as many).
BINS = 15


@dataclass(frozen=True, slots=True)
class Figure:
    """A share, or a mean, and its 95% interval by the bootstrap.

    Attributes:
        value: what was measured.
        low, high: the interval's ends.
        tasks: over how many tasks.
    """

    value: float
    low: float
    high: float
    tasks: int


@dataclass(frozen=True, slots=True)
class RobotMeasures:
    """How well one robot is sent: of being among the robots that go, as leader or not.

    Attributes:
        robot: its name.
        precision: share of the tasks it was sent to where it should go; 0 where it was never sent.
        recall: share of the tasks where it should go that it was sent to; 0 where there are none.
        f1: the harmonic mean of both.
        tasks: where it should go.
    """

    robot: str
    precision: float
    recall: float
    f1: float
    tasks: int


@dataclass(frozen=True, slots=True)
class Bin:
    """Tasks whose confidence is above ``low`` and at most ``high``.

    Attributes:
        low, high: the bin's ends.
        confidence: the mean confidence in it; 0 where it is empty.
        accuracy: the share of right leaders in it; 0 where it is empty.
        tasks: how many it holds.
    """

    low: float
    high: float
    confidence: float
    accuracy: float
    tasks: int


@dataclass(frozen=True, slots=True)
class Measures:
    """How good predictions are.

    Attributes:
        leader_accuracy: share of tasks whose leading robot is among those that may lead.
        exact_set: share of tasks for which exactly the expected robots are sent.
        jaccard: mean of the robots in both sets over the robots in either.
        macro_f1: mean F1 of being sent, over the robots that should go to at least one task.
        robots: each robot's part, in the fleet's order.
        confusion: tasks by expected leader (row) and picked leader (column), in the fleet's order. A task that several
            robots may lead counts on the diagonal if one of them was picked, else in the row of its first.
        ece: expected calibration error of the leader's confidence, over ``BINS`` bins of equal width.
        reliability: those bins, empty ones too.
    """

    leader_accuracy: Figure
    exact_set: Figure
    jaccard: Figure
    macro_f1: Figure
    robots: list[RobotMeasures]
    confusion: list[list[int]]
    ece: Figure
    reliability: list[Bin]


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
