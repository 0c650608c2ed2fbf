"""Predictions: what a selector or a baseline answers to tasks, in the one form that the metrics measure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from embervlm.runtime.base import Floats
from embervlm.selection import Picture, RobotSelector


@dataclass(frozen=True, slots=True)
class Predictions:
    """The answers to some tasks, in the tasks' order.

    Attributes:
        robots: the fleet's names, in its order.
        leading: (tasks, robots), the probability that each robot is the right one to lead; rows sum to 1.
        selected: for each task the robots to send, the leader first.
    """

    robots: tuple[str, ...]
    leading: NDArray[np.float64]
    selected: list[list[str]]

    def __len__(self) -> int:
        return len(self.selected)

    @property
    def leaders(self) -> list[str]:
        """The robot that leads each task."""
        return [names[0] for names in self.selected]

    @property
    def confidences(self) -> NDArray[np.float64]:
        """(tasks,), the probability that the picked leader is right."""
        places = [self.robots.index(name) for name in self.leaders]
        picked: NDArray[np.float64] = self.leading[np.arange(len(places)), places]
        return picked

    def of(self, places: Sequence[int]) -> Predictions:
        """The answers at these places, in their order."""
        return Predictions(self.robots, self.leading[list(places)], [self.selected[place] for place in places])


def predict(
    selector: RobotSelector,
    tasks: Sequence[str],
    images: Sequence[Picture | None],
    progress: Callable[[int], None] | None = None,
) -> Predictions:
    """What a selector answers over its own fleet, without any text being written.

    Args:
        selector: the model, with its calibration.
        tasks: the tasks' texts, at least one.
        images: a picture, or None, for each.
        progress: called with the number of tasks done.
    """
    leaders, members = selector.score(tasks, images, progress=progress)
    return of_logits(selector, leaders, members, [image is not None for image in images])


def of_logits(selector: RobotSelector, leaders: Floats, members: Floats, pictured: Sequence[bool]) -> Predictions:
    """What a selector answers where its logits are known already.

    Args:
        selector: the model, with its calibration.
        leaders, members: (tasks, robots) each, as :meth:`RobotSelector.score` gives them.
        pictured: whether each task has a picture.
    """
    selected = selector.selected_names(leaders, members, pictured)
    return Predictions(selector.fleet.names, selector.leading(leaders, pictured), selected)


def joined(parts: Sequence[Predictions]) -> Predictions:
    """The answers of several parts, one after the other; all of one fleet."""
    selected = [names for part in parts for names in part.selected]
    return Predictions(parts[0].robots, np.concatenate([part.leading for part in parts]), selected)
