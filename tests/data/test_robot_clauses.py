"""Clauses of training tasks as tasks of their own."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from embervlm.data.robot_clauses import clause_tasks, is_clause
from embervlm.data.sample import PlanStep, RobotSample

TASK = RobotSample(
    "t",
    "It rains. Film the roof of the hall, then fetch the long ladder from the shed.",
    ("Drone",),
    ("Drone", "Humanoid"),
    (PlanStep(1, "Drone", "filming the roof"), PlanStep(2, "Humanoid", "fetch ladder")),
    family="f",
    voice="v",
)


def test_each_phase_finds_its_clause() -> None:
    made = clause_tasks([TASK], [])
    assert [(each.id, each.task, each.leaders, each.selected, each.plan) for each in made] == [
        ("t, clause 1", "It rains. Film the roof of the hall", ("Drone",), ("Drone",), ()),
        ("t, clause 2", "then fetch the long ladder from the shed.", ("Humanoid",), ("Humanoid",), ()),
    ]
    assert all((each.family, each.voice) == ("f", "v") and is_clause(each) for each in made)
    assert not is_clause(TASK)


def test_what_has_no_clause_of_its_own_is_left_out() -> None:
    # A phase that shares no word with the task, or none that says anything, finds none; two phases do not share one.
    strange = replace(TASK, plan=(PlanStep(1, "Drone", "look about"), PlanStep(2, "Humanoid", "of the")))
    assert clause_tasks([strange], []) == []
    twice = replace(TASK, plan=(PlanStep(1, "Drone", "film"), PlanStep(2, "Humanoid", "film")))
    assert [each.selected for each in clause_tasks([twice], [])] == [("Drone",)]
    # One clause, one phase, a picture, a rewording.
    assert clause_tasks([replace(TASK, task="Film the roof with the ladder.")], []) == []
    assert clause_tasks([replace(TASK, plan=TASK.plan[:1])], []) == []
    assert clause_tasks([replace(TASK, image=Path("a.png"))], []) == []
    assert clause_tasks([replace(TASK, id="t, reworded 1")], []) == []


def test_no_validation_text_comes_out() -> None:
    held_out = replace(TASK, id="h", task="Then fetch the long ladder from the shed!", plan=())
    assert [each.id for each in clause_tasks([TASK], [held_out])] == ["t, clause 1"]
