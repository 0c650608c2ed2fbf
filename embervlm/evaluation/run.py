"""``embervlm evaluate``: measures a model on robot tasks it was not trained on, and whether it looks at all."""

from __future__ import annotations

import copy
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from PIL import Image

from embervlm.data.robot_loader import read_robot_tasks
from embervlm.data.sample import DataError, PlanStep, RobotSample, normalise_task
from embervlm.evaluation.answers import answer_fault, labelled_stages, written_stages
from embervlm.evaluation.baselines import KEY_WORDS, Baseline, available, key_words
from embervlm.evaluation.folds import apart_from, folds
from embervlm.evaluation.metrics import (
    Bootstrap,
    Coverage,
    Figure,
    Measures,
    best_possible,
    groups_of,
    measure,
    measure_coverage,
    right_leaders,
)
from embervlm.evaluation.predictions import Predictions, joined, predict
from embervlm.evaluation.unseen import composed_fleets
from embervlm.fleet import Fleet
from embervlm.preflight import PreflightError
from embervlm.selection import Picture, RobotSelector, Selection, SelectionError

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
        robots: the fleet's names, in its order; where the tasks are of several fleets, all of their names.
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


def evaluate(
    selector: RobotSelector,
    data: Path,
    *,
    train: Path | None = None,
    seed: int = 0,
    written: int = 200,
    coverage: float | None = 0.9,
    fleet_size: int | None = None,
    name: str = "model",
    progress: Progress | None = None,
) -> Evaluation:
    """Measure ``selector`` on the robot tasks of a folder or file, which must not have been trained on.

    Args:
        selector: the model. It chooses from its own fleet, or from that of a task's data where they have one.
        data: robot files, as stage 3 reads them.
        train: the robot tasks that the baselines are trained on, those left out that share a text or a family with
            ``data``; no baselines without it.
        seed: of the shuffling, the draws and the intervals.
        written: for how many tasks, drawn by the seed, the whole answer is written, which takes much longer.
        coverage: the level of the prediction sets; None for none.
        fleet_size: ask each task of a fleet of so many robots, put together around its own by the seed
            (:func:`embervlm.evaluation.unseen.composed_fleets`); None for the fleet of its data as it is.
        name: what the model is called.
        progress: called with what is being measured, tasks done and tasks in all.

    Raises:
        DataError, FleetError: the data cannot be read, or name a robot that the selector's fleet does not have.
        ImageError, PreflightError: a picture or a task cannot be shown to the model.
    """
    samples = read_robot_tasks(data, selector.fleet)
    notes: list[str] = []
    if fleet_size is not None:
        for among, places in _by_fleet(samples, selector.fleet).items():
            fleets = composed_fleets([samples[place] for place in places], among, fleet_size, seed)
            for place, own in zip(places, fleets, strict=True):
                samples[place] = replace(samples[place], fleet=own)
        notes.append(f"each task was asked of {fleet_size} robots, its own and others drawn from its fleet file")
    predictions = _predict(selector, samples, [s.image for s in samples], "own pictures or none", progress)
    looks = _looks(selector, samples, predictions, seed, progress)
    baselines: dict[str, Measures] = {}
    known: list[RobotSample] = []
    if train is not None:
        given = read_robot_tasks(train, selector.fleet)
        known = apart_from(given, samples)
        if len(known) < len(given):
            notes.append(
                f"{len(given) - len(known)} of {len(given)} training tasks have the text or the family of a measured"
                " task; the baselines were not given them"
            )
        if not known:
            raise DataError(f"{train}: every training task has the text or the family of a measured one")
        trained = _by_fleet(known, selector.fleet)
        untrained = [own for own in _by_fleet(samples, selector.fleet) if own not in trained]
        if untrained:
            methods: dict[str, Baseline] = {KEY_WORDS: key_words}
            notes.append(
                f"no training task is of the fleet {', '.join(untrained[0].names)!s:.200}; of the baselines only the"
                " rule was measured"
            )
        else:
            methods, missing = available()
            notes += missing
        for method, answer in methods.items():
            baselines[method] = measure(_answer(answer, known, samples, selector.fleet), samples, seed=seed)
            _say(progress, method, len(samples), len(samples))
    sets: list[list[str]] = []
    if coverage is not None:
        try:
            sets = _prediction_sets(selector, samples, predictions, coverage)
        except SelectionError as error:
            notes.append(f"prediction sets: not measured, {error}")
    answers = _write(selector, samples, written, seed, progress)
    return Evaluation(
        model_name=name,
        data=str(data),
        tasks=len(samples),
        pictures=len({s.image for s in samples if s.image is not None}),
        robots=predictions.robots,
        seed=seed,
        model=measure(predictions, samples, seed=seed),
        own_pictures=looks.get("own"),
        no_picture=looks.get("none"),
        blank_picture=looks.get("blank"),
        shuffled_pictures=looks.get("shuffled"),
        **_bounds(samples),
        baselines=baselines,
        train_tasks=len(known) if baselines else None,
        folds=None,
        written=_measure_written(selector, samples, answers, seed, progress) if answers else None,
        coverage=measure_coverage(sets, samples, coverage, seed=seed) if sets and coverage is not None else None,
        by_voice=_by_voice(predictions, samples, seed),
        notes=tuple(notes),
        cases=_cases(predictions, samples, sets, answers, selector.fleet),
    )


def cross_validate(
    data: Path, fleet: Fleet, k: int, *, train: Path | None = None, seed: int = 0, progress: Progress | None = None
) -> Evaluation:
    """Measure the baselines on every task of a folder or file, each trained on the other folds.

    Args:
        data: robot files, as stage 3 reads them.
        fleet: whose names they use.
        k: how many folds; :func:`embervlm.evaluation.folds.folds` says which task is in which.
        train: robot tasks that every fold is trained on too, those left out that share a text or a family with it.
        seed: of the folds and the intervals.
        progress: as in :func:`evaluate`.

    Raises:
        DataError, FleetError: as :func:`evaluate`; or there are fewer texts than folds.
    """
    samples = read_robot_tasks(data, fleet)
    further = [] if train is None else read_robot_tasks(train, fleet)
    parts = folds(samples, k, seed)
    if len(own := list(_by_fleet(samples, fleet))) > 1:
        raise DataError(f"{data}: tasks of {len(own)} fleets; folds are made of tasks of one")
    further = [sample for sample in further if (sample.fleet or fleet) == own[0]]
    methods, notes = available()
    answers: dict[str, list[Predictions]] = {method: [] for method in methods}
    train_tasks = []
    for number, part in enumerate(parts, 1):
        measured = [samples[place] for place in part]
        held_out = set(part)
        others = [sample for place, sample in enumerate(samples) if place not in held_out]
        known = others + apart_from(further, measured)
        train_tasks.append(len(known))
        for method, answer in methods.items():
            answers[method].append(answer(known, [s.task for s in measured], own[0]))
        _say(progress, "folds of the baselines", number, k)
    order = np.argsort([place for part in parts for place in part])
    whole = {method: joined(each).of(order.tolist()) for method, each in answers.items()}
    return Evaluation(
        model_name=None,
        data=str(data),
        tasks=len(samples),
        pictures=len({s.image for s in samples if s.image is not None}),
        robots=own[0].names,
        seed=seed,
        model=None,
        own_pictures=None,
        no_picture=None,
        blank_picture=None,
        shuffled_pictures=None,
        **_bounds(samples),
        baselines={method: measure(each, samples, seed=seed) for method, each in whole.items()},
        train_tasks=min(train_tasks),
        folds=k,
        written=None,
        coverage=None,
        by_voice={},
        notes=tuple(notes),
        cases=(),
    )


def _say(progress: Progress | None, what: str, done: int, total: int) -> None:
    if progress is not None:
        progress(what, done, total)


def _by_fleet(samples: Sequence[RobotSample], fleet: Fleet) -> dict[Fleet, list[int]]:
    """The places of the tasks of each fleet: their own where their data have one, else ``fleet``."""
    places: dict[Fleet, list[int]] = {}
    for place, sample in enumerate(samples):
        places.setdefault(sample.fleet or fleet, []).append(place)
    return places


def _over_fleets(
    samples: Sequence[RobotSample], fleet: Fleet, answer: Callable[[Fleet, list[int]], Predictions]
) -> Predictions:
    """The answers of each fleet's tasks, put together: a robot of another task's fleet has no chance to lead."""
    fleets = _by_fleet(samples, fleet)
    robots = tuple(dict.fromkeys(name for own in fleets for name in own.names))
    leading, selected = np.zeros((len(samples), len(robots))), [[""]] * len(samples)
    for own, places in fleets.items():
        part = answer(own, places)
        leading[np.ix_(places, [robots.index(name) for name in own.names])] = part.leading
        for place, names in zip(places, part.selected, strict=True):
            selected[place] = names
    return Predictions(robots, leading, selected)


def _predict(
    selector: RobotSelector,
    samples: Sequence[RobotSample],
    images: Sequence[Picture | None],
    what: str,
    progress: Progress | None,
) -> Predictions:
    finished = 0

    def answer(fleet: Fleet, places: list[int]) -> Predictions:
        nonlocal finished
        choosing = copy.copy(selector)
        choosing.fleet = fleet
        reached = 0

        def show(done: int) -> None:
            nonlocal reached
            reached = done
            _say(progress, what, finished + done, len(samples))

        try:
            part = predict(choosing, [samples[i].task for i in places], [images[i] for i in places], show)
        except PreflightError:
            # Which task of the batch it was is not known there: they are asked one by one.
            for sample in [samples[i] for i in places[reached:]]:
                try:
                    choosing.score([sample.task], [None])
                except PreflightError as error:
                    raise DataError(f"task {sample.id} ({sample.task!r:.60}): {error}") from None
            raise
        finished += len(places)
        return part

    return _over_fleets(samples, selector.fleet, answer)


def _prediction_sets(
    selector: RobotSelector, samples: Sequence[RobotSample], predictions: Predictions, coverage: float
) -> list[list[str]]:
    sets = []
    for sample, row in zip(samples, predictions.leading, strict=True):
        fleet = sample.fleet or selector.fleet
        columns = [predictions.robots.index(name) for name in fleet.names]
        sets.append(selector.prediction_set(row[columns].tolist(), coverage, fleet, sample.image is not None))
    return sets


def _answer(
    method: Baseline, train: Sequence[RobotSample], samples: Sequence[RobotSample], fleet: Fleet
) -> Predictions:
    """A baseline's answers, of each fleet's tasks trained on those of the same fleet."""
    trained = _by_fleet(train, fleet)

    def answer(own: Fleet, places: list[int]) -> Predictions:
        known = [train[place] for place in trained.get(own, [])]
        return method(known, [samples[place].task for place in places], own)

    return _over_fleets(samples, fleet, answer)


def _looks(
    selector: RobotSelector,
    samples: Sequence[RobotSample],
    predictions: Predictions,
    seed: int,
    progress: Progress | None,
) -> dict[str, Measures]:
    """The model with other pictures than their own, over the tasks that have pictures; empty where none has."""
    places = [place for place, sample in enumerate(samples) if sample.image is not None]
    if not places:
        return {}
    pictured = [samples[place] for place in places]

    def with_pictures(what: str, images: Sequence[Picture | None]) -> Measures:
        return measure(_predict(selector, pictured, images, what, progress), pictured, seed=seed)

    found = {"own": measure(predictions.of(places), pictured, seed=seed)}
    found["none"] = with_pictures("no picture", [None] * len(pictured))
    blank = Image.new("RGB", (224, 224), (128, 128, 128))
    found["blank"] = with_pictures("blank picture", [blank] * len(pictured))
    if len({sample.image for sample in pictured}) > 1:
        found["shuffled"] = with_pictures("shuffled pictures", shuffled_pictures(pictured, seed))
    return found


class _Bounds(TypedDict):
    text_only_bound: float
    picture_only_bound: float | None
    majority: float


def _bounds(samples: Sequence[RobotSample]) -> _Bounds:
    pictured = [sample for sample in samples if sample.image is not None]
    of = pictured or samples
    leaders = [sample.leaders for sample in of]
    counts = Counter(name for sample in samples for name in sample.leaders)
    return _Bounds(
        text_only_bound=best_possible([normalise_task(sample.task) for sample in of], leaders),
        picture_only_bound=best_possible([str(sample.image) for sample in of], leaders) if pictured else None,
        majority=max(counts.values()) / len(samples),
    )


def _write(
    selector: RobotSelector, samples: Sequence[RobotSample], count: int, seed: int, progress: Progress | None
) -> dict[int, Selection]:
    """The whole answers, by the tasks' places, of ``count`` tasks drawn by the seed."""
    places = sorted(random.Random(seed).sample(range(len(samples)), min(count, len(samples))))
    answers = {}
    for number, place in enumerate(places, 1):
        sample = samples[place]
        answers[place] = selector.select(sample.task, sample.image, reason=True, fleet=sample.fleet)
        _say(progress, "written answers", number, len(places))
    return answers


def _measure_written(
    selector: RobotSelector,
    samples: Sequence[RobotSample],
    answers: dict[int, Selection],
    seed: int,
    progress: Progress | None,
) -> Written:
    of = [samples[place] for place in answers]
    given = list(answers.values())
    draws = Bootstrap(groups_of(of), seed=seed)
    planned = [
        (sample, written_stages(answer.plan) == labelled_stages(sample.plan))
        for sample, answer in zip(of, given, strict=True)
        if len(sample.plan) > 1
    ]
    faults = [answer_fault(answer, s.fleet or selector.fleet) for s, answer in zip(of, given, strict=True)]
    # A task that has no written requirements cannot be asked again: that is no agreement.
    stated = [place for place, answer in enumerate(given) if answer.reasoning and answer.reasoning[0].strip()]
    agreed = np.zeros(len(of))
    if stated:
        again = [replace(of[place], task=given[place].reasoning[0]) for place in stated]
        asked = _predict(selector, again, [s.image for s in again], "agreement", progress)
        agreed[stated] = [name == given[place].primary for place, name in zip(stated, asked.leaders, strict=True)]
    return Written(
        tasks=len(of),
        leader_accuracy=draws.mean(right_leaders([answer.primary for answer in given], [s.leaders for s in of])),
        exact_set=draws.mean([set(answer.selected) == set(s.selected) for s, answer in zip(of, given, strict=True)]),
        plan_accuracy=(
            Bootstrap(groups_of([sample for sample, _ in planned]), seed=seed).mean([right for _, right in planned])
            if planned
            else None
        ),
        valid=draws.mean([fault is None for fault in faults]),
        agreement=draws.mean(agreed),
        milliseconds=float(np.mean([answer.timing_ms["total"] for answer in given])),
        faults=[f"{s.id}: {fault}" for s, fault in zip(of, faults, strict=True) if fault is not None][:10],
    )


def _by_voice(predictions: Predictions, samples: Sequence[RobotSample], seed: int) -> dict[str, Figure]:
    right = right_leaders(predictions.leaders, [s.leaders for s in samples])
    found = {}
    for voice in sorted({s.voice for s in samples if s.voice is not None}):
        places = [place for place, s in enumerate(samples) if s.voice == voice]
        draws = Bootstrap(groups_of([samples[place] for place in places]), seed=seed)
        found[voice] = draws.mean([right[place] for place in places])
    return found


def _cases(
    predictions: Predictions,
    samples: Sequence[RobotSample],
    sets: Sequence[Sequence[str]],
    answers: dict[int, Selection],
    fleet: Fleet,
) -> tuple[Case, ...]:
    cases = []
    for place, (sample, picked) in enumerate(zip(samples, predictions.selected, strict=True)):
        own = (sample.fleet or fleet).names
        scores = [(name, float(predictions.leading[place, predictions.robots.index(name)])) for name in own]
        cases.append(
            Case(
                id=sample.id,
                task=sample.task,
                image=sample.image,
                voice=sample.voice,
                plan=sample.plan,
                leaders=sample.leaders,
                expected=sample.selected,
                picked=tuple(picked),
                confidences=tuple(sorted(scores, key=lambda score: -score[1])),
                leader_right=picked[0] in sample.leaders,
                set_right=set(picked) == set(sample.selected),
                prediction_set=tuple(sets[place]) if sets else (),
                written=answers.get(place),
            )
        )
    # Among those whose leader is right, wrong sets first.
    cases.sort(key=lambda case: (case.leader_right, case.set_right, -case.confidence))
    return tuple(cases)


def shuffled_pictures(samples: Sequence[RobotSample], seed: int) -> list[Picture | None]:
    """For each task the picture of another; the pictures keep how often each occurs.

    Tasks are put in a random order, those of one picture together, and each takes the picture of the task that
    stands the size of the largest such group further on. So none gets its own, unless more than half have one picture.
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
