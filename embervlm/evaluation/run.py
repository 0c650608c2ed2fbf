"""``embervlm evaluate``: measures a model on robot tasks it was not trained on, and whether it looks at all."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from embervlm.data.robot_loader import read_robot_tasks
from embervlm.data.sample import DataError, RobotSample, normalise_task
from embervlm.evaluation.metrics import best_possible, bootstrap_interval, right_leaders
from embervlm.selection import Picture, RobotSelector

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Measured:
    """A share and its 95% interval, drawn by picture (by task where there are none)."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Report:
    """What was measured on one set of tasks.

    Attributes:
        tasks, pictures: how many tasks, and how many different pictures they are about.
        leader_accuracy: the leading robot is right, each task with its own picture.
        exact_set: exactly the right robots are sent.
        shuffled_pictures, no_picture: leader accuracy with another task's picture, and with none.
        text_only_bound, picture_only_bound: what a model could reach at best that sees only the text, or only the
            picture, of these tasks; the picture's is missing where no task has one.
        majority: leader accuracy of always answering the robot that is right most often here.
    """

    tasks: int
    pictures: int
    leader_accuracy: Measured
    exact_set: Measured
    shuffled_pictures: Measured | None
    no_picture: Measured
    text_only_bound: float
    picture_only_bound: float | None
    majority: float

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON has it."""
        return asdict(self)


def evaluate(selector: RobotSelector, data: Path, *, seed: int = 0, progress: Progress | None = None) -> Report:
    """Measure ``selector`` on the robot tasks of a folder or file, which must not have been trained on.

    Args:
        selector: the model.
        data: robot files, as stage 3 reads them.
        seed: of the shuffling and the intervals.
        progress: called with what is being measured, tasks done and tasks in all.

    Raises:
        DataError, FleetError: the data cannot be read, or name a robot that the selector's fleet does not have.
    """
    samples = read_robot_tasks(data, selector.fleet)
    if not samples:
        raise DataError(f"{data}: no robot tasks to measure")
    tasks, leaders = [s.task for s in samples], [s.leaders for s in samples]
    pictures: list[Picture | None] = [s.image for s in samples]
    groups = [str(s.image) if s.image else f"task {i}" for i, s in enumerate(samples)]

    def selected_with(what: str, images: Sequence[Picture | None]) -> list[list[str]]:
        leader, member = selector.score(
            tasks, images, progress=(lambda done: progress(what, done, len(tasks))) if progress else None
        )
        return selector.selected_names(leader, member)

    def measured(right: Sequence[bool]) -> Measured:
        return Measured(sum(right) / len(right), *bootstrap_interval(right, groups, seed=seed))

    def leading(selected: Sequence[Sequence[str]]) -> Measured:
        return measured(right_leaders([names[0] for names in selected], leaders))

    has_pictures = any(picture is not None for picture in pictures)
    own = selected_with("own pictures", pictures) if has_pictures else None
    without = selected_with("no picture", [None] * len(samples))
    shuffled = None
    if has_pictures and len(set(groups)) > 1:
        shuffled = leading(selected_with("shuffled pictures", shuffled_pictures(samples, seed)))
    best = own or without
    robots = [name for name in selector.fleet.names if any(name in names for names in leaders)]
    return Report(
        tasks=len(samples),
        pictures=len({picture for picture in pictures if picture is not None}),
        leader_accuracy=leading(best),
        exact_set=measured([set(s) == set(e.selected) for s, e in zip(best, samples, strict=True)]),
        shuffled_pictures=shuffled,
        no_picture=leading(without),
        text_only_bound=best_possible([normalise_task(task) for task in tasks], leaders),
        picture_only_bound=best_possible(groups, leaders) if has_pictures else None,
        majority=max(sum(name in names for names in leaders) / len(leaders) for name in robots),
    )


def shuffled_pictures(samples: Sequence[RobotSample], seed: int) -> list[Picture | None]:
    """For each task the picture of another, never its own: the pictures keep how often each occurs.

    Tasks are put in a random order, those of one picture together, and each takes the picture of the task that
    stands the size of the largest such group further on.
    """
    rng = random.Random(seed)
    places: dict[str, list[int]] = {}
    for index, sample in enumerate(samples):
        places.setdefault(str(sample.image), []).append(index)
    groups = list(places.values())
    rng.shuffle(groups)
    order = [index for group in groups for index in group]
    step = max(len(group) for group in groups)
    given: list[Picture | None] = [None] * len(samples)
    for place, index in enumerate(order):
        given[index] = samples[order[(place + step) % len(order)]].image
    return given
