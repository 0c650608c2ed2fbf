"""Which tasks a pass of stage 3 draws, and how often."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from embervlm.data.robot_clauses import clause_tasks
from embervlm.data.robot_fleets import OTHER_FLEET_REPEATS
from embervlm.data.sample import PlanStep, RobotSample
from embervlm.fleet import Fleet, Robot
from embervlm.training.pipeline import PICTURED_REPEATS, _drawn_tasks

DRONE, BOAT = "Drone", "Underwater Robot"
TOLD = RobotSample(
    "told",
    "Film the quay from above, then look for the wreck below.",
    (DRONE,),
    (DRONE, BOAT),
    plan=(PlanStep(1, DRONE, "Film the quay from above"), PlanStep(2, BOAT, "look for the wreck below")),
)
SEEN = RobotSample("seen", "See to it.", (DRONE,), (DRONE,), image=Path("a.png"))
OTHER = RobotSample("other", "Bake bread.", ("Baker",), ("Baker",), fleet=Fleet([Robot("Baker", ("bread",))]))


@pytest.mark.parametrize(
    ("taught", "expected"),
    [(False, (1, 1, OTHER_FLEET_REPEATS, 1)), (True, (1, PICTURED_REPEATS, 1, 0))],
)
def test_a_teacher_leaves_seeing_and_writing_to_stage_3(taught: bool, expected: tuple[int, ...]) -> None:
    clauses = clause_tasks([TOLD], [])
    assert len(clauses) == 2
    counts = Counter(sample.id for sample in _drawn_tasks([TOLD, SEEN, OTHER, *clauses], taught=taught))
    assert tuple(counts[sample.id] for sample in (TOLD, SEEN, OTHER, clauses[0])) == expected
