"""Choosing among robots that a model was never trained on: each task in a fleet put together around its own robots."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from embervlm.data.robot_fleets import composed
from embervlm.data.sample import RobotSample
from embervlm.evaluation.metrics import leader_accuracy
from embervlm.fleet import Fleet, FleetError
from embervlm.selection import RobotSelector


def composed_fleets(samples: Sequence[RobotSample], fleet: Fleet, size: int, seed: int) -> list[Fleet]:
    """A fleet for each task: its own robots and others by lot, in an order by lot.

    None of the others may do the task's robots' work, as far as their fleet files say, nor do any two overlap.

    Args:
        samples: tasks of robots of ``fleet``.
        fleet: who the others are drawn from.
        size: robots in each fleet.
        seed: of the lots; a task's lot also depends on its id, but not on the other tasks.

    Raises:
        FleetError: a task's robot is not in ``fleet``, or there are not enough robots that fit.
    """
    fleets = []
    for sample in samples:
        rng = random.Random(f"{seed}/{sample.id}")
        robots = composed([fleet[name] for name in sample.selected], fleet.robots, size, rng)
        if len(robots) != size:
            raise FleetError(
                f"{sample.id}: a fleet of {size} robots cannot be put together around {', '.join(sample.selected)}:"
                f" {len(robots)} of {len(fleet)} robots can stand in it"
            )
        rng.shuffle(robots)
        fleets.append(Fleet(robots))
    return fleets


def score_in_fleets(
    selector: RobotSelector,
    samples: Sequence[RobotSample],
    fleets: Sequence[Fleet],
    progress: Callable[[int], None] | None = None,
) -> list[int]:
    """Whom the model would have lead each task.

    Args:
        selector: the model.
        samples: the tasks.
        fleets: of each task, as :func:`composed_fleets` makes them.
        progress: called with the number of tasks done, after each.

    Returns:
        for each task the place of the likeliest leader in its fleet.
    """
    picks = []
    for done, (sample, fleet) in enumerate(zip(samples, fleets, strict=True), 1):
        leading, _ = selector.score([sample.task], [sample.image], fleet)
        picks.append(int(leading[0].argmax()))
        if progress is not None:
            progress(done)
    return picks


def leaders_right(samples: Sequence[RobotSample], fleets: Sequence[Fleet], picks: Sequence[int]) -> float:
    """The share of tasks whose pick is one of their leaders."""
    picked = [fleet.names[pick] for fleet, pick in zip(fleets, picks, strict=True)]
    return leader_accuracy(picked, [sample.leaders for sample in samples])
