"""The clauses of a task, their order, and the plan that is made of them."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest

from embervlm.clauses import LEAST_CHARACTERS, MAX_CLAUSES, bare, clauses, orders
from embervlm.selection import MAX_ASSIGNED, Phase, own_places, plan_by_clauses, with_clauses, with_counts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Film the roof.", ["Film the roof."]),
        (
            "Film the roof, then fetch the ladder from the shed.",
            ["Film the roof", "then fetch the ladder from the shed."],
        ),
        (
            "Survey the bank from above! Once that is done, tow the boat home while somebody sweeps the quay",
            ["Survey the bank from above!", "Once that is done", "tow the boat home", "while somebody sweeps the quay"],
        ),
        # What is too short is no clause of its own, and a word within a word joins nothing.
        ("Up, up, up over the sandy Thenford hills", ["Up, up, up over the sandy Thenford hills"]),
        (
            "Count the panels - all forty of them - and report the broken ones",
            ["Count the panels", "all forty of them", "and report the broken ones"],
        ),
        # What is short and opens a sentence belongs to what it opens; at the end there is nothing to open.
        (
            "Survey the bank from above. Then, tow the boat home. Be quick.",
            ["Survey the bank from above.", "Then, tow the boat home. Be quick."],
        ),
        ("", []),
        ("電車を見て。", ["電車を見て。"]),
    ],
)
def test_clauses_of_a_text(text: str, expected: list[str]) -> None:
    assert clauses(text) == expected


def test_no_text_has_more_clauses_than_are_looked_at() -> None:
    text = "go to the next house, " * 200
    parts = clauses(text)
    assert len(parts) == MAX_CLAUSES and parts[-1].count("house") == 200 - MAX_CLAUSES + 1
    assert all(len(part) >= LEAST_CHARACTERS for part in parts)
    # Whatever is written, its clauses are stretches of it, in order.
    rng = random.Random(0)
    for _ in range(200):
        text = "".join(rng.choice("ab ,.;!-and then ") for _ in range(rng.randint(0, 80)))
        place = 0
        for part in clauses(text):
            place = text.index(part, place) + len(part)


@pytest.mark.parametrize(
    ("clause", "expected"),
    [
        ("then fetch the ladder from the shed.", "fetch the ladder from the shed"),
        ("and then, finally, tow it", "tow it"),
        ("Film the roof", "Film the roof"),
        ("then", "then"),
        ("android repair,", "android repair"),
        ("...", "..."),
    ],
)
def test_a_clause_without_what_joins_it(clause: str, expected: str) -> None:
    assert bare(clause) == expected


@pytest.mark.parametrize(
    ("phases", "expected"),
    [
        (["film the roof"], [1]),
        (["film the roof", "then fetch the ladder", "and tow the boat"], [1, 2, 3]),
        (["film the roof", "meanwhile fetch the ladder", "then tow the boat"], [1, 1, 2]),
        (["fetch the ladder", "after the roof was filmed from above"], [2, 1]),
        (["fetch the ladder", "after which the roof is filmed"], [1, 2]),
        (["bolt the panels by hand", "the panels have to be carted in first."], [2, 1]),
        ([], []),
    ],
)
def test_the_order_of_phases(phases: list[str], expected: list[int]) -> None:
    assert orders(phases) == expected


def test_a_plan_gives_each_robot_its_clause() -> None:
    parts = [
        "It is cold",
        "film the roof of the hall",
        "from all four sides",
        "then fetch the ladder",
        "while the boat is towed",
    ]
    logits = np.array([[-2.0, -1, -2], [3, -1, -1], [2, -2, -3], [-1, 4, -2], [-2, 1, 2]])
    assert plan_by_clauses(parts, logits, ["Drone", "Humanoid", "Boat"]) == [
        Phase(1, "Drone", "film the roof of the hall, from all four sides", []),
        Phase(2, "Humanoid", "fetch the ladder", [1]),
        Phase(3, "Boat", "while the boat is towed", [1]),
    ]
    # A robot that every clause wants goes where it is wanted most, and each has a clause even if another wants it more.
    plan = plan_by_clauses(["film the roof", "fetch the ladder"], np.array([[5.0, 1.0], [4.9, 0.0]]), ["A", "B"])
    assert [(phase.robot, phase.subtask) for phase in plan] == [("B", "film the roof"), ("A", "fetch the ladder")]


def test_the_best_assignment_is_found() -> None:
    rng = random.Random(0)
    for _ in range(100):
        columns = rng.randint(1, 4)
        wanted = [[rng.gauss(0, 1) for _ in range(columns)] for _ in range(rng.randint(columns, 6))]
        places = own_places(wanted)
        assert len(set(places)) == columns
        best = max(
            sum(wanted[row][column] for column, row in enumerate(rows))
            for rows in itertools.permutations(range(len(wanted)), columns)
        )
        assert sum(wanted[row][column] for column, row in enumerate(places)) == pytest.approx(best)
    many = MAX_ASSIGNED + 4
    wanted = [[float(row == (column + 3) % many) for column in range(many)] for row in range(many)]
    assert own_places(wanted) == [(column + 3) % many for column in range(many)]


def test_the_clause_that_most_wants_a_robot_has_its_share() -> None:
    task, by_clause = np.array([1.0, -1.0]), np.array([[0.0, 3.0], [2.0, -4.0]])
    assert with_clauses(task, by_clause, 0.0).tolist() == [1.0, -1.0]
    assert with_clauses(task, by_clause, 0.25).tolist() == [1.25, 0.0]
    assert with_clauses(task, by_clause, 1.0).tolist() == [2.0, 3.0]


@pytest.mark.parametrize("robots", [1, 2, 3, 6])
@pytest.mark.parametrize("weight", [0.5, 2.0])
def test_who_goes_knows_how_many_go(robots: int, weight: float) -> None:
    rng = np.random.default_rng(robots)
    members, leaders, counts = (3 * rng.standard_normal(n).astype(np.float32) for n in (robots, robots, 4))
    found = with_counts(members, leaders, counts, weight)
    # By going through all sets that the leader is in.
    leader, likely = int(leaders.argmax()), np.exp(counts.astype(np.float64))
    likely = np.maximum(likely / likely.sum(), 1e-3) ** weight
    every, inside = 0.0, np.zeros(robots)
    for chosen in itertools.product((0, 1), repeat=robots):
        if chosen[leader]:
            others = sum(logit for robot, logit in enumerate(members.tolist()) if chosen[robot] and robot != leader)
            weighed = likely[min(sum(chosen), 4) - 1] * np.exp(others)
            every, inside = every + weighed, inside + weighed * np.array(chosen)
    for robot in range(robots):
        if robot == leader:
            assert found[robot] == members[robot]
        else:
            share = inside[robot] / every
            assert found[robot] == pytest.approx(np.log(share / (1 - share)), rel=1e-4)


def test_a_count_that_says_nothing_changes_nothing() -> None:
    members, leaders = np.array([1.0, -2.0, 0.5], np.float32), np.array([0.0, 1.0, 3.0], np.float32)
    assert with_counts(members, leaders, np.array([9.0, 0, 0, 0], np.float32), 0.0) is members
    np.testing.assert_allclose(with_counts(members, leaders, np.zeros(4, np.float32), 2.0), members, rtol=1e-5)
    # Numbers without measure stay numbers, and what is ruled out is not.
    wild = with_counts(np.array([3e38, -3e38, 0.0], np.float32), leaders, np.array([3e38, 0, 0, 0], np.float32), 10.0)
    assert np.isfinite(wild).all()
    # Nor do many robots, all of whom may go, add up to more than numbers hold.
    crowd = np.full(300, 9.0, np.float32)
    many = with_counts(crowd, np.arange(300, dtype=np.float32), np.zeros(4, np.float32), 1.0)
    np.testing.assert_allclose(many, crowd, rtol=1e-6)
    alone = with_counts(members, leaders, np.array([5.0, 0, 0, 0], np.float32), 1.0)
    assert (alone[:2] < members[:2]).all()
