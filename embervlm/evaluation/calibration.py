"""Calibration: fits the confidences' temperature, the rule of who goes along and the prediction sets' thresholds.

On validation tasks, whose voices, where they have any, are not those of training, or on others (``recalibration``).
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from embervlm.data.sample import RobotSample
from embervlm.evaluation.metrics import exact_set, leader_accuracy, leader_shares
from embervlm.selection import (
    COVERAGE_PERCENTS,
    MIN_COVERAGE_TASKS,
    Calibration,
    RobotSelector,
    Scores,
    fleet_mark,
    set_scores,
)

#: Shares of a task's clauses in its member logits, and weights of how many go, among which the calibration chooses.
CLAUSE_SHARES = (0.0, 0.2, 0.35, 0.5, 0.65, 0.8)
COUNT_WEIGHTS = (0.0, 0.5, 1.0, 1.5, 2.0)


def calibrate(selector: RobotSelector, samples: Sequence[RobotSample]) -> tuple[Calibration, dict[str, Any]]:
    """Fit a selector's calibration, put it to use in it, and measure it on the same tasks.

    Returns:
        the calibration, and the accuracies on ``samples``.
    """
    scores = selector.score_clauses([s.task for s in samples], [s.image for s in samples])
    selector.calibration = fitted(selector, samples, scores)
    pictured = [s.image is not None for s in samples]
    selected = selector.selected_names(scores.leaders, selector.going(scores, pictured), pictured)
    measured: dict[str, Any] = {
        "tasks": len(samples),
        "leader_accuracy": leader_accuracy([robots[0] for robots in selected], [s.leaders for s in samples]),
        "exact_set": exact_set(selected, [s.selected for s in samples]),
    }
    return selector.calibration, measured


def fitted(
    selector: RobotSelector, samples: Sequence[RobotSample], scores: Scores, before: Calibration | None = None
) -> Calibration:
    """The calibration that fits some tasks, those with a picture apart where both kinds are enough for prediction sets.

    Args:
        selector: whose the scores are; its own calibration stays as it is.
        samples: the tasks.
        scores: theirs.
        before: a calibration of the same fleet, of which a kind of tasks keeps its part where it is not enough and the
            other is; without one all tasks are fitted together then.
    """
    kinds = [[place for place, s in enumerate(samples) if (s.image is not None) is kind] for kind in (False, True)]
    enough = [len(kind) >= MIN_COVERAGE_TASKS for kind in kinds]
    selector = copy.copy(selector)

    def part(pictured: bool) -> Calibration:
        if before is not None and not enough[pictured]:
            return replace(before.of(pictured), with_picture=None)
        return _fit(selector, [samples[place] for place in kinds[pictured]], scores.of(kinds[pictured]))

    if all(enough) or (before is not None and any(enough)):
        return replace(part(False), with_picture=part(True))
    return _fit(selector, samples, scores)


def _fit(selector: RobotSelector, samples: Sequence[RobotSample], scores: Scores) -> Calibration:
    names = selector.fleet.names
    labels = torch.from_numpy(leader_shares(samples, selector.fleet))
    temperature = fit_temperature(torch.from_numpy(scores.leaders), labels)
    leading = torch.softmax(torch.from_numpy(scores.leaders).double() / temperature, -1).tolist()
    right = [[place for place, name in enumerate(names) if name in s.leaders] for s in samples]
    fitted = Calibration(
        temperature,
        samples=len(samples),
        fleet=fleet_mark(selector.fleet),
        set_thresholds=fit_sets(leading, right),
        phases_alone=any(len(s.plan) > 1 and len(s.selected) == 1 for s in samples),
    )
    expected, unpictured = [s.selected for s in samples], [False] * len(samples)
    # One robot and several count the same, of which tasks seldom have as many.
    several = [len(robots) > 1 for robots in expected]
    kinds = [[place for place, each in enumerate(several) if each is kind] for kind in sorted(set(several))]
    # Ties go to the smaller weight and share, and to the threshold nearest to a half.
    thresholds = sorted((step / 20 for step in range(2, 19)), key=lambda threshold: abs(threshold - 0.5))
    best, rule = -1.0, fitted
    for weight, share in itertools.product(COUNT_WEIGHTS, CLAUSE_SHARES):
        selector.calibration = replace(fitted, clause_share=share, count_weight=weight)
        going = selector.going(scores, unpictured)
        for threshold in thresholds:
            selector.calibration = replace(selector.calibration, member_threshold=threshold)
            selected = selector.selected_names(scores.leaders, going, unpictured)
            each = [exact_set([selected[at] for at in kind], [expected[at] for at in kind]) for kind in kinds]
            reached = round(float(np.mean(each)), 9)
            if reached > best:
                best, rule = reached, selector.calibration
    return rule


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature from 0.05 to 20 that makes ``labels`` likeliest (Guo et al., arXiv 1706.04599).

    Args:
        logits: (tasks, robots).
        labels: (tasks, robots), rows summing to 1.
    """
    temperatures = torch.logspace(-1.3, 1.3, 200, dtype=torch.float64)
    losses = [F.cross_entropy(logits.double() / temperature, labels.double()) for temperature in temperatures]
    return round(float(temperatures[int(torch.stack(losses).argmin())]), 4)


def fit_sets(leading: Sequence[Sequence[float]], right: Sequence[Sequence[int]]) -> tuple[float, ...]:
    """The thresholds of prediction sets for each coverage of ``COVERAGE_PERCENTS``, by split conformal prediction.

    For a coverage c that is the ceil((n + 1) c)-th smallest score of n tasks' right leaders (Angelopoulos and Bates,
    arXiv 2107.07511, section 1); of several right ones the likeliest counts, as covering one of them is enough.

    Args:
        leading: (tasks, robots) the calibrated probability that each robot leads.
        right: the places of each task's right leaders.

    Returns:
        as ``Calibration.set_thresholds``; empty for fewer than ``MIN_COVERAGE_TASKS`` tasks, on which the coverage
        would vary by chance by more than 3 points (one standard deviation at 90%).
    """
    if len(right) < MIN_COVERAGE_TASKS:
        return ()
    scores = sorted(min(set_scores(row)[place] for place in places) for row, places in zip(leading, right, strict=True))
    ranks = [-(-(len(scores) + 1) * percent // 100) for percent in COVERAGE_PERCENTS]
    # Rounded up, so that the task of that rank stays inside.
    return tuple(min(1.0, math.ceil(scores[rank - 1] * 1e6) / 1e6) for rank in ranks)
