"""The figures of predictions, against numbers worked out by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from embervlm.data.sample import RobotSample
from embervlm.evaluation.metrics import (
    BINS,
    Bootstrap,
    best_possible,
    confusion,
    exact_set,
    groups_of,
    leader_accuracy,
    measure,
)
from embervlm.evaluation.predictions import Predictions, joined

ROBOTS = ("A", "B", "C")


def sample(leaders: str, selected: str, number: int = 0, image: str | None = None) -> RobotSample:
    return RobotSample(
        id=str(number),
        task=f"Task {number}",
        leaders=tuple(leaders),
        selected=tuple(selected),
        image=Path(image) if image else None,
    )


#: Right leader and set; right leader, one too many; wrong leader; one of two right leaders, one robot missing.
SAMPLES = [sample("A", "A", 0), sample("A", "A", 1), sample("B", "AB", 2), sample("AB", "AB", 3)]
PREDICTIONS = Predictions(
    ROBOTS,
    np.array([[0.9, 0.1, 0.0], [0.8, 0.1, 0.1], [0.5, 0.3, 0.2], [0.2, 0.6, 0.2]]),
    [["A"], ["A", "B"], ["A"], ["B"]],
)


def test_shares_of_plain_lists() -> None:
    assert leader_accuracy(["A", "B"], [("A",), ("A", "C")]) == 0.5
    assert exact_set([["B", "A"], ["A"]], [("A", "B"), ("A", "B")]) == 0.5


def test_measures_by_hand() -> None:
    found = measure(PREDICTIONS, SAMPLES)
    assert found.leader_accuracy.value == 0.75 and found.leader_accuracy.tasks == 4
    assert found.exact_set.value == 0.25
    assert found.jaccard.value == pytest.approx((1 + 1 / 2 + 1 / 2 + 1 / 2) / 4)
    # A: sent three times, rightly each time, and missed once. B: sent twice, once rightly, and missed once.
    a, b, c = found.robots
    assert (a.robot, a.precision, a.recall, a.f1, a.tasks) == ("A", 1.0, 0.75, pytest.approx(6 / 7), 4)
    assert (b.robot, b.precision, b.recall, b.f1, b.tasks) == ("B", 0.5, 0.5, 0.5, 2)
    assert (c.precision, c.recall, c.f1, c.tasks) == (0.0, 0.0, 0.0, 0)
    # C, which never should go, has no part in the mean.
    assert found.macro_f1.value == pytest.approx((6 / 7 + 0.5) / 2)
    assert found.confusion == [[2, 0, 0], [1, 1, 0], [0, 0, 0]]


def test_calibration_error_by_hand() -> None:
    found = measure(PREDICTIONS, SAMPLES)
    # Four confidences in four bins: 0.9 and 0.8 and 0.6 right, 0.5 wrong.
    assert found.ece.value == pytest.approx((0.1 + 0.2 + 0.5 + 0.4) / 4)
    assert len(found.reliability) == BINS and sum(each.tasks for each in found.reliability) == 4
    filled = {round(each.confidence, 6): each for each in found.reliability if each.tasks}
    assert {confidence: each.accuracy for confidence, each in filled.items()} == {0.5: 0, 0.6: 1, 0.8: 1, 0.9: 1}
    for confidence, each in filled.items():
        assert each.low < confidence <= each.high


def test_a_confidence_of_one_and_one_on_an_edge_have_a_bin() -> None:
    predictions = Predictions(("A", "B"), np.array([[1.0, 0.0], [0.6, 0.4]]), [["A"], ["A"]])
    found = measure(predictions, [sample("A", "A", 0), sample("A", "A", 1)])
    assert found.reliability[BINS - 1].tasks == 1 and found.reliability[8].tasks == 1
    assert found.ece.value == pytest.approx(0.2)


def test_perfect_predictions_have_no_width() -> None:
    predictions = Predictions(("A", "B"), np.eye(2), [["A"], ["B"]])
    found = measure(predictions, [sample("A", "A", 0), sample("B", "B", 1)])
    for figure in (found.leader_accuracy, found.exact_set, found.jaccard):
        assert (figure.value, figure.low, figure.high) == (1.0, 1.0, 1.0)
    assert found.ece.value == 0.0


def test_intervals_hold_the_value_and_follow_the_seed() -> None:
    rng = np.random.default_rng(1)
    right = (rng.random(400) < 0.7).astype(float)
    figure = Bootstrap(range(400)).mean(right)
    # The normal approximation: 1.96 standard errors to each side.
    half = 1.96 * np.sqrt(right.mean() * (1 - right.mean()) / 400)
    assert figure.low == pytest.approx(figure.value - half, abs=0.01)
    assert figure.high == pytest.approx(figure.value + half, abs=0.01)
    assert Bootstrap(range(400)).mean(right) == figure
    assert Bootstrap(range(400), seed=1).mean(right) != figure


def test_tasks_of_one_group_are_drawn_together() -> None:
    right = [1.0, 1.0, 0.0, 0.0] * 25
    alone = Bootstrap(range(100)).mean(right)
    together = Bootstrap([place // 2 for place in range(100)]).mean(right)
    assert alone.value == together.value == 0.5
    assert together.high - together.low > 1.2 * (alone.high - alone.low)


def test_sums_of_a_draw_are_of_the_same_draw() -> None:
    values = np.array([[1.0, 2.0], [3.0, 6.0], [5.0, 10.0]])
    sums = Bootstrap(["x", "y", "z"], draws=50).sums(values)
    assert sums.shape == (50, 2)
    assert (sums[:, 1] == 2 * sums[:, 0]).all()


def test_what_is_drawn_together() -> None:
    with_family = RobotSample("1", "Dig.", ("A",), ("A",), family="f")
    assert groups_of([sample("A", "A", 7, "a.png"), with_family, sample("A", "A", 3)]) == [
        "picture/a.png",
        "family/f",
        "Task 3",
    ]


def test_confusion_of_several_right_leaders() -> None:
    # Hit: on the diagonal. Missed: in the row of the first.
    assert confusion(["B", "C"], [("A", "B"), ("A", "B")], ROBOTS) == [[0, 0, 1], [0, 1, 0], [0, 0, 0]]


def test_bounds_by_hand() -> None:
    assert best_possible(["x", "x", "x", "y"], [("A",), ("A", "B"), ("B",), ("C",)]) == 0.75


def test_predictions_of_places_and_joined() -> None:
    first, last = PREDICTIONS.of([0]), PREDICTIONS.of([3, 1])
    assert last.selected == [["B"], ["A", "B"]] and last.leaders == ["B", "A"]
    assert last.confidences.tolist() == [0.6, 0.8]
    whole = joined([first, last])
    assert len(whole) == 3 and whole.leading.tolist() == PREDICTIONS.leading[[0, 3, 1]].tolist()
