"""The rule table, the wordings, and the bounds on what a guess without the picture or without the text can reach."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
import pytest

from embervlm.data.sample import normalise_task
from embervlm.data.sample_data.scenes import KINDS
from embervlm.data.sample_data.tasks import (
    COMBINATIONS,
    INTENTS,
    RULES,
    TaskRecord,
    clauses,
    draw_kinds,
    make_records,
    picture_only_bound,
    robot_for,
    text_only_bound,
)
from embervlm.fleet import Fleet

GROUPS = [*RULES, *(("|" if together else "+").join(intents) for intents, together in COMBINATIONS)]


@pytest.fixture(scope="module")
def held_out() -> list[TaskRecord]:
    return make_records(draw_kinds(240, np.random.default_rng(5)), 3, held_out=True, first=1000)


@pytest.fixture(scope="module")
def training() -> list[TaskRecord]:
    return make_records(draw_kinds(400, np.random.default_rng(6)), 3, held_out=False)


@pytest.mark.parametrize(
    ("intent", "kind", "robot"),
    [
        ("inspect", "underwater_pipeline", "Underwater Robot"),
        ("inspect", "high_rise_facade", "Drone"),
        ("inspect", "warehouse", "Robot with Wheels"),
        ("inspect", "rubble", "Robot with Legs"),
        ("inspect", "kitchen", "Humanoid"),
        ("heavy", "road", "Robot with Wheels"),
        ("heavy", "mountain_trail", "Robot with Legs"),
        ("heavy", "flooded_street", None),
        ("search", "forest", "Robot with Legs"),
        ("search", "field_from_air", "Drone"),
        ("bottom", "harbour", "Underwater Robot"),
        ("top", "harbour", "Drone"),
        ("operate", "staircase", "Humanoid"),
        ("patrol", "power_line", "Robot with Legs"),
    ],
)
def test_rule(intent: str, kind: str, robot: str | None) -> None:
    assert robot_for(intent, kind) == robot


def test_every_rule_cites_capabilities_of_its_robot() -> None:
    fleet = Fleet.default()
    for intent, rule in RULES.items():
        assert set(rule) <= set(KINDS)
        assert set(INTENTS[intent].capabilities) == set(rule.values()), intent
        for robot, capabilities in INTENTS[intent].capabilities.items():
            assert 1 <= len(capabilities) <= 2
            assert set(capabilities) <= set(fleet[robot].capabilities), (intent, robot)
    assert set(RULES) == set(INTENTS)


def test_every_kind_but_those_under_water_has_several_right_robots() -> None:
    for name, kind in KINDS.items():
        robots = {rule[name] for rule in RULES.values() if name in rule}
        if kind.setting == "under water":
            assert robots == {"Underwater Robot"}
        else:
            assert len(robots) >= 2, name


def test_reasons_are_short() -> None:
    for intent in INTENTS.values():
        assert len(intent.requirement.split()) <= 8
    for kind in KINDS.values():
        assert len(kind.phrase.split()) <= 8


def test_clauses_name_no_robot_and_no_place() -> None:
    places = {word for kind in KINDS.values() for word in f"{kind.name.replace('_', ' ')} {kind.place}".split()}
    places = places - {"from", "air", "high", "line"} | {"water", "sea", "stairs", "building", "tower", "ruin", "ship"}
    robots = {"drone", "robot", "humanoid", "wheels", "wheeled", "legs", "legged", "underwater"}
    for intent in INTENTS:
        for clause in clauses(intent, False) + clauses(intent, True):
            assert not set(normalise_task(clause).split()) & (places | robots), clause


def test_held_out_clauses_pair_known_words_anew() -> None:
    for intent, spec in INTENTS.items():
        train, test = clauses(intent, False), clauses(intent, True)
        assert not set(train) & set(test)
        assert len(train) + len(test) == len(spec.verbs) * len(spec.objects) == len(set(train + test))
        for verb in spec.verbs:
            assert any(clause.startswith(verb + " ") for clause in train), verb
        for thing in spec.objects:
            assert any(clause.endswith(" " + thing) for clause in train), thing


def test_no_clause_belongs_to_two_intents() -> None:
    owners: dict[str, set[str]] = defaultdict(set)
    for intent in INTENTS:
        for clause in clauses(intent, False) + clauses(intent, True):
            owners[normalise_task(clause)].add(intent)
    assert [clause for clause, names in owners.items() if len(names) > 1] == []


def test_a_guess_from_one_of_the_two_stays_low(held_out: list[TaskRecord], training: list[TaskRecord]) -> None:
    assert text_only_bound(held_out) <= 0.45
    assert picture_only_bound(held_out) <= 0.55
    assert text_only_bound(training) <= 0.48
    assert picture_only_bound(training) <= 0.55


def test_bounds_count_the_most_common_leader() -> None:
    first, second, third = make_records(["road"], 0, held_out=False)[:3]
    texts = [first.task, first.task, second.task]
    records = [
        TaskRecord(scene, task, leader, first.selected, (), first.reasoning, "inspect")
        for scene, task, leader in zip((0, 1, 1), texts, ("Drone", "Humanoid", "Humanoid"), strict=True)
    ]
    assert third.task
    assert text_only_bound(records) == pytest.approx(2 / 3)
    assert picture_only_bound(records) == 1.0


def test_each_held_out_text_meets_many_pictures_and_is_new(
    held_out: list[TaskRecord], training: list[TaskRecord]
) -> None:
    scenes: dict[str, set[int]] = defaultdict(set)
    for record in held_out:
        scenes[normalise_task(record.task)].add(record.scene)
    assert min(len(group) for group in scenes.values()) >= 8
    assert len(scenes) >= 50
    assert not set(scenes) & {normalise_task(record.task) for record in training}


def test_leaders_are_balanced(held_out: list[TaskRecord]) -> None:
    counts = Counter(record.leader for record in held_out)
    assert set(counts) == set(Fleet.default().names)
    assert min(counts.values()) >= 0.15 * len(held_out)
    assert max(counts.values()) <= 0.25 * len(held_out)


def test_records_follow_the_rule(held_out: list[TaskRecord], training: list[TaskRecord]) -> None:
    kinds = draw_kinds(240, np.random.default_rng(5))
    names = Fleet.default().names
    phases = 0
    for record in held_out:
        kind = kinds[record.scene - 1000]
        intents = record.group.replace("|", "+").split("+")
        robots = [RULES[intent][kind] for intent in intents]
        assert record.group in GROUPS
        assert record.leader == robots[0]
        assert record.selected == tuple(name for name in names if name in robots)
        assert set(record.reasoning.capabilities) <= set(Fleet.default()[record.leader].capabilities)
        assert record.reasoning.environment == KINDS[kind].phrase
        if len(intents) == 1:
            assert record.plan == ()
            continue
        phases += 1
        assert len(set(robots)) > 1
        assert [step.robot for step in record.plan] == robots
        assert [step.order for step in record.plan] == (
            [1, 1] if "|" in record.group else list(range(1, len(robots) + 1))
        )
    assert 0.10 <= phases / len(held_out) <= 0.15


def test_tasks_of_a_picture_differ(training: list[TaskRecord]) -> None:
    scenes: dict[int, list[TaskRecord]] = defaultdict(list)
    for record in training:
        scenes[record.scene].append(record)
    for records in scenes.values():
        assert 4 <= len(records) <= 6
        assert len({record.group for record in records}) == len(records)


def test_draw_kinds_holds_every_kind() -> None:
    kinds = draw_kinds(100, np.random.default_rng(0))
    assert len(kinds) == 100
    assert set(kinds) == set(KINDS)
    assert kinds == draw_kinds(100, np.random.default_rng(0))
