"""Folds for cross-validation: parts of the tasks such that no text and no family stands in two of them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from embervlm.data.robot_loader import linked_groups
from embervlm.data.sample import DataError, RobotSample, normalise_task


def folds(samples: Sequence[RobotSample], k: int, seed: int = 0) -> list[list[int]]:
    """The places of the samples in ``k`` parts of nearly equal size, each part in the samples' order.

    Tasks of one normalised text or of one family stay together. The groups are put in the order of their seeded
    hashes and each goes to the part that is smallest so far, so that the same tasks and seed give the same parts in
    every process and in whatever order the tasks come.

    Raises:
        DataError: fewer groups than parts, or fewer than two parts.
    """
    by_root: dict[str, list[int]] = {}
    roots = linked_groups(samples)
    for place, sample in enumerate(samples):
        by_root.setdefault(roots[normalise_task(sample.task)], []).append(place)
    if not 2 <= k <= len(by_root):
        raise DataError(f"{k} folds of {len(by_root)} different task texts; expected 2 to as many as there are texts")
    # A group goes by its first text, since the name of its root depends on the samples' order.
    names = {min(normalise_task(samples[place].task) for place in group): group for group in by_root.values()}
    parts: list[list[int]] = [[] for _ in range(k)]
    for name in sorted(names, key=lambda name: hashlib.sha256(f"{seed}/{name}".encode()).digest()):
        min(parts, key=len).extend(names[name])
    return [sorted(part) for part in parts]


def apart_from(train: Sequence[RobotSample], measured: Sequence[RobotSample]) -> list[RobotSample]:
    """The training tasks that share neither text nor family with a measured one."""
    roots = linked_groups([*train, *measured])
    taken = {roots[normalise_task(sample.task)] for sample in measured}
    return [sample for sample in train if roots[normalise_task(sample.task)] not in taken]
