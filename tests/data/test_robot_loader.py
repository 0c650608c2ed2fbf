"""Robot tasks: the two public files to the last number, merging, plans, pictures, the split, and what is refused."""

from __future__ import annotations

import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from embervlm.data.robot_loader import load_robot_tasks, read_robot_tasks
from embervlm.data.sample import DataError, PlanStep, Reasoning, RobotSample, normalise_task
from embervlm.fleet import Fleet

FLEET = Fleet.default()


def _json(path: Path, document: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path


def _single(task: str, output: Any, **keys: Any) -> dict[str, Any]:
    return {"instruction": "Robots: ...", "input": task, "output": output, **keys}


def _multi(task: str, original: Any, *steps: tuple[str, str, Any], **keys: Any) -> dict[str, Any]:
    subtasks = [{"subtask": what, "assigned_robot": who, "execution_order": order} for what, who, order in steps]
    record = {"instruction": "Robots: ...", "input": task, "subtasks": subtasks, **keys}
    return record if original is None else {**record, "original_single_robot_output": original}


def _read(tmp_path: Path, *records: dict[str, Any]) -> list[RobotSample]:
    for name, kind in (("single.json", "output"), ("multi.json", "subtasks")):
        chosen = [record for record in records if kind in record]
        if chosen:
            _json(tmp_path / name, chosen)
    return read_robot_tasks(tmp_path, FLEET)


def test_the_public_files(shared: Path) -> None:
    samples = read_robot_tasks(shared / "robot-selection-dataset", FLEET)
    assert len(samples) == len({normalise_task(sample.task) for sample in samples}) == 203
    assert Counter(len(sample.selected) for sample in samples) == {1: 124, 2: 57, 3: 21, 4: 1}
    assert all(sample.leaders == sample.selected and sample.image is None for sample in samples)
    assert Counter(len(sample.plan) for sample in samples) == {0: 89, 2: 40, 1: 30, 4: 27, 3: 17}
    # One file writes "building’s", the other "buildings": one task.
    assert samples[0] == RobotSample(
        id="single_robot_selection.json[0]",
        task="Inspect a high-rise building’s exterior for damage.",
        leaders=("Drone",),
        selected=("Drone",),
        plan=(
            PlanStep(1, "Drone", "Aerial overview and structural assessment from above"),
            PlanStep(2, "Drone", "Close-up facade inspection at building level"),
        ),
    )
    assert {robot for sample in samples for robot in sample.selected} == set(FLEET.names)
    for sample in samples:
        orders = sorted({step.order for step in sample.plan})
        assert orders == list(range(1, len(orders) + 1))
        assert {step.robot for step in sample.plan} <= set(sample.selected)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_public_files_split_by_text(shared: Path, seed: int) -> None:
    data = load_robot_tasks(shared / "robot-selection-dataset", FLEET, seed=seed, variants=1)
    assert (len(data.train), len(data.validation)) == (183, 20)
    texts = [{normalise_task(sample.task) for sample in part} for part in (data.train, data.validation)]
    assert not texts[0] & texts[1]
    report = data.report
    assert [file.name for file in report.files] == ["single_robot_selection.json", "multi_robot_selection_dataset.json"]
    assert (report.records, report.merged, report.conflicts, report.samples, report.tasks) == (416, 213, 0, 203, 203)
    again = load_robot_tasks(shared / "robot-selection-dataset", FLEET, seed=seed, variants=1)
    assert again == data


def test_each_file_alone(shared: Path) -> None:
    folder = shared / "robot-selection-dataset"
    single = read_robot_tasks(folder / "single_robot_selection.json", FLEET)
    multi = read_robot_tasks(folder / "multi_robot_selection_dataset.json", FLEET)
    assert (len(single), len(multi)) == (203, 203)
    labels = [{normalise_task(sample.task): sample.selected for sample in part} for part in (single, multi)]
    assert labels[0] == labels[1]


def test_names_in_any_case_and_order(tmp_path: Path) -> None:
    samples = _read(tmp_path, _single("task:  Dive\n deep. ", "robot with LEGS,  Underwater robot ,drone"))
    assert [(sample.task, sample.selected) for sample in samples] == [
        ("Dive deep.", ("Drone", "Underwater Robot", "Robot with Legs"))
    ]


def test_plan_keeps_ties_closes_gaps_and_drops_robots_not_sent(tmp_path: Path) -> None:
    steps = [("d", "drone", 7), ("a", "Drone", 2), ("b", "Humanoid", 2), ("c", "Robot with legs", 4), ("e", "Drone", 4)]
    samples = _read(
        tmp_path,
        _multi("Task: One", ["Drone", "Humanoid"], *steps),
        _multi("Task: Two", "Robot with Wheels", *steps),
        _multi("Task: Three", "Robot with Wheels, Drone"),
    )
    assert samples[0].plan == (
        PlanStep(1, "Drone", "a"),
        PlanStep(1, "Humanoid", "b"),
        PlanStep(2, "Drone", "e"),
        PlanStep(3, "Drone", "d"),
    )
    assert (samples[1].plan, samples[1].selected) == ((), ("Robot with Wheels",))
    assert (samples[2].plan, samples[2].leaders) == ((), ("Drone", "Robot with Wheels"))


def test_leader_and_reasoning(tmp_path: Path) -> None:
    reasoning = {"requirements": "a view", "environment": "a tall house", "capabilities": ["Aerial Navigation"]}
    samples = _read(
        tmp_path,
        _single("Task: Look.", "Humanoid, Drone", leader="drone", reasoning=reasoning),
        _multi("Task: Help.", "Humanoid", ("a", "Robot with Legs", 1), ("b", "Drone", 1), leader="Drone"),
        _single("Task: Help!", "Humanoid"),
    )
    assert (samples[0].leaders, samples[0].selected) == (("Drone",), ("Drone", "Humanoid"))
    assert samples[0].reasoning == Reasoning("a view", "a tall house", ("aerial navigation",))
    # A plan with its leader says who goes; the single record about the same task adds nothing to it.
    assert (samples[1].leaders, samples[1].selected) == (("Drone",), ("Drone", "Robot with Legs"))
    assert [step.robot for step in samples[1].plan] == ["Robot with Legs", "Drone"]


def test_repeated_tasks_merge_and_differing_labels_are_counted(tmp_path: Path) -> None:
    _json(
        tmp_path / "x.json",
        [
            _single("Task: Look up!", "Drone"),
            _single("look up", "Humanoid"),
            _single("Task: Dive", "Underwater Robot"),
            _single("Task: dive.", "Underwater Robot"),
            _single("Task: Walk", "Humanoid"),
        ],
    )
    data = load_robot_tasks(tmp_path / "x.json", FLEET, validation_share=0.3, variants=1)
    by_id = {sample.id: sample for sample in data.train + data.validation}
    assert {key: sample.leaders for key, sample in by_id.items()} == {
        "x.json[0]": ("Drone", "Humanoid"),
        "x.json[2]": ("Underwater Robot",),
        "x.json[4]": ("Humanoid",),
    }
    report = data.report
    assert (report.records, report.merged, report.conflicts, report.samples) == (5, 2, 1, 3)
    assert (report.train, report.validation) == (2, 1)


def test_pictures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "data/images").mkdir(parents=True, exist_ok=True)
        (tmp_path / "data/images" / name).write_bytes(b"")
    file = _json(
        tmp_path / "data/scenes.json",
        [
            _single("Task: Look.", "Drone", image="images/a.jpg"),
            _single("Task: Look.", "Humanoid", image="images/b.jpg"),
            _single("Task: Look.", "Robot with Legs"),
            _single("Task: Look.", "Drone", image="images/c.jpg"),
            _single("Task: Sit.", "Drone", image=None),
        ],
    )
    data = load_robot_tasks(file, FLEET, variants=1)
    folder = (tmp_path / "data/images").resolve()
    assert {(sample.image, sample.leaders) for sample in data.train + data.validation if "Look" in sample.task} == {
        (folder / "a.jpg", ("Drone",)),
        (folder / "b.jpg", ("Humanoid",)),
        (None, ("Robot with Legs",)),
    }
    assert (data.report.missing_images, data.report.with_image, data.report.tasks) == (1, 2, 2)
    assert {len(part) for part in (data.train, data.validation)} == {1, 3}  # one text, one side
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert warnings == [f"robot tasks: 5 records, 1 left out: image not found (first: {folder / 'c.jpg'})"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("text", "expected an object, found str"),
        (_single("", "Drone"), "'input' must have 1 to 2,000 characters, found 0"),
        (_single("Task: " + "a" * 2000, "Drone"), "'input' must have 1 to 2,000 characters, found 2,006"),
        (_single("Task: ?!", "Drone"), "'input' holds no task, found 'Task: ?!'"),
        ({"input": 5, "output": "Drone"}, "'input' must be text, found 5"),
        ({"input": "a"}, "'output' must be robot names, found nothing"),
        (
            _single("a", "Drone, Robot Dog"),
            "'output': unknown robot 'Robot Dog'; the fleet has: Drone, Underwater Robot, Humanoid, Robot with Wheels,"
            " Robot with Legs",
        ),
        (_single("a", ""), "'output' must have 1 to 500 characters, found 0"),
        (_single("a", []), "'output' must be robot names, found []"),
        (_single("a", ["Drone", 3]), "'output' must be text, found 3"),
        (_single("a", "Drone", leader="Humanoid"), "'leader' Humanoid is not among the robots of 'output': Drone"),
        (_single("a", "Drone", leader="Cat"), "'leader': unknown robot 'Cat'; the fleet has: Drone"),
        (_single("a", "Drone", reasoning="why"), "'reasoning': expected an object, found str"),
        (
            _single("a", "Drone", reasoning={"requirements": "r", "environment": "e", "capabilities": ["tool use"]}),
            "'reasoning': capability 'tool use' is not among those of Drone: fastest, aerial navigation",
        ),
        (
            _single("a", "Drone", reasoning={"requirements": "r", "environment": "e", "capabilities": []}),
            "'reasoning': 'capabilities' must be a list of phrases, found []",
        ),
        (
            _single("a", "Drone", reasoning={"environment": "e", "capabilities": ["fastest"]}),
            "'reasoning': 'requirements' must be text, found nothing",
        ),
        (_single("a", "Drone", image="/etc/x.jpg"), "picture '/etc/x.jpg' is an absolute path"),
        (_single("a", "Drone", image="../x.jpg"), "picture '../x.jpg' leaves the data folder"),
        (_single("a", "Drone", image="out/x.jpg"), "picture 'out/x.jpg' leads out of"),
        (_single("a", "Drone", image=""), "expected the name of a picture, found ''"),
    ],
)
def test_single_records_refused(tmp_path: Path, record: Any, message: str) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/x.jpg").write_bytes(b"")
    file = _json(tmp_path / "data/single.json", [_single("Task: good", "Drone"), record])
    (tmp_path / "data/out").symlink_to(tmp_path / "outside")
    with pytest.raises(DataError) as error:
        read_robot_tasks(file, FLEET)
    assert str(error.value).startswith(f"{file}: record 1: {message}")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (_multi("a", None), "expected 'original_single_robot_output' or 'leader', found neither"),
        (_multi("a", 5), "'original_single_robot_output' must be robot names, found 5"),
        (
            _multi("a", "Drone", ("s", "Dog", 1)),
            "subtask 0: 'assigned_robot': unknown robot 'Dog'; the fleet has: Drone",
        ),
        (_multi("a", "Drone", ("s", "Drone", "1")), "subtask 0: 'execution_order' must be a whole number, found '1'"),
        (_multi("a", "Drone", ("s", "Drone", True)), "subtask 0: 'execution_order' must be a whole number, found True"),
        (_multi("a", "Drone", (" ", "Drone", 1)), "subtask 0: 'subtask' must have 1 to 500 characters, found 0"),
        (_multi("a", "Drone", *[("s", "Drone", 1)] * 51), "'subtasks' must be a list of at most 50, found 51 entries"),
        ({"input": "a", "subtasks": {}, "leader": "Drone"}, "'subtasks' must be a list of at most 50, found {}"),
        ({"input": "a", "subtasks": ["s"], "leader": "Drone"}, "subtask 0: expected an object, found str"),
    ],
)
def test_multi_records_refused(tmp_path: Path, record: Any, message: str) -> None:
    file = _json(tmp_path / "multi.json", [_multi("Task: good", "Drone"), record])
    with pytest.raises(DataError) as error:
        read_robot_tasks(tmp_path, FLEET)
    assert str(error.value).startswith(f"{file}: record 1: {message}")


def test_no_robot_data(tmp_path: Path, shared: Path) -> None:
    with pytest.raises(DataError, match=r"x: no such robot data$"):
        read_robot_tasks(tmp_path / "x", FLEET)
    with pytest.raises(DataError, match=r"no robot data among 24 JSON files; looked for a list"):
        read_robot_tasks(shared / "fixtures", FLEET)
    broken = tmp_path / "broken.json"
    broken.write_text('[{"input": "a",')
    with pytest.raises(DataError, match=r"broken\.json: line 1 column 16: not valid JSON \(ends too early\)"):
        read_robot_tasks(broken, FLEET)
    _json(tmp_path / "gone/a.json", [_single("Task: a", "Drone", image="a.jpg")])
    with pytest.raises(DataError, match="no usable robot record: 1 records in 1 files, 1 of them name a picture"):
        read_robot_tasks(tmp_path / "gone", FLEET)


def test_one_text_cannot_be_split(tmp_path: Path) -> None:
    _json(tmp_path / "a.json", [_single("Task: a", "Drone"), _single("Task: A.", "Drone")])
    with pytest.raises(DataError, match="all 1 robot records have one task text or family; at least two are needed"):
        load_robot_tasks(tmp_path, FLEET)
    data = load_robot_tasks(tmp_path, FLEET, validation_share=0, variants=1)
    assert (len(data.train), data.validation) == (1, [])
