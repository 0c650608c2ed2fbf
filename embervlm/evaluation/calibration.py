"""Calibration: fits the temperature of the confidences and the threshold of going along, on validation tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from embervlm.data.sample import RobotSample
from embervlm.evaluation.metrics import exact_set, leader_accuracy
from embervlm.selection import Calibration, RobotSelector


def calibrate(selector: RobotSelector, samples: Sequence[RobotSample]) -> tuple[Calibration, dict[str, Any]]:
    """Fit a selector's calibration, put it to use in it, and measure it on the same tasks.

    Returns:
        the calibration, and the accuracies on ``samples``.
    """
    leaders, members = selector.score([s.task for s in samples], [s.image for s in samples])
    names = selector.fleet.names
    labels = torch.tensor([[(n in s.leaders) / len(s.leaders) for n in names] for s in samples])
    temperature = fit_temperature(leaders, labels)
    selector.calibration = Calibration(temperature, 0.5, len(samples))
    expected = [s.selected for s in samples]
    # Ties go to the threshold nearest to a half.
    candidates = sorted((step / 20 for step in range(2, 19)), key=lambda threshold: abs(threshold - 0.5))
    best, threshold = -1.0, 0.5
    for candidate in candidates:
        selector.calibration = Calibration(temperature, candidate, len(samples))
        reached = exact_set(selector.selected_names(leaders, members), expected)
        if reached > best:
            best, threshold = reached, candidate
    selector.calibration = Calibration(temperature, threshold, len(samples))
    selected = selector.selected_names(leaders, members)
    measured = {
        "tasks": len(samples),
        "leader_accuracy": leader_accuracy([robots[0] for robots in selected], [s.leaders for s in samples]),
        "exact_set": exact_set(selected, expected),
        "temperature": temperature,
        "member_threshold": threshold,
    }
    return selector.calibration, measured


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature from 0.05 to 20 that makes ``labels`` likeliest (Guo et al., arXiv 1706.04599).

    Args:
        logits: (tasks, robots).
        labels: (tasks, robots), rows summing to 1.
    """
    temperatures = torch.logspace(-1.3, 1.3, 200, dtype=torch.float64)
    losses = [F.cross_entropy(logits.double() / temperature, labels.double()) for temperature in temperatures]
    return round(float(temperatures[int(torch.stack(losses).argmin())]), 4)
