"""What counts as a contradiction in a written answer, and when two plans are the same."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from embervlm.data.sample import PlanStep
from embervlm.evaluation.answers import answer_fault, labelled_stages, written_stages
from embervlm.fleet import Fleet, Robot
from embervlm.selection import Phase, RobotScore, Selection

FLEET = Fleet(
    [Robot("Drone", ("flying", "seeing, day and night")), Robot("Rover", ("driving",)), Robot("Sub", ("wet",))]
)

SOUND = Selection(
    task="Look, then fetch.",
    primary="Drone",
    selected=["Drone", "Rover"],
    robots=[RobotScore("Drone", 0.5, True), RobotScore("Sub", 0.3, False), RobotScore("Rover", 0.2, True)],
    plan=[Phase(1, "Drone", "look", []), Phase(2, "Rover", "fetch", [1])],
    reasoning=["a view", "No picture.", "seeing, day and night, flying", "Drone leads, together with Rover."],
)


def test_a_sound_answer_has_no_fault() -> None:
    assert answer_fault(SOUND, FLEET) is None


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"robots": SOUND.robots[:2]}, "the scores are of"),
        ({"robots": [SOUND.robots[1], SOUND.robots[0], SOUND.robots[2]]}, "the scores do not fall"),
        ({"robots": [RobotScore("Drone", 0.6, True), *SOUND.robots[1:]]}, "do not sum to 1"),
        ({"primary": "Rover"}, "Rover leads, the head's likeliest is Drone"),
        ({"selected": ["Rover", "Drone"]}, "Drone leads, the head's likeliest is Drone, the selected are"),
        ({"selected": ["Drone"]}, "the scores say otherwise"),
        ({"selected": ["Drone", "Rover", "Rover"]}, "the scores say otherwise"),
        ({"reasoning": []}, "0 steps of reasoning"),
        (
            {"reasoning": [*SOUND.reasoning[:2], "driving", SOUND.reasoning[3]]},
            "'driving' are not capabilities of Drone",
        ),
        ({"reasoning": [*SOUND.reasoning[:2], "flying, flying", SOUND.reasoning[3]]}, "are not capabilities"),
        ({"reasoning": [*SOUND.reasoning[:2], "", SOUND.reasoning[3]]}, "are not capabilities"),
        ({"reasoning": [*SOUND.reasoning[:3], "Rover leads."]}, "the decision 'Rover leads.' is not the selection"),
        ({"plan": []}, "the plan is for []"),
        ({"plan": SOUND.plan[:1]}, "the plan is for ['Drone']"),
        ({"plan": [SOUND.plan[0], Phase(2, "Sub", "swim", [1])]}, "the plan is for ['Drone', 'Sub']"),
        ({"plan": [SOUND.plan[0], Phase(3, "Rover", "fetch", [1])]}, "not numbered"),
        ({"plan": [SOUND.plan[0], Phase(2, "Rover", " ", [1])]}, "step 2 says nothing"),
        ({"plan": [SOUND.plan[0], Phase(2, "Rover", "fetch", [2])]}, "step 2 depends on [2]"),
        ({"plan": [Phase(1, "Drone", "look", [2]), SOUND.plan[1]]}, "step 1 depends on [2]"),
    ],
)
def test_contradictions_are_named(change: dict[str, Any], fault: str) -> None:
    found = answer_fault(replace(SOUND, **change), FLEET)
    assert found is not None and fault in found


def test_stages_of_plans() -> None:
    labelled = (
        PlanStep(1, "Drone", "a"),
        PlanStep(2, "Sub", "b"),
        PlanStep(2, "Rover", "c"),
        PlanStep(3, "Drone", "d"),
    )
    assert labelled_stages(labelled) == [{"Drone"}, {"Rover", "Sub"}, {"Drone"}]
    written = [
        Phase(1, "Drone", "", []),
        Phase(2, "Rover", "", [1]),
        Phase(3, "Sub", "", [1]),
        Phase(4, "Drone", "", [2, 3]),
    ]
    assert written_stages(written) == labelled_stages(labelled)
    # In another order, or all side by side, it is another plan.
    assert written_stages([Phase(1, "Rover", "", []), Phase(2, "Drone", "", [1])]) == [{"Rover"}, {"Drone"}]
    assert written_stages([Phase(1, "Rover", "", []), Phase(2, "Drone", "", [])]) == [{"Rover", "Drone"}]
    assert written_stages([]) == labelled_stages(()) == []
