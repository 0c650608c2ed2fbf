"""What is measured of selections: accuracies with their intervals, and what a picture or a text alone could reach."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embervlm.data.sample import RobotSample
from embervlm.evaluation.predictions import Predictions
from embervlm.fleet import Fleet

Numbers = NDArray[np.float64]

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


@dataclass(frozen=True, slots=True)
class Coverage:
    """Of the prediction sets at one level.

    Attributes:
        level: the share of tasks whose set should have a right leader.
        covered: the share whose set has one.
        size: mean robots in a set.
        single: share of sets of one robot; at the others a person would be asked.
    """

    level: float
    covered: Figure
    size: Figure
    single: Figure


def right_leaders(picked: Sequence[str], leaders: Sequence[Sequence[str]]) -> list[bool]:
    """Whether each picked robot is among those that may lead."""
    return [name in names for name, names in zip(picked, leaders, strict=True)]


def leader_shares(samples: Sequence[RobotSample], fleet: Fleet) -> Numbers:
    """(tasks, robots): each right leader's share, rows summing to 1."""
    return np.array([[(name in s.leaders) / len(s.leaders) for name in fleet.names] for s in samples])


def leader_accuracy(picked: Sequence[str], leaders: Sequence[Sequence[str]]) -> float:
    """Share of tasks whose picked robot is among those that may lead."""
    return float(np.mean(right_leaders(picked, leaders)))


def exact_set(selected: Sequence[Iterable[str]], expected: Sequence[Iterable[str]]) -> float:
    """Share of tasks for which exactly the expected robots are sent."""
    return float(np.mean([set(s) == set(e) for s, e in zip(selected, expected, strict=True)]))


class Bootstrap:
    """Draws of tasks with replacement, for 95% intervals by the percentile bootstrap (Efron, 1979).

    Whole groups are drawn, since tasks about one picture are right or wrong together. Two figures of the same tasks
    and seed are of the same draws.

    Args:
        groups: which group each task belongs to.
        seed: of the draws.
        draws: how many.
    """

    def __init__(self, groups: Sequence[Hashable], *, seed: int = 0, draws: int = 2000) -> None:
        places: dict[Hashable, int] = {}
        self._place = np.array([places.setdefault(group, len(places)) for group in groups])
        self._groups, self._seed, self._draws = len(places), seed, draws

    def sums(self, values: Numbers) -> Numbers:
        """The sums of each draw, (draws, quantities), of what each task adds, (tasks, quantities)."""
        grouped = np.zeros((self._groups, values.shape[1]))
        np.add.at(grouped, self._place, values)
        rng = np.random.default_rng(self._seed)
        sums = np.empty((self._draws, values.shape[1]))
        for draw in range(self._draws):
            times = np.bincount(rng.integers(self._groups, size=self._groups), minlength=self._groups)
            sums[draw] = times @ grouped
        return sums

    def mean(self, values: Sequence[float] | Numbers) -> Figure:
        """The mean of one number a task, with its interval."""
        numbers = np.asarray(values, dtype=np.float64)
        sums = self.sums(np.stack([numbers, np.ones(len(numbers))], 1))
        return _figure(float(numbers.mean()), sums[:, 0] / sums[:, 1], len(numbers))


def groups_of(samples: Sequence[RobotSample]) -> list[str]:
    """What tasks are drawn together: those about one picture, else those of one family, else those of one text."""
    return [
        f"picture/{sample.image}" if sample.image else f"family/{sample.family}" if sample.family else sample.task
        for sample in samples
    ]


def measure(predictions: Predictions, samples: Sequence[RobotSample], *, seed: int = 0) -> Measures:
    """Measure predictions against the samples' labels.

    Args:
        predictions: one answer for each sample; at least one.
        samples: the tasks; their robots are among ``predictions.robots``.
        seed: of the intervals.
    """
    robots, count = predictions.robots, len(samples)
    right = np.array(right_leaders(predictions.leaders, [s.leaders for s in samples]), dtype=np.float64)
    sent = np.array([[name in names for name in robots] for names in predictions.selected])
    expected = np.array([[name in sample.selected for name in robots] for sample in samples])
    both, either = sent & expected, sent | expected
    confidence = predictions.confidences
    # A bin holds its upper end; what is 0 goes to the first.
    bins = np.maximum(np.ceil(confidence * BINS).astype(int) - 1, 0)
    in_bin = np.eye(BINS)[np.minimum(bins, BINS - 1)]  # (tasks, bins)
    each = {
        "tasks": np.ones((count, 1)),
        "right": right[:, None],
        "exact": (sent == expected).all(1, keepdims=True),
        "jaccard": both.sum(1, keepdims=True) / either.sum(1, keepdims=True),
        "hits": both,
        "sent": sent,
        "expected": expected,
        "bin tasks": in_bin,
        "bin confidence": in_bin * confidence[:, None],
        "bin right": in_bin * right[:, None],
    }
    values = np.concatenate([part.astype(np.float64) for part in each.values()], 1)
    sums = np.concatenate([values.sum(0, keepdims=True), Bootstrap(groups_of(samples), seed=seed).sums(values)])
    ends = np.cumsum([part.shape[1] for part in each.values()])[:-1]
    # Each (1 + draws, quantities): the tasks as they are, then the draws.
    of = dict(zip(each, np.split(sums, ends, axis=1), strict=True))

    def figure(per_draw: Numbers) -> Figure:
        return _figure(float(per_draw[0]), per_draw[1:], count)

    f1 = _f1(of["hits"], of["sent"], of["expected"])
    asked = expected.any(0)
    distance = np.abs(of["bin confidence"] - of["bin right"]).sum(1, keepdims=True)
    return Measures(
        leader_accuracy=figure((of["right"] / of["tasks"])[:, 0]),
        exact_set=figure((of["exact"] / of["tasks"])[:, 0]),
        jaccard=figure((of["jaccard"] / of["tasks"])[:, 0]),
        macro_f1=figure(f1[:, asked].mean(1)),
        robots=[
            RobotMeasures(
                robot=name,
                precision=_share(of["hits"][0, place], of["sent"][0, place]),
                recall=_share(of["hits"][0, place], of["expected"][0, place]),
                f1=float(f1[0, place]),
                tasks=int(of["expected"][0, place]),
            )
            for place, name in enumerate(robots)
        ],
        confusion=confusion(predictions.leaders, [s.leaders for s in samples], robots),
        ece=figure((distance / of["tasks"])[:, 0]),
        reliability=[
            Bin(
                low=place / BINS,
                high=(place + 1) / BINS,
                confidence=_share(of["bin confidence"][0, place], of["bin tasks"][0, place]),
                accuracy=_share(of["bin right"][0, place], of["bin tasks"][0, place]),
                tasks=int(of["bin tasks"][0, place]),
            )
            for place in range(BINS)
        ],
    )


def measure_coverage(
    sets: Sequence[Sequence[str]], samples: Sequence[RobotSample], level: float, *, seed: int = 0
) -> Coverage:
    """Measure prediction sets against the samples' labels.

    Args:
        sets: one for each sample; at least one.
        samples: the tasks.
        level: what was asked of the sets.
        seed: of the intervals.
    """
    draws = Bootstrap(groups_of(samples), seed=seed)
    return Coverage(
        level=level,
        covered=draws.mean([bool(set(names) & set(s.leaders)) for names, s in zip(sets, samples, strict=True)]),
        size=draws.mean([len(names) for names in sets]),
        single=draws.mean([len(names) == 1 for names in sets]),
    )


def confusion(picked: Sequence[str], leaders: Sequence[Sequence[str]], robots: Sequence[str]) -> list[list[int]]:
    """Tasks by expected (row) and picked leader (column); see :class:`Measures`."""
    counts = [[0] * len(robots) for _ in robots]
    for name, names in zip(picked, leaders, strict=True):
        expected = name if name in names else names[0]
        counts[robots.index(expected)][robots.index(name)] += 1
    return counts


def _figure(value: float, draws: Numbers, tasks: int) -> Figure:
    low, high = np.quantile(draws, (0.025, 0.975))
    return Figure(value, float(low), float(high), tasks)


def _share(part: float, whole: float) -> float:
    return float(part / whole) if whole else 0.0


def _f1(hits: Numbers, sent: Numbers, expected: Numbers) -> Numbers:
    """F1 of each entry; 0 where there was nothing to find and nothing was sent."""
    result: Numbers = 2 * hits / np.maximum(sent + expected, 1)
    return result


def best_possible(keys: Sequence[Hashable], leaders: Sequence[Sequence[str]]) -> float:
    """The highest accuracy that anyone could reach who sees only ``keys``, knowing these very labels.

    For each key the robot is counted that is right most often. With texts as keys this bounds every model without
    eyes, with pictures as keys every model that does not read.
    """
    by_key: dict[Hashable, Counter[str]] = defaultdict(Counter)
    for key, names in zip(keys, leaders, strict=True):
        by_key[key].update(set(names))
    return sum(max(counts.values()) for counts in by_key.values()) / len(leaders)
