"""Rewordings of training tasks: exact strings, what they must keep, and that none says what another task says."""

from __future__ import annotations

import argparse
import re
from itertools import islice
from pathlib import Path

import pytest

from embervlm.data.robot_loader import load_robot_tasks, read_robot_tasks
from embervlm.data.robot_rewording import MAX_VARIANTS, _kept, add_rewordings, rewordings
from embervlm.data.sample import PlanStep, Reasoning, RobotSample, normalise_task
from embervlm.data.sample_data.tasks import INTENTS, wordings
from embervlm.fleet import Fleet
from embervlm.training.arguments import RunSettings, SettingsError, add_training_flags, settings_from

FLEET = Fleet.default()

# No order, a ban, names, numbers, words of place, several sentences, what only looks like an order.
HARD = (
    "Repaint the faded sign of the diving school.",
    "Get the parcel to the hut on the other bank without setting foot on the ice.",
    "The footbridge bears only forty kilos. Bring the generator to Dr. Meyer in Block C before noon.",
    "Mrs. Olsen's cat hasn't come down from the roof since Tuesday and she can't reach it.",
    "Don't let anyone near pump 3; it isn't drained yet.",
    "Do not enter the tunnel, but measure the gas at its mouth.",
    "Never mind the shelf, fetch the ladder.",
    "After the storm, check the roof of the chapel for missing tiles.",
    "To reach the relay mast, climb the north ridge.",
    "Check valve 7 is leaking again.",
    "Water is coming through the ceiling of the archive.",
    "Who can hold the ladder while I change the bulb?",
    "Unit two, valve stuck, need hands at the pump house, over.",
    "We need you to carry 12 sandbags from the truck to the levee; the road is flooded, so don't drive.",
)


def _sample(task: str, number: int = 0) -> RobotSample:
    return RobotSample(
        id=f"a.json[{number}]",
        task=task,
        leaders=("Drone",),
        selected=("Drone", "Humanoid"),
        plan=(PlanStep(1, "Drone", "Look"), PlanStep(2, "Humanoid", "Lift")),
        reasoning=Reasoning("a view", "a roof", ("fastest",)),
        image=Path("/pictures/a.jpg"),
        family="f",
        voice="v",
    )


@pytest.mark.parametrize(
    ("task", "seed", "expected"),
    [
        (
            "Survey coastal cliffs for signs of erosion after a storm.",
            0,
            [
                "Can you survey coastal cliffs for any signs of erosion after a storm?",
                "New job: survey coastal cliffs for any signs of erosion after a storm.",
                "After a storm, survey coastal cliffs for any signs of erosion.",
                "You are asked to survey coastal cliffs for any signs of erosion after a storm.",
            ],
        ),
        (
            "Survey coastal cliffs for signs of erosion after a storm.",
            1,
            [
                "New job: survey coastal cliffs for any signs of erosion after a storm.",
                "Priority task: survey coastal cliffs for signs of erosion after a storm.",
                "It is necessary to survey coastal cliffs for signs of erosion after a storm.",
                "I would like you to survey coastal cliffs for any signs of erosion after a storm.",
            ],
        ),
        (
            "Could somebody log the temperature in many spots, please?",
            1,
            [
                "Log the temperature in many spots.",
                "Priority task: log the temperature in many spots!",
                "Your job is to log the temperature in many spots.",
                "Request: log temperature in many spots.",
            ],
        ),
        (
            "Don't let anyone near pump 3; it isn't drained yet.",
            0,
            [
                "Order: do not let anybody near pump 3; it is not drained yet.",
                "Important: do not let anyone near pump 3; it is not drained yet!",
                "Please don't let anybody near pump 3; it isn't drained yet.",
                "Do not let anyone near pump 3; it is not drained yet.",
            ],
        ),
        (
            "Mrs. Olsen's cat hasn't come down from the roof since Tuesday and she can't reach it.",
            1,
            [
                "Mrs. Olsen's cat has not come down from the roof since Tuesday and she cannot reach it."
                " Please see to it.",
                "Incoming request: Mrs. Olsen's cat has not come down from the roof since Tuesday and she"
                " cannot reach it.",
                "Incoming request: Mrs. Olsen's cat hasn't come down from the roof since Tuesday and she"
                " can't reach it.",
                "Mrs. Olsen's cat hasn't come down from the roof since Tuesday and she can't reach it."
                " Please take care of this.",
            ],
        ),
        (
            "Look over the site for broken parts. After that, fix the broken part with tools.",
            0,
            [
                "Look over the site for broken parts. After that, fix the broken part with tools. How copy?",
                "Please look over the site for broken parts. After that, fix the broken part with tools.",
                "We need someone to look over the site for broken parts. After that, fix the broken part with tools.",
                "Important: look over the site for broken parts. After that, fix the broken part with tools.",
            ],
        ),
        (
            "If the gate is open, inspect the yard.",
            1,
            [
                "Examine yard if gate is open. Please confirm.",
                "inspect the yard if the gate is open",
                "Would you examine the yard if the gate is open, please?",
                "Your task is to inspect the yard if the gate is open.",
            ],
        ),
    ],
)
def test_exact_rewordings(task: str, seed: int, expected: list[str]) -> None:
    assert list(islice(rewordings(task, seed), 4)) == expected


def test_what_a_rewording_keeps_and_how_many_there_are(shared: Path) -> None:
    import numpy as np

    public = [sample.task for sample in read_robot_tasks(shared / "robot-selection-dataset", FLEET)]
    rendered = [text for intent in INTENTS for text in wordings(intent, False, np.random.default_rng(0), 10)]
    for task in (*public, *rendered, *HARD):
        found = list(rewordings(task, 0))
        keys = [normalise_task(wording) for wording in found]
        assert len(found) >= 5, task
        assert len(set(keys)) == len(keys) and normalise_task(task) not in keys
        assert all(_kept(wording) == _kept(task) for wording in found)
        assert not any("please please" in key or "  " in wording for key, wording in zip(keys, found, strict=True))


def test_negations_numbers_names_and_places_are_what_is_kept() -> None:
    assert dict(_kept("Don't fly over Dr. Meyer's 3 sheds or the two barns; you can't land in Block C.")) == {
        "not": 2,
        "over": 1,
        "Dr": 1,
        "Meyer's": 1,
        "3": 1,
        "two": 1,
        "in": 1,
        "Block": 1,
        "C": 1,
    }
    assert _kept("It isn't at the dam at once.") == _kept("It is not at the dam immediately.")
    assert _kept("Go up.") != _kept("Go down.") and _kept("Use it.") != _kept("Do not use it.")


def test_bans_are_never_asked_for_and_texts_that_only_look_like_orders_stay_whole() -> None:
    for task in ("Do not enter the tunnel, but measure the gas at its mouth.", "Never go near the vat."):
        assert not [
            wording for wording in rewordings(task, 0) if re.search(r"\b(?:you|has|is|asked|someone) to\b|\?", wording)
        ]
    for task in ("Check valve 7 is leaking again.", "Water is coming through the ceiling of the archive."):
        assert all(task in wording for wording in rewordings(task, 0))


def test_texts_without_rewordings() -> None:
    assert list(rewordings("検査してください", 0)) == []
    assert list(rewordings("3 - 7!", 0)) == []
    assert list(rewordings("Look " + "a" * 1_995, 0)) == []


def test_label_plan_picture_and_grounds_stay() -> None:
    added = add_rewordings([_sample("Look at the roof."), _sample("Mow the lawn.", 1)], set(), variants=3, seed=0)
    assert [sample.id for sample in added] == [
        "a.json[0]",
        "a.json[0], reworded 1",
        "a.json[0], reworded 2",
        "a.json[1]",
        "a.json[1], reworded 1",
        "a.json[1], reworded 2",
    ]
    for sample in added[:3]:
        assert sample == RobotSample(
            sample.id,
            sample.task,
            *(getattr(_sample(""), name) for name in ("leaders", "selected", "plan", "reasoning", "image", "family")),
            voice="v",
        )
    samples = [_sample("Look at the roof.")]
    assert add_rewordings(samples, set(), variants=1, seed=0) == samples


def test_a_wording_that_is_held_out_or_a_tasks_own_is_passed_over() -> None:
    task = "Look at the roof."
    first, second, third, fourth = islice(rewordings(task, 0), 4)
    held_out = {normalise_task(first)}
    added = add_rewordings([_sample(task), _sample(third.upper(), 1)], held_out, variants=3, seed=0)
    assert [sample.task for sample in added[:3]] == [task, second, fourth]
    # Where all are taken, the task stands alone.
    alone = add_rewordings(
        [_sample(task)], {normalise_task(wording) for wording in rewordings(task, 0)}, variants=3, seed=0
    )
    assert alone == [_sample(task)]


def test_neither_order_nor_company_of_the_tasks_changes_their_wordings() -> None:
    tasks = [_sample(text, number) for number, text in enumerate(HARD)]
    forwards = add_rewordings(tasks, set(), variants=3, seed=5)
    backwards = add_rewordings(tasks[::-1], set(), variants=3, seed=5)
    assert sorted(forwards, key=lambda sample: sample.id) == sorted(backwards, key=lambda sample: sample.id)
    assert len(forwards) == 3 * len(HARD)
    # One text about two pictures: the same wordings for both.
    twice = add_rewordings([_sample(HARD[0]), _sample(HARD[0], 1)], set(), variants=3, seed=5)
    assert [sample.task for sample in twice[:3]] == [sample.task for sample in twice[3:]]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_public_files_three_times(shared: Path, seed: int) -> None:
    data = load_robot_tasks(shared / "robot-selection-dataset", FLEET, seed=seed)
    assert (len(data.train), len(data.validation)) == (549, 20)
    assert (data.report.train, data.report.reworded, data.report.validation, data.report.kept) == (183, 366, 20, 203)
    texts = [normalise_task(sample.task) for sample in data.train]
    assert len(set(texts)) == 549
    assert not set(texts) & {normalise_task(sample.task) for sample in data.validation}
    written = load_robot_tasks(shared / "robot-selection-dataset", FLEET, seed=seed, variants=1)
    assert data.train[::3] == written.train and data.validation == written.validation
    assert [sample.leaders for sample in data.train[1::3]] == [sample.leaders for sample in written.train]
    assert load_robot_tasks(shared / "robot-selection-dataset", FLEET, seed=seed) == data


def test_the_first_wordings_of_the_public_files(shared: Path) -> None:
    data = load_robot_tasks(shared / "robot-selection-dataset", FLEET)
    assert [sample.task for sample in data.train[:6]] == [
        "Inspect a high-rise building’s exterior for damage.",
        "Kindly inspect a high-rise building’s exterior for damage.",
        "Your job is to inspect a high-rise building’s exterior for damage.",
        "Check the condition of underwater pipes for any leaks.",
        "new job: check condition of underwater pipes for leaks",
        "Would you check the condition of underwater pipes for any leaks, please?",
    ]


def test_as_many_wordings_as_can_be_asked_for(shared: Path) -> None:
    data = load_robot_tasks(shared / "robot-selection-dataset", FLEET, variants=MAX_VARIANTS)
    assert len(data.train) == 1830


def test_the_flag(tmp_path: Path) -> None:
    def settings(*more: str) -> RunSettings:
        parser = argparse.ArgumentParser()
        add_training_flags(parser)
        flags = ("--output_dir", str(tmp_path / "out"), "--stage", "3", "--robot_data", str(tmp_path))
        return settings_from(parser.parse_args([*flags, *more]))

    assert (settings().robot_variants, settings("--robot_variants", "1").robot_variants) == (3, 1)
    settings("--robot_variants", "10").check()
    for wrong in ("0", "11"):
        with pytest.raises(SettingsError, match=f"^--robot_variants {wrong}: expected 1 to 10$"):
            settings("--robot_variants", wrong).check()
