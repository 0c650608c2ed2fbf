"""Folds: which tasks stay together, that every process finds the same, and that nothing trained on is measured."""

from __future__ import annotations

import random

import pytest

from embervlm.data.sample import DataError, RobotSample, normalise_task
from embervlm.evaluation.folds import apart_from, folds


def sample(task: str, family: str | None = None) -> RobotSample:
    return RobotSample(id=task, task=task, leaders=("A",), selected=("A",), family=family)


TASKS = [sample(f"Task number {number}") for number in range(23)]


def test_every_task_is_in_one_fold_and_folds_are_equal() -> None:
    parts = folds(TASKS, 5)
    assert sorted(place for part in parts for place in part) == list(range(23))
    assert sorted(map(len, parts)) == [4, 4, 5, 5, 5]
    assert all(part == sorted(part) for part in parts)


def test_the_same_seed_gives_the_same_folds_in_any_order() -> None:
    shuffled = random.Random(0).sample(TASKS, len(TASKS))
    assert [{TASKS[place].id for place in part} for part in folds(TASKS, 5)] == [
        {shuffled[place].id for place in part} for part in folds(shuffled, 5)
    ]
    assert folds(TASKS, 5) != folds(TASKS, 5, seed=1)
    # Pinned: a change would make earlier figures of cross-validation stand for other folds.
    assert folds(TASKS[:8], 3) == [[3, 6, 7], [1, 4, 5], [0, 2]]


def test_one_text_and_one_family_stay_together() -> None:
    tasks = [*TASKS, sample("task NUMBER 3!"), sample("Other words", "f"), sample("Task number 5", "f")]
    (both,) = [part for part in folds(tasks, 5) if 3 in part]
    assert 23 in both
    (both,) = [part for part in folds(tasks, 5) if 24 in part]
    assert 25 in both and 5 in both


@pytest.mark.parametrize("k", [0, 1, 24])
def test_too_few_texts_are_refused(k: int) -> None:
    with pytest.raises(DataError, match=f"^{k} folds of 23 different task texts; expected 2 to"):
        folds(TASKS, k)


def test_training_tasks_like_the_measured_are_left_out() -> None:
    train = [sample("Mow it"), sample("Mow it!", "g"), sample("Something else", "g"), sample("Dig", "h"), sample("Fly")]
    measured = [sample("mow IT"), sample("Drill", "h")]
    assert [each.task for each in apart_from(train, measured)] == ["Fly"]
    assert normalise_task("mow IT") == normalise_task("Mow it!")
