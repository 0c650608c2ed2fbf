"""Stage 3 over robot files with fleets of their own: what trains, what validates, and what is measured apart."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from embervlm.data.robot_fleets import OTHER_FLEET_REPEATS
from embervlm.data.robot_format import write_robot_lines
from embervlm.data.sample import DataError, Reasoning, RobotSample
from embervlm.fleet import Fleet, Robot
from embervlm.training.arguments import RunSettings
from embervlm.training.pipeline import run

FLEET = Fleet.default()
OTHERS = Fleet(
    [
        *(Robot(name, (f"{name.lower()} work", "help")) for name in ("Baker", "Mower", "Welder", "Barber", "Weaver")),
        *(Robot(f"Unit {number}", ("the same",), same_as=name) for number, name in enumerate(FLEET.names)),
    ]
)


def tasks(fleet: Fleet, robots: int, count: int) -> list[RobotSample]:
    names = [fleet.names[number % robots] for number in range(count)]
    return [
        RobotSample(
            f"{name}-{number}",
            f"Job {number} of the {name.lower()}s.",
            (name,),
            (name,),
            reasoning=Reasoning(f"need {number}", "", fleet[name].capabilities[:1]),
        )
        for number, name in enumerate(names)
    ]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_robot_lines(tmp_path / "data" / "own" / "tasks.jsonl", tasks(FLEET, 5, 40))
    write_robot_lines(tmp_path / "data" / "others" / "tasks.jsonl", tasks(OTHERS, 5, 40))
    OTHERS.to_yaml(tmp_path / "data" / "others" / "fleet.yaml")
    return tmp_path / "data"


def settings(output: Path, data: Path) -> RunSettings:
    return RunSettings(
        output, (3,), robot_data=data, robot_variants=1, preset="spark", batch_size=4, max_steps=2, num_workers=0
    )


def test_a_run_over_two_fleets(data: Path, tmp_path: Path) -> None:
    final = run(settings(tmp_path / "out", data))
    metrics = json.loads((final / "metrics.json").read_text())
    validation, others = metrics["validation"], metrics["other_fleets"]
    # Eight of the eighty texts validate, whoever's they are; the confidences are fitted on those of the run's fleet.
    assert validation["tasks"] + others["tasks"] == 8 and validation["tasks"] >= 1 and others["tasks"] >= 1
    # Training tasks of other fleets stand in a pass several times.
    repeated = OTHER_FLEET_REPEATS * (40 - others["tasks"])
    assert metrics["stage3"]["train_samples"] == 40 - validation["tasks"] + repeated == 174
    assert metrics["stage3"]["validation_samples"] == validation["tasks"]
    assert others["robots"] == 6 and 0 <= others["leader_accuracy"] <= 1
    assert json.loads((final / "calibration.json").read_text())["samples"] == validation["tasks"]
    assert Fleet.from_yaml(final / "fleet.yaml") == FLEET


def test_data_of_other_fleets_alone_are_refused(
    data: Path, tmp_path: Path, one_line: Callable[[BaseException | str], str]
) -> None:
    with pytest.raises(DataError) as caught:
        run(settings(tmp_path / "out", data / "others"))
    assert one_line(caught.value) == (
        f"{data / 'others'}: no validation task is about the run's fleet ({', '.join(FLEET.names)}), as the files have"
        " a fleet.yaml beside them with other robots. Cure: --fleet with that file"
    )
