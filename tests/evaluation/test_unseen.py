"""Robots never trained on: fleets around each task's own, and whom the model picks in them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from embervlm.data.robot_loader import read_robot_tasks
from embervlm.data.sample import RobotSample
from embervlm.evaluation.unseen import composed_fleets, leaders_right, score_in_fleets
from embervlm.fleet import Fleet, FleetError, Robot

ROBOTS = Path(__file__).resolve().parents[2] / "collection" / "robots"


def test_fleets_of_six_around_every_task_of_the_collection() -> None:
    samples = read_robot_tasks(ROBOTS / "test", Fleet.default())
    fleet = samples[0].fleet
    assert fleet is not None and len(samples) == 312
    fleets = composed_fleets(samples, fleet, 6, seed=0)
    places = [made.index(sample.leaders[0]) for sample, made in zip(samples, fleets, strict=True)]
    assert all(len(made) == 6 and set(made) <= set(fleet) for made in fleets)
    # The right one stands everywhere, and each robot beside others.
    assert all(38 <= places.count(place) <= 65 for place in range(6))
    assert set().union(*map(set, fleets)) == set(fleet) and len(set(fleets)) > 300
    assert composed_fleets(samples, fleet, 6, seed=0) == fleets
    assert composed_fleets(samples[100:101], fleet, 6, seed=0) == fleets[100:101]
    assert composed_fleets(samples, fleet, 6, seed=1) != fleets


def test_nobody_stands_beside_one_whose_work_it_may_do() -> None:
    fleet = Fleet.from_yaml(ROBOTS / "train" / "fleet.yaml")
    samples = read_robot_tasks(ROBOTS / "train", Fleet.default())
    for sample, made in zip(samples, composed_fleets(samples, fleet, 6, seed=0), strict=True):
        leader = made[sample.leaders[0]]
        assert not any(robot.may_do_for(leader) for robot in made if robot != leader)


def test_a_fleet_that_cannot_be_put_together_is_refused() -> None:
    fleet = Fleet([Robot("Kite", ("soars",)), Robot("Boat", ("floats",)), Robot("Raft", ("x",), overlaps=("Boat",))])
    sample = RobotSample("t[3]", "Row.", ("Boat",), ("Boat",))
    (made,) = composed_fleets([sample], fleet, 2, seed=0)
    assert set(made.names) == {"Kite", "Boat"}
    message = "t[3]: a fleet of 3 robots cannot be put together around Boat: 2 of 3 robots can stand in it"
    with pytest.raises(FleetError, match=re.escape(message)):
        composed_fleets([sample], fleet, 3, seed=0)
    with pytest.raises(FleetError, match="unknown robot 'Boat'; the fleet has: Drone"):
        composed_fleets([sample], Fleet.default(), 2, seed=0)


def test_picks_are_those_of_each_task_in_its_fleet(tiny_selector: Any) -> None:
    fleet = Fleet.from_yaml(ROBOTS / "test" / "fleet.yaml")
    samples = read_robot_tasks(ROBOTS / "test", Fleet.default())[::40]
    fleets = composed_fleets(samples, fleet, 4, seed=0)
    done: list[int] = []
    picks = score_in_fleets(tiny_selector, samples, fleets, done.append)
    assert done == [1, 2, 3, 4, 5, 6, 7, 8]
    for sample, made, pick in zip(samples, fleets, picks, strict=True):
        assert tiny_selector.select(sample.task, reason=False, fleet=made).primary == made.names[pick]
    right = sum(made.names[pick] == s.leaders[0] for s, made, pick in zip(samples, fleets, picks, strict=True))
    assert leaders_right(samples, fleets, picks) == right / 8
    own = [made.index(sample.leaders[0]) for sample, made in zip(samples, fleets, strict=True)]
    assert leaders_right(samples, fleets, own) == 1.0
