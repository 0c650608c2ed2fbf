"""``embervlm evaluate``: measures a model on robot tasks it was not trained on, and whether it looks at all."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from embervlm.data.robot_loader import read_robot_tasks
from embervlm.data.sample import DataError, PlanStep, RobotSample, normalise_task
from embervlm.evaluation.metrics import Figure, Measures, best_possible, bootstrap_interval, right_leaders
from embervlm.selection import Picture, RobotSelector, Selection

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True)
class Written:
    """Of the tasks whose whole answer was written, grounds and plan too.

    Attributes:
        tasks: how many.
        leader_accuracy, exact_set: of these answers, whose robots are chosen after the first two steps are written.
        plan_accuracy: share of tasks whose phases have the labelled robots in the labelled order, phases side by side
            as a set; over tasks with a labelled plan of two or more phases; None where there are none.
        valid: share of answers whose robots, grounds and plan agree with the fleet, the head and each other.
        agreement: share of tasks for which the head, asked with the written requirements as its task and with the same
            picture, picks the same leader.
        milliseconds: mean time of an answer.
        faults: what is wrong with the answers that are not valid, with the tasks' ids; at most ten.
    """

    tasks: int
    leader_accuracy: Figure
    exact_set: Figure
    plan_accuracy: Figure | None
    valid: Figure
    agreement: Figure
    milliseconds: float
    faults: list[str]


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


@dataclass(frozen=True, slots=True)
class Case:
    """One task and its answer, for the report.

    Attributes:
        id, task, image, voice, plan: as the sample has them.
        leaders: the robots that may lead.
        expected: the robots that should go, in the fleet's order.
        picked: the robots sent, the leader first.
        confidences: each robot with the probability that it leads, likeliest first.
        leader_right, set_right: whether the leader is one of ``leaders``, and exactly ``expected`` go.
        prediction_set: the robots in the prediction set; empty where none was made.
        written: the whole answer with grounds and plan, for the tasks where it was written. Its robots are chosen after
            its grounds are begun and may differ from ``picked``, which is chosen from the task alone.
    """

    id: str
    task: str
    image: Path | None
    voice: str | None
    plan: tuple[PlanStep, ...]
    leaders: tuple[str, ...]
    expected: tuple[str, ...]
    picked: tuple[str, ...]
    confidences: tuple[tuple[str, float], ...]
    leader_right: bool
    set_right: bool
    prediction_set: tuple[str, ...] = ()
    written: Selection | None = None

    @property
    def confidence(self) -> float:
        """The probability of the picked leader."""
        return self.confidences[0][1]

    def to_dict(self) -> dict[str, Any]:
        """The case as JSON has it."""
        return asdict(self) | {"image": None if self.image is None else str(self.image)}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What was measured on one set of tasks.

    Attributes:
        model_name: the model's folder; None where only baselines were measured.
        data: the tasks' folder or file.
        tasks, pictures: how many tasks, and how many different pictures they are about.
        robots: the fleet's names, in its order.
        seed: of the shuffling, the draws and the folds.
        model: the model over all tasks, each with its own picture where it has one; None as ``model_name``.
        own_pictures, no_picture, blank_picture, shuffled_pictures: the model over the tasks that have pictures: with
            them, without, with a mid-grey one, with another task's; None where no task has one (the last also where
            all tasks have the same).
        text_only_bound, picture_only_bound: leader accuracy that one could reach at best on these very tasks who sees
            only the text, or only the picture; of the tasks with pictures where there are any. None as above.
        majority: leader accuracy of always answering the robot that is right most often on these very tasks.
        baselines: by name, the baselines over all tasks; empty where there were no training tasks.
        train_tasks: training tasks that the baselines were given (in each fold at least); None without baselines.
        folds: parts of the cross-validation of the baselines; None where they were trained on other data alone.
        written: None where no answer was written.
        coverage: None where no prediction sets were made.
        by_voice: leader accuracy by the tasks' voices; empty where they have none.
        notes: what was not measured and why, a line each.
        cases: every task with its answer, the worst first: a wrong leader with the highest confidence.
    """

    model_name: str | None
    data: str
    tasks: int
    pictures: int
    robots: tuple[str, ...]
    seed: int
    model: Measures | None
    own_pictures: Measures | None
    no_picture: Measures | None
    blank_picture: Measures | None
    shuffled_pictures: Measures | None
    text_only_bound: float
    picture_only_bound: float | None
    majority: float
    baselines: dict[str, Measures]
    train_tasks: int | None
    folds: int | None
    written: Written | None
    coverage: Coverage | None
    by_voice: dict[str, Figure]
    notes: tuple[str, ...]
    cases: tuple[Case, ...]

    def to_dict(self) -> dict[str, Any]:
        """All figures as JSON has them; the cases are left out, each has a ``to_dict`` of its own."""
        values = asdict(replace(self, cases=()))
        del values["cases"]
        return values


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
