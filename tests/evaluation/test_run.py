"""Measuring a selector: which tasks each figure is of, and that pictures are swapped as said."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from embervlm.data.sample import DataError, RobotSample
from embervlm.evaluation import run
from embervlm.evaluation.run import Evaluation, cross_validate, evaluate, shuffled_pictures
from embervlm.fleet import Fleet, Robot
from embervlm.selection import Calibration, Phase, RobotScore, RobotSelector, Selection, SelectionError

FLEET = Fleet.default()
DRONE, SUB, HUMANOID, WHEELS, LEGS = FLEET.names
#: What a picture of one colour says to `Looker`.
COLOURS = {"red": DRONE, "blue": SUB, "green": HUMANOID}


class Looker:
    """Stands in for a selector: it answers by the picture's colour, by the text's first robot where there is none."""

    def __init__(self) -> None:
        self.fleet, self.calibration = FLEET, Calibration()
        self.sizes: list[int] = []

    def score(
        self, tasks: Sequence[str], images: Sequence[Any], progress: Callable[[int], None] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        self.sizes.append(len(tasks))
        leaders = torch.tensor(
            [
                [float(name == self.answer(*each)) * 4 for name in self.fleet.names]
                for each in zip(tasks, images, strict=True)
            ]
        )
        if progress is not None:
            progress(len(tasks))
        return leaders, torch.full_like(leaders, -9.0)

    def answer(self, task: str, image: Any) -> str:
        if image is None:
            names = (*FLEET.names, "Crane", "Mole")
            return next(name for name in names if name.split()[0].casefold() in task.casefold())
        if isinstance(image, Image.Image):
            return LEGS
        return next(robot for colour, robot in COLOURS.items() if colour in Path(image).name)

    def leading(self, leaders: torch.Tensor, pictured: Sequence[bool]) -> NDArray[np.float64]:
        return torch.softmax(leaders.double(), -1).numpy()

    def selected_names(self, leaders: torch.Tensor, members: torch.Tensor, pictured: Sequence[bool]) -> list[list[str]]:
        return [[self.fleet.names[int(row.argmax())]] for row in leaders]

    def prediction_set(self, leading: Sequence[float], coverage: float, fleet: Fleet, pictured: bool) -> list[str]:
        names = [fleet.names[place] for place, p in enumerate(leading) if p >= 1 - coverage]
        return sorted(names, key=lambda name: -leading[fleet.index(name)])

    def select(self, task: str, image: Any = None, reason: bool = True, fleet: Fleet | None = None) -> Selection:
        robot = self.answer(task, image)
        fleet = fleet or self.fleet
        others = [RobotScore(name, 0.4 / (len(fleet) - 1), False) for name in fleet.names if name != robot]
        plan = [Phase(1, robot, "first", []), Phase(2, robot, "second", [1])]
        grounds = [f"a {robot}", "as seen", fleet[robot].capabilities[0], f"{robot} leads."]
        return Selection(task, robot, [robot], [RobotScore(robot, 0.6, True), *others], plan, grounds, {"total": 7.0})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six tasks: four with pictures whose colour is right for three, two without whose text is right for one."""
    lines = []
    for number, (task, colour, leader) in enumerate(
        [
            ("Drone wanted here", "red", DRONE),
            ("Drone wanted there", "blue", SUB),
            ("Drone wanted at last", "green", HUMANOID),
            ("Drone wanted in blue", "blue", DRONE),
            ("Drone wanted without picture", None, DRONE),
            ("Drone wanted in vain", None, LEGS),
        ]
    ):
        line: dict[str, Any] = {"id": str(number), "task": task, "leader": leader, "robots": [leader]}
        line["voice"] = "parent" if number % 2 else "child"
        if colour:
            Image.new("RGB", (32, 32), colour).save(tmp_path / f"{colour}.png")
            line["image"] = f"{colour}.png"
        if number < 2:
            line["plan"] = [{"order": n, "robot": leader, "subtask": "do"} for n in (1, 2)]
        lines.append(json.dumps(line))
    (tmp_path / "tasks.jsonl").write_text("\n".join(lines))
    return tmp_path / "tasks.jsonl"


def measured(data: Path, **settings: Any) -> Evaluation:
    selector: Any = Looker()
    return evaluate(selector, data, **settings)


def test_each_figure_is_of_its_tasks(data: Path) -> None:
    found = measured(data, name="looker")
    assert (found.model_name, found.tasks, found.pictures) == ("looker", 6, 3)
    assert found.robots == FLEET.names
    assert found.model is not None and found.model.leader_accuracy.value == pytest.approx(4 / 6)
    assert found.own_pictures is not None and found.own_pictures.leader_accuracy.tasks == 4
    assert found.own_pictures.leader_accuracy.value == 0.75
    # The text says drone, which is right for two of the four; mid-grey says legs.
    assert found.no_picture is not None and found.no_picture.leader_accuracy.value == 0.5
    assert found.blank_picture is not None and found.blank_picture.leader_accuracy.value == 0.0
    assert found.shuffled_pictures is not None
    # Of the four texts each is different; of the two with blue one robot can be right for one only.
    assert found.text_only_bound == 1.0 and found.picture_only_bound == 0.75
    assert found.majority == 0.5
    assert {voice: figure.tasks for voice, figure in found.by_voice.items()} == {"child": 3, "parent": 3}
    assert found.by_voice["child"].value == 1.0 and found.by_voice["parent"].value == pytest.approx(1 / 3)
    assert found.baselines == {} and found.train_tasks is None and found.folds is None


def test_written_answers(data: Path) -> None:
    written = measured(data).written
    assert written is not None and written.tasks == 6
    assert written.leader_accuracy.value == pytest.approx(4 / 6)
    assert written.plan_accuracy is not None and written.plan_accuracy.tasks == 2
    assert written.plan_accuracy.value == 1.0
    assert written.valid.value == 1.0 and written.faults == []
    # Asked again with the same pictures, the requirements give the same robot; without one, they name it.
    assert written.agreement.value == 1.0
    assert written.milliseconds == 7.0


def test_contradictions_and_empty_requirements_count(data: Path) -> None:
    class Wrong(Looker):
        def select(self, task: str, image: Any = None, reason: bool = True, fleet: Fleet | None = None) -> Selection:
            answer = super().select(task, image)
            if "blue" in str(image):
                answer.reasoning[0] = " "
                answer.reasoning[3] = "Nobody leads."
            return answer

    selector: Any = Wrong()
    written = evaluate(selector, data).written
    assert written is not None and written.valid.value == written.agreement.value == pytest.approx(4 / 6)
    assert written.faults == [f"{n}: the decision 'Nobody leads.' is not the selection" for n in (1, 3)]


def test_as_many_are_written_as_asked(data: Path) -> None:
    assert measured(data, written=0).written is None
    some = measured(data, written=2)
    assert some.written is not None and some.written.tasks == 2
    assert sum(case.written is not None for case in some.cases) == 2
    assert measured(data, written=2).cases == some.cases


def test_prediction_sets(data: Path) -> None:
    found = measured(data, coverage=0.8)
    assert found.coverage is not None and found.coverage.level == 0.8
    assert found.coverage.covered.value == pytest.approx(4 / 6)
    assert found.coverage.size.value == found.coverage.single.value == 1.0
    # e^4 of e^4 + 4 is 0.93; the others have 0.017 each.
    wide = measured(data, coverage=0.99)
    assert wide.coverage is not None and wide.coverage.covered.value == 1.0
    assert wide.coverage.size.value == 5.0 and wide.coverage.single.value == 0.0
    assert all(len(case.prediction_set) == 5 and case.prediction_set[0] == case.picked[0] for case in wide.cases)
    assert measured(data, coverage=None).coverage is None


def test_a_model_without_prediction_sets_says_so(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> list[str]:
        raise SelectionError("no coverage can be promised")

    monkeypatch.setattr(Looker, "prediction_set", refuse)
    found = measured(data)
    assert found.coverage is None and found.notes == ("prediction sets: not measured, no coverage can be promised",)


def test_the_worst_cases_come_first(data: Path) -> None:
    cases = measured(data).cases
    assert [case.leader_right for case in cases] == [False, False, True, True, True, True]
    (blue,) = [case for case in cases if case.id == "3"]
    assert (blue.leaders, blue.picked, blue.image) == ((DRONE,), (SUB,), data.parent / "blue.png")
    assert blue.confidences[0] == (SUB, blue.confidence) and len(blue.confidences) == 5
    assert json.loads(json.dumps(blue.to_dict()))["image"] == str(data.parent / "blue.png")


def test_json_has_the_figures_and_no_cases(data: Path) -> None:
    found = measured(data)
    values = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert "cases" not in values
    assert found.model is not None
    assert values["model"]["leader_accuracy"] == asdict(found.model.leader_accuracy)


def test_the_same_seed_gives_the_same_figures(data: Path) -> None:
    assert measured(data, seed=3) == measured(data, seed=3)


def test_without_pictures_nothing_is_swapped(tmp_path: Path) -> None:
    line = {"task": "Drone, look.", "leader": DRONE, "robots": [DRONE]}
    (tmp_path / "tasks.jsonl").write_text(json.dumps(line))
    selector: Any = Looker()
    found = evaluate(selector, tmp_path, written=0)
    assert found.pictures == 0 and found.picture_only_bound is None
    assert found.own_pictures is found.no_picture is found.blank_picture is found.shuffled_pictures is None
    assert selector.sizes == [1]


def test_tasks_of_several_fleets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = Fleet([Robot("Crane", ("lifting",)), Robot("Mole", ("digging",)), Robot("Drone", ("hovering",))])
    samples = [
        RobotSample("a", "Crane, lift it", ("Crane",), ("Crane",), fleet=other),
        RobotSample("b", "Drone, look", (LEGS,), (LEGS,)),
        RobotSample("c", "Mole, dig it", ("Mole",), ("Mole",), fleet=other),
    ]
    monkeypatch.setattr(run, "read_robot_tasks", lambda path, fleet: samples)
    found = measured(tmp_path, coverage=0.99)
    # In the order in which the tasks name their fleets; a name that two fleets have stands there once.
    assert found.robots == ("Crane", "Mole", "Drone", SUB, HUMANOID, WHEELS, LEGS)
    assert found.model is not None and found.model.leader_accuracy.value == pytest.approx(2 / 3)
    by_id = {case.id: case for case in found.cases}
    assert {name for name, _ in by_id["a"].confidences} == {"Crane", "Mole", "Drone"}
    assert {name for name, _ in by_id["b"].confidences} == set(FLEET.names)
    assert all(sum(chance for _, chance in case.confidences) == pytest.approx(1) for case in found.cases)
    assert set(by_id["c"].prediction_set) == {"Crane", "Mole", "Drone"} and by_id["c"].prediction_set[0] == "Mole"
    assert found.written is not None and found.written.valid.value == 1.0
    with pytest.raises(DataError, match="tasks of 2 fleets; folds are made of tasks of one"):
        cross_validate(tmp_path, FLEET, 2)


def test_learnt_baselines_are_left_out_where_a_fleet_has_no_training_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Fleet([Robot("Crane", ("lifting",)), Robot("Mole", ("digging",))])
    samples = [RobotSample("a", "Mole, start digging", ("Mole",), ("Mole",), fleet=other)]
    train = [RobotSample("b", "Drone, look", (LEGS,), (LEGS,))]
    monkeypatch.setattr(run, "read_robot_tasks", lambda path, fleet: train if path.name == "train" else samples)
    found = measured(tmp_path, train=tmp_path / "train")
    assert list(found.baselines) == ["key words"] and found.baselines["key words"].leader_accuracy.value == 1.0
    assert found.notes == ("no training task is of the fleet Crane, Mole; of the baselines only the rule was measured",)


def test_shuffled_pictures_are_others_and_keep_their_numbers() -> None:
    samples = [RobotSample(str(n), f"t {n}", ("A",), ("A",), image=Path(f"{n // 3}.png")) for n in range(30)]
    given = shuffled_pictures(samples, 0)
    assert all(picture != sample.image for picture, sample in zip(given, samples, strict=True))
    assert sorted(map(str, given)) == sorted(str(sample.image) for sample in samples)
    assert given == shuffled_pictures(samples, 0) != shuffled_pictures(samples, 1)


def test_a_task_that_does_not_fit_is_named(data: Path, tiny_selector: RobotSelector) -> None:
    long = {"id": "long", "task": "ጀ" * 1500, "leader": DRONE, "robots": [DRONE]}
    with data.open("a") as file:
        file.write("\n" + json.dumps(long))
    with pytest.raises(DataError, match=r"^task long \('ጀ+'?.*\): .*positions"):
        evaluate(tiny_selector, data, written=0)


def majority_alone(monkeypatch: pytest.MonkeyPatch, seen: list[list[str]]) -> None:
    """Leaves one baseline, which notes what it is trained on and answers the robot that the tasks name."""

    def answer(train: Sequence[RobotSample], tasks: Sequence[str], fleet: Fleet) -> Any:
        from embervlm.evaluation.baselines import majority

        seen.append(sorted(sample.task for sample in train))
        return majority(train, tasks, fleet)

    monkeypatch.setattr(run, "available", lambda: ({"majority": answer}, []))


def test_baselines_are_not_given_what_is_measured(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    majority_alone(monkeypatch, seen)
    (tmp_path / "train").mkdir()
    tasks = ["Drone WANTED here!", "Weld it", "Bake it"]
    lines = [json.dumps({"task": task, "leader": LEGS, "robots": [LEGS]}) for task in tasks]
    (tmp_path / "train" / "tasks.jsonl").write_text("\n".join(lines))
    found = measured(data, train=tmp_path / "train")
    assert seen == [["Bake it", "Weld it"]] and found.train_tasks == 2
    assert found.notes == (
        "1 of 3 training tasks have the text or the family of a measured task; the baselines were not given them",
    )
    assert found.baselines["majority"].leader_accuracy.value == pytest.approx(1 / 6)
    with pytest.raises(DataError, match="every training task has the text or the family of a measured one"):
        measured(data, train=data)


def test_cross_validation_trains_on_the_other_folds(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []
    majority_alone(monkeypatch, seen)
    further = tmp_path / "train" / "tasks.jsonl"
    further.parent.mkdir()
    further.write_text(
        "\n".join(
            json.dumps({"task": task, "leader": LEGS, "robots": [LEGS]}) for task in ("Drone wanted here", "Weld it")
        )
    )
    found = cross_validate(data, FLEET, 3, train=further)
    assert (found.model_name, found.model, found.cases, found.folds, found.tasks) == (None, None, (), 3, 6)
    texts = [json.loads(line)["task"] for line in data.read_text().splitlines()]
    assert len(seen) == 3
    for trained in seen:
        # Four tasks of the other folds, and the further ones but for one that is measured just then.
        measured_now = set(texts) - set(trained)
        assert len(measured_now) == 2
        assert ("Drone wanted here" in measured_now) == (trained.count("Drone wanted here") == 0)
        assert "Weld it" in trained
    assert found.train_tasks == 5
    # Every task is measured once and stands at its own place.
    assert sum(map(sum, found.baselines["majority"].confusion)) == 6


def test_each_task_is_asked_of_a_fleet_of_the_given_size(tiny_selector: RobotSelector, tmp_path: Path) -> None:
    (tmp_path / "fleet.yaml").write_text(
        "robots:\n"
        + "".join(
            f"  - {{name: R{number}, capabilities: [work {number}], limitations: [], environments: []}}\n"
            for number in range(8)
        ),
        encoding="utf-8",
    )
    lines = [
        {"task": f"Do the work of number {number}.", "leader": f"R{number}", "robots": [f"R{number}"]}
        for number in range(8)
    ]
    (tmp_path / "tasks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    found = evaluate(tiny_selector, tmp_path, fleet_size=3, written=0, coverage=None, seed=1)
    again = evaluate(tiny_selector, tmp_path, fleet_size=3, written=0, coverage=None, seed=1)
    assert found == again
    for case in found.cases:
        asked = [name for name, confidence in case.confidences if confidence > 0]
        assert len(asked) == 3 and set(case.leaders) <= set(asked)
    assert any("3 robots" in note for note in found.notes)
