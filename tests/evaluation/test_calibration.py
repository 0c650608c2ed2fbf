"""Calibration: the temperature, and prediction sets that cover what was asked of tasks they were not fitted on."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from embervlm.data.sample import RobotSample
from embervlm.evaluation.calibration import _fit, calibrate, fit_sets, fit_temperature
from embervlm.evaluation.metrics import exact_set
from embervlm.fleet import Fleet
from embervlm.model import EmberVLMProcessor
from embervlm.runtime.torch_model import TorchRuntime
from embervlm.selection import CALIBRATION_FILE, Calibration, RobotSelector, Scores, fleet_mark, set_scores

NAMES = Fleet.default().names


def draw(tasks: int, seed: int, sharpness: float) -> tuple[list[list[float]], list[list[int]]]:
    """Tasks of a model whose probabilities are true: the right leader is drawn by them; sharper ones are surer."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(tasks, 5)) * sharpness
    leading = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    right = [[int(rng.choice(5, p=row))] for row in leading]
    return leading.tolist(), right


def sets(leading: Sequence[Sequence[float]], threshold: float) -> list[set[int]]:
    return [{place for place, score in enumerate(set_scores(row)) if score <= threshold} for row in leading]


def test_scores_are_the_probability_of_all_that_are_likelier() -> None:
    assert set_scores([0.125, 0.5, 0.25, 0.125]) == [0.75, 0.0, 0.5, 0.875]
    assert set_scores([1.0]) == [0.0]


def test_the_temperature_that_logits_were_scaled_by_is_found() -> None:
    leading, right = draw(4000, seed=1, sharpness=2.0)
    labels = torch.zeros(4000, 5)
    labels[torch.arange(4000), torch.tensor([places[0] for places in right])] = 1
    for scale in (0.5, 1.0, 3.0):
        assert fit_temperature(torch.tensor(leading).log() * scale, labels) == pytest.approx(scale, rel=0.06)


def test_thresholds_are_the_ranks_of_split_conformal_prediction() -> None:
    # Task i's right leader is the second: the first has the probability i/200, from 100/200 to 199/200.
    leading = [[place / 200, 1 - place / 200] for place in range(101, 200)]
    found = fit_sets([*leading, [0.5, 0.5]], [[1]] * 100)
    # Of 100 tasks coverage c takes the ceil(101 c)-th smallest score: the 51st for 50%, the 100th for 99%.
    assert len(found) == 50
    assert (found[0], found[40], found[49]) == pytest.approx(((100 + 50) / 200, (100 + 90) / 200, (100 + 99) / 200))
    assert list(found) == sorted(found)


def test_of_several_right_leaders_the_likeliest_counts() -> None:
    leading = [[0.5, 0.25, 0.125, 0.125]] * 100
    assert set(fit_sets(leading, [[3, 1]] * 100)) == {0.5}
    assert set(fit_sets(leading, [[3, 0]] * 100)) == {0.0}


def test_too_few_tasks_have_no_thresholds() -> None:
    leading, right = draw(100, seed=0, sharpness=1.0)
    assert fit_sets(leading[:99], right[:99]) == ()
    assert len(fit_sets(leading, right)) == 50


@pytest.mark.parametrize("sharpness", [0.5, 1.5, 3.0])
@pytest.mark.parametrize("coverage", [0.5, 0.8, 0.9, 0.95, 0.99])
def test_what_was_asked_is_covered_on_other_tasks(sharpness: float, coverage: float) -> None:
    thresholds = fit_sets(*draw(4000, seed=2, sharpness=sharpness))
    leading, right = draw(4000, seed=3, sharpness=sharpness)
    found = sets(leading, thresholds[round(100 * coverage) - 50])
    covered = np.mean([bool(chosen & set(places)) for chosen, places in zip(found, right, strict=True)])
    first = np.mean([int(np.argmax(row)) in places for row, places in zip(leading, right, strict=True)])
    # Where the best robot alone is right more often than asked, that is how often.
    assert covered == pytest.approx(max(coverage, first), abs=0.02)
    assert all(int(np.argmax(row)) in chosen for row, chosen in zip(leading, found, strict=True))
    if first > coverage:
        assert {len(chosen) for chosen in found} == {1}


@pytest.mark.parametrize("tasks", [20, 120])
def test_a_selector_is_calibrated_for_its_fleet(
    make_tiny: Callable[..., Any], tokenizer: Any, tmp_path: Path, tasks: int
) -> None:
    model = make_tiny(0)
    runtime = TorchRuntime(model, EmberVLMProcessor.for_config(model.config, tokenizer))
    selector = RobotSelector(runtime, Fleet.default(), Calibration())
    samples = [
        RobotSample(str(n), f"Look at number {n}.", (NAMES[n % 5],), (NAMES[n % 5], NAMES[(n + 1) % 5]))
        for n in range(tasks)
    ]
    calibration, measured = calibrate(selector, samples)
    assert selector.calibration == calibration
    assert set(measured) == {"tasks", "leader_accuracy", "exact_set"}
    assert (calibration.samples, measured["tasks"]) == (tasks, tasks)
    assert calibration.fleet == fleet_mark(Fleet(reversed(Fleet.default().robots)))
    assert len(calibration.set_thresholds) == (50 if tasks >= 100 else 0)
    (tmp_path / CALIBRATION_FILE).write_text(json.dumps(calibration.to_dict()))
    assert Calibration.from_folder(tmp_path) == calibration
    if tasks < 100:
        return
    # On the tasks themselves the thresholds cover at least what was asked.
    leaders, _ = selector.score([s.task for s in samples], [None] * tasks)
    leading = torch.softmax(torch.from_numpy(leaders).double() / calibration.temperature, -1).tolist()
    for coverage in (0.5, 0.75, 0.9, 0.99):
        chosen = [selector.prediction_set(row, coverage) for row in leading]
        right = sum(s.leaders[0] in names for s, names in zip(samples, chosen, strict=True))
        assert coverage <= right / tasks <= coverage + 0.03
        for row, names in zip(leading, chosen, strict=True):
            assert names[0] == NAMES[row.index(max(row))]
            assert names == sorted(names, key=lambda name: -row[NAMES.index(name)])


def test_tasks_with_pictures_are_fitted_apart(make_tiny: Callable[..., Any], tokenizer: Any, tmp_path: Path) -> None:
    model = make_tiny(0)
    runtime = TorchRuntime(model, EmberVLMProcessor.for_config(model.config, tokenizer))
    selector = RobotSelector(runtime, Fleet.default(), Calibration())
    picture = tmp_path / "picture.png"
    Image.new("RGB", (32, 32), "green").save(picture)

    def tasks(count: int, image: Path | None) -> list[RobotSample]:
        return [RobotSample(str(n), f"See {n}.", (NAMES[n % 5],), (NAMES[n % 5],), image=image) for n in range(count)]

    told, seen = tasks(120, None), tasks(100, picture)
    apart, _ = calibrate(selector, [*told, *seen])
    alone, _ = calibrate(selector, told)
    assert apart.with_picture is not None and apart.with_picture.samples == 100
    assert dataclasses.replace(apart, with_picture=None) == alone
    assert apart.with_picture == calibrate(selector, seen)[0]
    # Too few for sets of their own: all are fitted together.
    together, _ = calibrate(selector, [*told, *seen[:99]])
    assert together.with_picture is None and together.samples == 219


def test_how_many_go_is_heard_where_it_helps(tiny_selector: Any) -> None:
    rng = np.random.default_rng(0)
    samples, leaders, members, counts = [], [], [], []
    for number in range(300):
        chosen = rng.permutation(5)[: rng.integers(1, 4)]
        names = tuple(NAMES[place] for place in sorted(chosen))
        samples.append(RobotSample(str(number), f"Do {number}.", (NAMES[chosen[0]],), names))
        goes = np.isin(np.arange(5), chosen)
        leaders.append(6.0 * (np.arange(5) == chosen[0]))
        members.append(np.where(goes, 1.0, -1.0) + 1.2 * rng.standard_normal(5))
        counts.append(5.0 * (np.arange(4) == len(chosen) - 1))
    made = [np.array(each, np.float32) for each in (leaders, members, counts)]
    selector = RobotSelector(tiny_selector.runtime, Fleet.default(), Calibration())

    def fitted(counts: Any) -> tuple[Calibration, float]:
        scores = Scores(made[0], made[1], [row[None] for row in made[1]], counts)
        selector.calibration = _fit(selector, samples, scores)
        pictured = [False] * len(samples)
        selected = selector.selected_names(made[0], selector.going(scores, pictured), pictured)
        return selector.calibration, exact_set(selected, [s.selected for s in samples])

    (told, with_them), (silent, without) = fitted(made[2]), fitted(np.zeros_like(made[2]))
    assert told.count_weight > 0 and silent.count_weight == 0
    assert with_them > without + 0.1


def test_several_robots_count_as_much_as_one(tiny_selector: Any) -> None:
    # Of ten tasks nine are for one robot. A second one's logit is 1 where it goes, and in a third of the nine too.
    samples, members = [], []
    for number in range(200):
        several = number % 10 == 0
        samples.append(RobotSample(str(number), f"Do {number}.", NAMES[:1], NAMES[: 2 if several else 1]))
        members.append([0.0, 1.0 if several or number % 3 == 0 else -3.0, -9.0, -9.0, -9.0])
    leaders = np.tile(np.array([[6.0, 0, 0, 0, 0]], np.float32), (200, 1))
    logits = np.array(members, np.float32)
    scores = Scores(leaders, logits, [row[None] for row in logits], np.zeros((200, 4), np.float32))
    selector = RobotSelector(tiny_selector.runtime, Fleet.default(), Calibration())
    # All of the few right and two thirds of the many is better than all of the many.
    assert _fit(selector, samples, scores).member_threshold < 0.7


def test_a_mark_tells_what_a_model_reads_of_a_fleet() -> None:
    fleet = Fleet.default()
    drone, *others = fleet.robots
    assert fleet_mark(Fleet([dataclasses.replace(drone, count=3), *others])) == fleet_mark(fleet)
    for change in ({"name": "Aircraft"}, {"capabilities": ("flying",)}, {"limitations": ()}, {"environments": ()}):
        assert fleet_mark(Fleet([dataclasses.replace(drone, **change), *others])) != fleet_mark(fleet)
    assert fleet_mark(Fleet(others)) != fleet_mark(fleet)
