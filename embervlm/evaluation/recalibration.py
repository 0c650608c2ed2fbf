"""``embervlm calibrate``: a trained model's calibration fitted anew, for the fleet and the tasks that it will meet.

Confidences, who goes along and prediction sets hold for tasks like those that they were fitted on. Validation tasks are
as their writers and voices are; who has some hundred labelled tasks of their own fits them on those, without training.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from embervlm.data.robot_loader import read_robot_tasks
from embervlm.data.sample import DataError, RobotSample
from embervlm.evaluation.calibration import fitted
from embervlm.evaluation.card import with_calibration
from embervlm.evaluation.folds import folds
from embervlm.evaluation.metrics import Figure, measure, measure_coverage
from embervlm.evaluation.predictions import Predictions, joined, of_logits
from embervlm.fleet import FLEET_FILE
from embervlm.folders import (
    CARD_FILE,
    MANIFEST,
    METRICS_FILE,
    WeightsError,
    complete_folder,
    is_complete,
    read_json_file,
    verify_folder,
)
from embervlm.selection import CALIBRATION_FILE, MIN_COVERAGE_TASKS, Calibration, RobotSelector, Scores, fleet_mark

FOLDS = 5
#: Of the prediction sets that are measured.
COVERAGE = 0.9


@dataclass(frozen=True, slots=True)
class Held:
    """How a calibration does on tasks that it was not fitted on, no text being written.

    Attributes:
        leader_accuracy, exact_set, ece: as in :class:`~embervlm.evaluation.metrics.Measures`.
        covered: share of the prediction sets for ``COVERAGE`` that have a right leader; None where there are no such
            sets for this fleet.
        robots: mean robots in one; None as above.
    """

    leader_accuracy: Figure
    exact_set: Figure
    ece: Figure
    covered: Figure | None
    robots: Figure | None


@dataclass(frozen=True, slots=True)
class Recalibration:
    """A calibration fitted anew.

    Attributes:
        calibration: fitted on all tasks.
        tasks, pictured: how many tasks, and how many of them with a picture.
        before: the model's own, on these tasks.
        after: of each of ``FOLDS`` parts of the tasks that which the others give.
    """

    calibration: Calibration
    tasks: int
    pictured: int
    before: Held
    after: Held

    def to_dict(self) -> dict[str, Any]:
        """As it stands in ``metrics.json``: the figures, without the calibration."""
        told = asdict(self)
        del told["calibration"]
        return told


def recalibrate(
    selector: RobotSelector, data: Path, *, seed: int = 0, progress: Callable[[str, int, int], None] | None = None
) -> Recalibration:
    """Fit a calibration on robot tasks, which must not have been trained on.

    A model's calibration for the same fleet stays as it is for tasks with a picture where these are too few among the
    robot tasks, and for those without likewise.

    Args:
        selector: the model, its fleet the one to calibrate for; it keeps its own calibration.
        data: robot files, as stage 3 reads them.
        seed: of the folds and intervals.
        progress: called with what is done, the tasks done, and all of them.

    Raises:
        DataError: the data cannot be read, are of another fleet, or too few.
        PreflightError: a task does not fit beside the fleet.
    """
    samples = read_robot_tasks(data, selector.fleet)
    if others := sum(sample.fleet is not None for sample in samples):
        raise DataError(
            f"{data}: {others} of {len(samples)} tasks are of the fleet in the fleet file beside them, and a model is"
            " calibrated for one fleet. Cure: --fleet with that file, and tasks of it alone"
        )
    if len(samples) < MIN_COVERAGE_TASKS:
        raise DataError(f"{data}: {len(samples)} tasks; expected at least {MIN_COVERAGE_TASKS} to calibrate a model on")
    parts = folds(samples, FOLDS, seed)
    scores = selector.score_clauses(
        [s.task for s in samples],
        [s.image for s in samples],
        progress=None if progress is None else lambda done: progress("scored", done, len(samples)),
    )
    own = selector.calibration
    before = own if own.samples and own.fleet == fleet_mark(selector.fleet) else None

    def fit(places: Sequence[int]) -> Calibration:
        return fitted(selector, [samples[place] for place in places], scores.of(places), before)

    answers = []
    for part in parts:
        calibration = fit(sorted(set(range(len(samples))) - set(part)))
        answers.append(_answered(selector, calibration, [samples[place] for place in part], scores.of(part)))
        if progress is not None:
            progress("fitted", sum(len(predictions) for predictions, _ in answers), len(samples))
    order = np.argsort([place for part in parts for place in part]).tolist()
    in_order = joined([predictions for predictions, _ in answers]).of(order)
    sets = [names for _, of_part in answers for names in of_part]
    return Recalibration(
        fit(range(len(samples))),
        len(samples),
        sum(sample.image is not None for sample in samples),
        _held(samples, *_answered(selector, own, samples, scores), seed),
        _held(samples, in_order, [sets[place] for place in order] if len(sets) == len(samples) else [], seed),
    )


def write_calibrated(
    folder: Path, source: str | os.PathLike[str], selector: RobotSelector, found: Recalibration
) -> None:
    """Write a copy of a model folder of any kind with another calibration, and its fleet: all of it, or nothing.

    Args:
        folder: where to; must not be there yet.
        source: the model's folder.
        selector: the model, its fleet the one that it was calibrated for.
        found: what goes into calibration, metrics and card.

    Raises:
        WeightsError: ``folder`` is there, ``source`` is not complete or damaged, or the copy cannot be written.
    """
    source = Path(source)
    check_folders(folder, source)
    verify_folder(source)
    with complete_folder(folder) as temporary:
        for name in read_json_file(source / MANIFEST)["files"]:
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source / name, temporary / name)
        selector.fleet.to_yaml(temporary / FLEET_FILE)
        files = {CALIBRATION_FILE: found.calibration.to_dict()}
        if (metrics := temporary / METRICS_FILE).is_file():
            files[METRICS_FILE] = read_json_file(metrics) | {"calibration": found.to_dict()}
        for name, content in files.items():
            (temporary / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        if (card := temporary / CARD_FILE).is_file():
            card.write_text(with_calibration(card.read_text(encoding="utf-8"), found.to_dict()), encoding="utf-8")


def check_folders(folder: Path, source: Path) -> None:
    """Refuse to write over what is there, or to copy what is not whole, before any work is done.

    Raises:
        WeightsError: names it.
    """
    if folder.exists():
        raise WeightsError(f"{folder}: is there already; expected the name of a new folder")
    if source.is_dir() and not is_complete(source):
        raise WeightsError(f"{source}: has no {MANIFEST}, so was not written to its end; only whole folders are copied")


def _answered(
    selector: RobotSelector, calibration: Calibration, samples: Sequence[RobotSample], scores: Scores
) -> tuple[Predictions, list[list[str]]]:
    """What the selector answers with a calibration, and its prediction sets; none where it has none for its fleet."""
    selector = RobotSelector(selector.runtime, selector.fleet, calibration)
    pictured = [sample.image is not None for sample in samples]
    predictions = of_logits(selector, scores.leaders, selector.going(scores, pictured), pictured)
    if calibration.fleet != fleet_mark(selector.fleet) or not all(
        calibration.of(each).set_thresholds for each in pictured
    ):
        return predictions, []
    rows = zip(predictions.leading.tolist(), pictured, strict=True)
    return predictions, [selector.prediction_set(row, COVERAGE, pictured=each) for row, each in rows]


def _held(samples: Sequence[RobotSample], predictions: Predictions, sets: Sequence[Sequence[str]], seed: int) -> Held:
    measured = measure(predictions, samples, seed=seed)
    found = measure_coverage(sets, samples, COVERAGE, seed=seed) if sets else None
    covered, robots = (found.covered, found.size) if found is not None else (None, None)
    return Held(measured.leader_accuracy, measured.exact_set, measured.ece, covered, robots)
