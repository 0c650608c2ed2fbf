"""Fleets of stage 3's tasks: files with their own fleet, stand-ins, and what a batch puts together by lot."""

from __future__ import annotations

import json
import pickle
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from embervlm.data.collate import Collator, RobotTaskDataset, encode_fleet_text
from embervlm.data.robot_fleets import (
    POOL_ROBOTS,
    composed,
    other_fleets,
    other_robots,
    pool_of,
    recast,
    stand_ins,
)
from embervlm.data.robot_loader import file_pictures, load_robot_tasks, read_robot_tasks
from embervlm.data.sample import DataError, PlanStep, Reasoning, RobotSample
from embervlm.fleet import Fleet, FleetError, Robot
from embervlm.prompts import IGNORED, robot_description
from embervlm.tokens import encode_text

FLEET = Fleet.default()
DRONE, DIVER, HUMANOID, WHEELS, LEGS = FLEET.robots
KITE = Robot("Kite", ("soars", "films"), same_as="Drone")
UNIT_B = Robot("Unit B", ("aerial photographs",), same_as="drone")
BUTLER = Robot("Butler", ("opens doors",), same_as="Humanoid")
GUTTER = Robot("Gutter Crawler", ("cleans gutters",), overlaps=("Drone",))
SEWER = Robot("Sewer Mole", ("digs",), overlaps=("Gutter Crawler",), outdoes=("Robot with Legs",))
BAKER = Robot("Baker", ("bakes bread",))
OTHERS = Fleet([GUTTER, SEWER, BAKER, KITE, UNIT_B, BUTLER])


def task(
    name: str, leader: str, *others: str, fleet: Fleet | None = None, reasons: tuple[str, ...] = ()
) -> RobotSample:
    selected = (leader, *others)
    plan = tuple(PlanStep(number, robot, "go") for number, robot in enumerate(selected, 1))
    reasoning = Reasoning("eyes above", "", reasons) if reasons else None
    return RobotSample(name, f"Task {name}.", (leader,), selected, plan, reasoning, fleet=fleet, suitable=(leader,))


@pytest.fixture(scope="module")
def make_batch(tiny_selector: Any) -> Callable[..., Any]:
    """A function that makes the training examples of samples and their batch."""

    def make(samples: list[RobotSample], seed: int = 0, epoch: int = 0) -> tuple[list[Any], dict[str, Any], Collator]:
        dataset = RobotTaskDataset(samples, tiny_selector.processor, FLEET, augment=True, seed=seed)
        dataset.set_epoch(epoch)
        collate = Collator(dataset.tokenizer, FLEET, dataset.other_robots)
        examples = [dataset[place] for place in range(len(samples))]
        return examples, collate(examples), collate

    return make


def described(batch: dict[str, Any], tokenizer: Any) -> list[str]:
    """The descriptions of a batch's robots."""
    rows = zip(batch["fleet_input_ids"].tolist(), batch["fleet_lengths"].tolist(), strict=True)
    return [tokenizer.decode(row[:length]) for row, length in rows]


def write(folder: Path, records: list[dict[str, Any]], fleet: Fleet | None = None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tasks.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    if fleet is not None:
        fleet.to_yaml(folder / "fleet.yaml")
    return folder


def record(text: str, leader: str) -> dict[str, Any]:
    return {"task": text, "leader": leader, "robots": [leader]}


def test_a_file_s_names_are_those_of_the_fleet_beside_it(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain", [record("Film it.", "Drone"), record("Bake.", "Humanoid")])
    own = write(tmp_path / "own", [record("Bake.", "Baker"), record("Dig.", "sewer mole")], OTHERS)
    samples = read_robot_tasks(tmp_path, FLEET)
    # The text that both have is two tasks, since its robots are others.
    assert [(s.id, s.task, s.leaders, s.fleet) for s in samples] == [
        ("own/tasks.jsonl[1]", "Bake.", ("Baker",), OTHERS),
        ("own/tasks.jsonl[2]", "Dig.", ("Sewer Mole",), OTHERS),
        ("plain/tasks.jsonl[1]", "Film it.", ("Drone",), None),
        ("plain/tasks.jsonl[2]", "Bake.", ("Humanoid",), None),
    ]
    assert samples[0].fleet is samples[1].fleet
    again = pickle.loads(pickle.dumps(samples))  # noqa: S301 - our own bytes
    assert again == samples and again[0].fleet is again[1].fleet
    assert read_robot_tasks(own / "tasks.jsonl", FLEET)[0].fleet == OTHERS
    assert file_pictures(own / "tasks.jsonl", "lines", FLEET) == [None, None]
    data = load_robot_tasks(tmp_path, FLEET, validation_share=0.34, variants=3)
    split = [{s.task for s in part if "reworded" not in s.id} for part in (data.train, data.validation)]
    assert not split[0] & split[1] and split[0] | split[1] == {"Film it.", "Bake.", "Dig."}
    assert all((s.fleet is None) == (s.id.startswith("plain")) for s in data.train)
    write(plain, [record("Film it.", "Baker")])
    with pytest.raises(DataError, match="unknown robot 'Baker'; the fleet has: Drone, "):
        read_robot_tasks(plain, FLEET)
    write(own, [record("Film it.", "Drone")])
    with pytest.raises(DataError, match="unknown robot 'Drone'; the fleet has: Gutter Crawler, "):
        read_robot_tasks(own, FLEET)


def test_a_fleet_file_with_the_run_s_robots_is_the_run_s_fleet(tmp_path: Path) -> None:
    folder = write(tmp_path, [record("Film it.", "Drone")], Fleet(reversed(FLEET.robots)))
    assert read_robot_tasks(folder, FLEET)[0].fleet is None
    assert read_robot_tasks(folder, OTHERS)[0].fleet is not None


def test_a_fleet_file_that_is_none_or_leads_elsewhere_is_refused(
    tmp_path: Path, one_line: Callable[[BaseException | str], str]
) -> None:
    folder = write(tmp_path / "a", [record("Film it.", "Drone")])
    (folder / "fleet.yaml").write_text("robots: []", encoding="utf-8")
    with pytest.raises(FleetError, match=r"fleet\.yaml: the fleet has no robots") as caught:
        read_robot_tasks(folder, FLEET)
    one_line(caught.value)
    (folder / "fleet.yaml").unlink()
    OTHERS.to_yaml(tmp_path / "elsewhere.yaml")
    (folder / "fleet.yaml").symlink_to(tmp_path / "elsewhere.yaml")
    with pytest.raises(DataError, match=r"fleet\.yaml: leads out of .* by a link") as refused:
        read_robot_tasks(folder, FLEET)
    one_line(refused.value)


def test_the_other_robots_and_who_stands_in_for_whom() -> None:
    second = Fleet([Robot("kite", ("another",)), Robot("drone", ("another",)), Robot("Lamp", ("shines",))])
    samples = [task("a", "Drone"), task("b", "Baker", fleet=OTHERS), task("c", "Lamp", fleet=second)] * 2
    assert other_fleets(samples) == [OTHERS, second]
    others = other_robots(samples, FLEET)
    assert others == (*OTHERS.robots, second["Lamp"])  # a name once, and none of the run's
    assert stand_ins(FLEET, others) == {"Drone": (KITE, UNIT_B), "Humanoid": (BUTLER,)}


def test_a_task_recast_says_the_new_names_everywhere() -> None:
    sample = task("a", "Drone", "Humanoid", "Robot with Legs", reasons=("fastest",))
    new = recast(sample, {"Drone": KITE, "Humanoid": BUTLER})
    names = ("Kite", "Butler", "Robot with Legs")
    assert (new.leaders, new.selected, new.suitable) == (("Kite",), names, ("Kite",))
    assert tuple(step.robot for step in new.plan) == names
    assert new.reasoning == Reasoning("eyes above", "", ()) and (new.id, new.task) == (sample.id, sample.task)


def test_no_robot_of_a_composed_fleet_may_do_another_s_work() -> None:
    pool = [*FLEET, *OTHERS]
    met: Counter[str] = Counter()
    for seed in range(200):
        fleet = composed([LEGS], pool, 2 + seed % 8, random.Random(seed))
        assert fleet[0] == LEGS and len(set(fleet)) == len(fleet)
        assert not any(robot.may_do_for(LEGS) for robot in fleet[1:])
        assert not any(a.overlapping(b) for a in fleet for b in fleet if a is not b)
        # Seven kinds fit: water, hands, wheels, bread, air; a gutter instead of air.
        assert len(fleet) <= 2 + seed % 8 and len(fleet) <= 6
        met.update(robot.name for robot in fleet)
    assert set(met) == {robot.name for robot in pool} - {"Sewer Mole"}
    # It does the legs' work better; they are a wrong answer to its own.
    beside = {robot.name for seed in range(50) for robot in composed([SEWER], pool, 9, random.Random(seed))}
    assert "Robot with Legs" in beside and "Gutter Crawler" not in beside
    assert composed([DRONE, KITE], pool, 2, random.Random(0)) == [DRONE, KITE]  # the task's own are given


def test_a_pool_has_the_run_s_fleet_what_is_needed_and_others_up_to_its_size() -> None:
    extra = [Robot(f"R{number}", ("x",)) for number in range(40)]
    pool = pool_of([DRONE, BAKER, KITE, BAKER], FLEET, [BAKER, *extra], random.Random(0))
    assert pool[:7] == (*FLEET, BAKER, KITE) and len(set(pool)) == len(pool) == POOL_ROBOTS
    assert set(pool[7:]) <= set(extra)
    assert pool_of(extra, FLEET, [BAKER], random.Random(0)) == (*FLEET, *extra)
    assert pool_of([], FLEET, [], random.Random(0)) == FLEET.robots


def test_without_other_robots_four_in_five_tasks_have_the_run_s_fleet(make_batch: Callable[..., Any]) -> None:
    samples = [task(str(number), FLEET.names[number % 5]) for number in range(200)]
    examples, batch, _ = make_batch(samples)
    whole = [not example.robots for example in examples]
    assert sum(whole) == 158
    mask = batch["fleet_mask"]
    assert mask.shape == (200, 5) and mask[torch.tensor(whole)].all()
    sizes = Counter(mask[~torch.tensor(whole)].sum(1).tolist())
    assert set(sizes) == {2, 3, 4, 5} and min(sizes.values()) >= 4
    for row, sample in enumerate(samples):
        hot = [float(name in sample.leaders) for name in FLEET.names]
        assert batch["leader_labels"][row].tolist() == batch["member_labels"][row].tolist() == hot
        assert mask[row, hot.index(1.0)]


def test_a_batch_of_the_run_s_fleet_alone_is_as_without_lots(
    tiny_selector: Any, make_batch: Callable[..., Any]
) -> None:
    samples = [task(str(number), FLEET.names[number % 5]) for number in range(40)]
    examples, _, collate = make_batch(samples)
    batch = collate([example for example in examples if not example.robots][:6])
    assert "fleet_mask" not in batch
    text = encode_fleet_text(FLEET, tiny_selector.tokenizer)
    assert all(torch.equal(batch[name], text[name]) for name in text)
    validation = RobotTaskDataset(samples, tiny_selector.processor, FLEET, augment=False, seed=0)
    assert not any(validation[place].robots for place in range(40)) and validation.other_robots == ()


def test_tasks_among_other_robots(tiny_selector: Any, make_batch: Callable[..., Any]) -> None:
    plain = [task(f"p{n}", FLEET.names[n % 5], FLEET.names[(n + 1) % 5], reasons=("fastest",)) for n in range(300)]
    own = [
        task(f"o{n}", OTHERS.names[n % 3], fleet=OTHERS, reasons=(OTHERS.robots[n % 3].capabilities)) for n in range(30)
    ]
    samples = plain + own
    examples, batch, _ = make_batch(samples)
    pool = [*FLEET, *OTHERS]
    texts = {robot_description(robot): robot for robot in pool}
    robots = [texts[text] for text in described(batch, tiny_selector.tokenizer)]
    assert robots[:5] == list(FLEET) and set(robots) == set(pool) and len(robots) == len(pool)
    kinds: Counter[str] = Counter()
    for row, (sample, example) in enumerate(zip(samples, examples, strict=True)):
        fleet = [robots[place] for place in batch["fleet_mask"][row].nonzero()[:, 0].tolist()]
        leader = [robots[place] for place in batch["leader_labels"][row].nonzero()[:, 0].tolist()]
        members = [robots[place] for place in batch["member_labels"][row].nonzero()[:, 0].tolist()]
        assert float(batch["leader_labels"][row].sum()) == 1.0 and set(leader) <= set(members) <= set(fleet)
        assert {robot.kind for robot in members} == {name.casefold() for name in sample.selected}
        labels = batch["labels"][row]
        said = tiny_selector.tokenizer.decode(labels[labels != IGNORED].tolist())
        names = [leader[0].name, *(robot.name for robot in members if robot != leader[0])]
        if said:  # names in the text are those of the labels, in the selection and in the plan
            assert f" {', '.join(names)}" in said and all(f" {name}: go\n" in said for name in names)
            assert not any(robot.name in said for robot in pool if robot not in members)
        if not example.robots:
            assert fleet == list(FLEET)
            kinds["whole"] += 1
            continue
        beside = [robot for robot in fleet if robot not in members]
        assert not any(a.may_do_for(b) for a in beside for b in members)
        assert not any(a.overlapping(b) for a in beside for b in fleet if a is not b)
        stood_in = any(robot.same_as for robot in members)
        assert not stood_in or "Because" not in tiny_selector.tokenizer.decode(example.encoded.input_ids)
        kinds["own" if sample.fleet else "stand-in" if stood_in else "mixed"] += 1
    # Of wheels and legs nobody stands in.
    assert kinds == {"whole": 174, "stand-in": 67, "mixed": 59, "own": 30}
    sizes = set(batch["fleet_mask"].sum(1).tolist())
    assert {2, 3, 4, 5} <= sizes


def test_the_same_lots_the_same_batch(make_batch: Callable[..., Any]) -> None:
    samples = [task(f"p{n}", FLEET.names[n % 5]) for n in range(12)] + [task("o", "Baker", fleet=OTHERS)]
    _, batch, collate = make_batch(samples)
    examples, again, _ = make_batch(samples)
    assert set(batch) == set(again)
    assert all(torch.equal(batch[name], again[name]) for name in batch)
    assert all(torch.equal(batch[name], value) for name, value in collate(examples).items())
    _, other, _ = make_batch(samples, epoch=1)
    assert other["fleet_mask"].shape != batch["fleet_mask"].shape or not torch.equal(
        other["fleet_mask"], batch["fleet_mask"]
    )


def test_a_validation_task_of_another_fleet_has_it_whatever_the_epoch(tiny_selector: Any) -> None:
    samples = [task("o", "Baker", fleet=OTHERS), task("p", "Drone")]
    dataset = RobotTaskDataset(samples, tiny_selector.processor, FLEET, augment=False, seed=0)
    first = dataset[0]
    dataset.set_epoch(3)
    assert dataset[0] == first and first.robots == (BAKER,) and first.leader == first.members == (1.0,)
    batch = Collator(dataset.tokenizer, FLEET)([first, dataset[1]])
    assert batch["fleet_mask"].shape == (2, 6) and batch["fleet_mask"][1].tolist() == [True] * 5 + [False]
    assert batch["leader_labels"].tolist() == [[0.0] * 5 + [1.0], [1.0] + [0.0] * 5]


def test_what_a_masked_robot_is_changes_nothing(make_tiny: Callable[..., Any], make_batch: Callable[..., Any]) -> None:
    samples = [task(f"p{n}", FLEET.names[n % 5], FLEET.names[(n + 2) % 5]) for n in range(8)]
    examples, batch, collate = make_batch([*samples, task("o", "Baker", fleet=OTHERS)])
    model = make_tiny()
    with torch.no_grad():
        together = model(**batch)
        for row, example in enumerate(examples):
            places = batch["fleet_mask"][row].nonzero()[:, 0]
            alone = collate([example])
            alone = {name: value for name, value in alone.items() if not name.startswith("fleet")}
            own = {name: batch[name][places] for name in ("fleet_input_ids", "fleet_lengths")}
            alone |= {f"{name}_labels": batch[f"{name}_labels"][row : row + 1, places] for name in ("leader", "member")}
            single = model(**alone, **own)
            for name in ("leader_logits", "member_logits"):
                expected = getattr(single, name)[0]
                torch.testing.assert_close(getattr(together, name)[row, places], expected, rtol=1e-5, atol=1e-5)


def test_a_stand_in_s_longer_name_never_breaks_a_run(tiny_selector: Any) -> None:
    long = Robot("N" * 80, ("flies",), same_as="Drone")
    samples = [task("p", "Drone"), task("o", "Baker", fleet=Fleet([BAKER, long]))]
    dataset = RobotTaskDataset(samples, tiny_selector.processor, FLEET, augment=True, seed=0)
    dataset.max_length = len(dataset.encoded(0).input_ids)
    epochs = []
    for epoch in range(40):
        dataset.set_epoch(epoch)
        example = dataset[0]
        assert len(example.encoded.input_ids) <= dataset.max_length
        epochs.append(example.robots)
    assert set(epochs) == {(), (DRONE,)}
    assert len(encode_text(dataset.tokenizer, long.name)) > 10
