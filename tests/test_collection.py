"""The task collection: what its card says of it, and that its test is not in its training part."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from pathlib import Path

import pytest

from embervlm.data.robot_loader import load_robot_tasks, read_robot_tasks
from embervlm.data.sample import RobotSample, normalise_task
from embervlm.fleet import Fleet

COLLECTION = Path(__file__).resolve().parents[1] / "collection"
FLEET = Fleet.default()
PARTS = ("train", "calibration", "test")
OTHER_ROBOTS = ("train", "test", "test_variants")
NAMES = re.compile(r"\b(drones?|humanoids?|submarines?|quadcopters?|legged|wheeled|robots?)\b", re.IGNORECASE)


@pytest.fixture(scope="module")
def parts() -> dict[str, list[RobotSample]]:
    return {part: read_robot_tasks(COLLECTION / part, FLEET) for part in PARTS}


def test_its_size_is_what_the_card_says(parts: dict[str, list[RobotSample]]) -> None:
    counts = {
        part: (
            len(tasks),
            sum(bool(task.plan) for task in tasks),
            len({task.family for task in tasks}),
            len({task.voice for task in tasks}),
        )
        for part, tasks in parts.items()
    }
    assert counts == {
        "train": (7330, 2461, 7321, 108),
        "calibration": (500, 136, 500, 16),
        "test": (800, 214, 800, 8),
    }
    card = (COLLECTION / "README.md").read_text(encoding="utf-8")
    assert "| `train/tasks.jsonl` | 7,330 | 2,461 | 7,321 | 108 |" in card
    assert "| `calibration/tasks.jsonl` | 500 | 136 | 500 | 16 |" in card
    assert "| `test/tasks.jsonl` | 800 | 214 | 800 | 8 |" in card


def test_robots_lead_equally_often(parts: dict[str, list[RobotSample]]) -> None:
    assert Counter(task.leaders for task in parts["train"]) == {(name,): 1466 for name in FLEET.names}
    assert Counter(task.leaders for task in parts["calibration"]) == {(name,): 100 for name in FLEET.names}
    assert Counter(task.leaders for task in parts["test"]) == {(name,): 160 for name in FLEET.names}


def test_every_label_is_whole(parts: dict[str, list[RobotSample]]) -> None:
    for task in (task for part in PARTS for task in parts[part]):
        assert set(task.leaders) <= set(task.suitable) and task.reasoning is not None and task.voice
        robots = {step.robot for step in task.plan} or set(task.leaders)
        assert set(task.selected) == robots, task.id
        assert not NAMES.search(task.task), task.task


@pytest.mark.parametrize(("one", "other"), itertools.combinations(PARTS, 2))
def test_nothing_of_one_part_is_in_another(parts: dict[str, list[RobotSample]], one: str, other: str) -> None:
    assert not {normalise_task(task.task) for task in parts[one]} & {normalise_task(task.task) for task in parts[other]}
    assert not {task.family for task in parts[one]} & {task.family for task in parts[other]}
    assert not {task.voice for task in parts[one]} & {task.voice for task in parts[other]}


def test_it_is_split_by_voice_and_family_and_reworded(parts: dict[str, list[RobotSample]]) -> None:
    data = load_robot_tasks(COLLECTION / "train", FLEET)
    assert len(data.validation) == 744 and len(data.train) == 3 * (7330 - 744)
    assert not {task.family for task in data.train} & {task.family for task in data.validation}
    assert Counter(task.voice for task in data.validation) == {
        **dict.fromkeys(
            ("ranger-note", "dispatcher", "shift-report", "harbour-master", "grandfather-diy", "plain-short"), 90
        ),
        **dict.fromkeys(("teacher", "festival-organiser"), 50),
        **dict.fromkeys(("chef", "choir-leader", "sports-commentator", "taxidermist"), 26),
    }
    assert not {task.voice for task in data.train} & {task.voice for task in data.validation}


@pytest.mark.parametrize("seed", range(1, 9))
def test_validation_is_in_voices_of_its_own_whatever_the_seed(seed: int) -> None:
    data = load_robot_tasks(COLLECTION / "train", FLEET, seed=seed, variants=1)
    assert 720 <= len(data.validation) <= 780
    voices = Counter(task.voice for task in data.validation)
    also_trained_on = voices.keys() & {task.voice for task in data.train}
    assert len(voices.keys() - also_trained_on) in (11, 12, 13, 14)
    # Nine families are in two voices each; the whole family is where its held-out voice is.
    assert sum(voices[voice] for voice in also_trained_on) <= 4
    assert not {task.family for task in data.train} & {task.family for task in data.validation}


def test_the_other_robots_are_what_their_card_says() -> None:
    fleets = {part: Fleet.from_yaml(COLLECTION / "robots" / part / "fleet.yaml") for part in OTHER_ROBOTS}
    tasks = {part: read_robot_tasks(COLLECTION / "robots" / part, FLEET) for part in ("train", "test")}
    assert {part: Counter(robot.same_as for robot in fleet) for part, fleet in fleets.items()} == {
        "train": {None: 224, **dict.fromkeys(FLEET.names, 12)},
        "test": {None: 26},
        "test_variants": dict.fromkeys(FLEET.names, 4),
    }
    for part, found in tasks.items():
        leading = [robot.name for robot in fleets[part] if robot.same_as is None]
        counts = Counter(task.leaders for task in found)
        assert list(counts) == [(name,) for name in leading]
        assert Counter(counts.values()) == ({12: 75, 6: 149} if part == "train" else {12: 26})
        for task in found:
            assert task.fleet == fleets[part] and task.selected == task.leaders and task.reasoning is not None
            assert task.leaders[0].casefold() not in task.task.casefold(), task.task
    names = [robot.name.casefold() for fleet in (FLEET, *fleets.values()) for robot in fleet]
    assert len(set(names)) == len(names)
    known = {*names}
    for fleet in fleets.values():
        for robot in fleet:
            assert {name.casefold() for name in (*robot.overlaps, *robot.outdoes)} <= known - {robot.name.casefold()}
            assert not set(robot.overlaps) & set(robot.outdoes)
            assert all(robot.name in fleet[name].overlaps for name in robot.overlaps if name in fleet), robot.name


def test_no_text_of_the_other_robots_occurs_elsewhere(parts: dict[str, list[RobotSample]]) -> None:
    others = [task for part in ("train", "test") for task in read_robot_tasks(COLLECTION / "robots" / part, FLEET)]
    texts = [normalise_task(task.task) for task in (*others, *(task for part in PARTS for task in parts[part]))]
    assert len(others) == 2106 and len(set(texts)) == len(texts)
