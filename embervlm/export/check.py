"""What a quantised model loses: leader accuracy on tasks with known answers, against the exact model's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from embervlm.data.robot_loader import read_robot_tasks
from embervlm.data.sample_data.held_out import held_out_tasks
from embervlm.fleet import Fleet
from embervlm.selection import Picture, RobotSelector

#: Rendered scenes that a model is asked about where there are no tasks of its own: four or five tasks each.
SCENES = 100


@dataclass(frozen=True)
class Questions:
    """Tasks with known answers: for each its text, its picture or None, and the robots that may lead."""

    tasks: Sequence[str]
    pictures: Sequence[Picture | None]
    leaders: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Loss:
    """What was measured.

    Attributes:
        tasks: how many were asked.
        exact, quantised: leader accuracy of each model, from 0 to 1.
        same: the share of tasks for which both choose the same leader.
    """

    tasks: int
    exact: float
    quantised: float
    same: float

    @property
    def points(self) -> float:
        """Points of leader accuracy that are lost; below 0 where some are won."""
        return 100 * (self.exact - self.quantised)

    def __str__(self) -> str:
        return (
            f"leader right in {self.quantised:.1%} of {self.tasks} tasks, exact {self.exact:.1%};"
            f" the same leader in {self.same:.1%}"
        )


def rendered_questions(scenes: int = SCENES, seed: int = 0) -> Questions:
    """Tasks about rendered scenes, each once with its picture and once without."""
    asked = held_out_tasks(scenes, seed)
    tasks, leaders = [task for task, _, _ in asked], [(leader,) for _, _, leader in asked]
    return Questions(tasks * 2, [*(picture for _, picture, _ in asked), *[None] * len(asked)], leaders * 2)


def questions_of(path: Path, fleet: Fleet) -> Questions:
    """The tasks of robot files, each with its picture where it has one.

    Raises:
        DataError: as :func:`embervlm.data.robot_loader.read_robot_tasks`.
    """
    samples = [sample for sample in read_robot_tasks(path, fleet) if sample.fleet is None]
    return Questions([s.task for s in samples], [s.image for s in samples], [s.leaders for s in samples])


def loss(exact: RobotSelector, quantised: RobotSelector, questions: Questions) -> Loss:
    """Ask both, and hold their leaders against the right ones and each other."""
    picked = []
    for selector in (exact, quantised):
        leaders, _ = selector.score(questions.tasks, questions.pictures)
        picked.append([selector.fleet.names[place] for place in leaders.argmax(-1)])
    count = len(questions.tasks)
    right = [sum(name in may for name, may in zip(names, questions.leaders, strict=True)) / count for names in picked]
    same = sum(one == other for one, other in zip(*picked, strict=True)) / count
    return Loss(count, right[0], right[1], same)
