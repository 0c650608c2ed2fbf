"""Clauses of training tasks as tasks of their own: a plan's phase is what its clause alone asks its robot for.

So the robot head learns to say of each clause of a task whom it wants, which plans are made of
(``selection.plan_by_clauses``)::

    "Film the roof, then fetch the ladder from the shed."   1 Drone: film the roof   2 Humanoid: fetch the ladder
    gives  "Film the roof" -> Drone   and   "then fetch the ladder from the shed." -> Humanoid
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from embervlm.clauses import clauses
from embervlm.data.robot_rewording import is_reworded
from embervlm.data.sample import RobotSample, normalise_task

#: What stands between a task's id and the number of its clause.
CLAUSE = ", clause "
#: Letters by which two forms of a word are taken for one.
STEM_LETTERS = 5
# fmt: off
_COMMON_WORDS = frozenset({
    "the", "a", "an", "and", "to", "of", "in", "on", "at", "for", "with", "from", "it", "its", "is", "are", "be",
    "as", "by", "that", "this", "then", "into", "up", "out", "over", "down", "off", "our", "their", "his", "her",
})
# fmt: on


def is_clause(sample: RobotSample) -> bool:
    """Whether a sample is a clause and not as its file has it."""
    return CLAUSE in sample.id


def clause_tasks(train: Sequence[RobotSample], held_out: Sequence[RobotSample]) -> list[RobotSample]:
    """The clauses of training tasks without pictures whose plans give them a robot.

    Args:
        train: tasks; rewordings are passed over.
        held_out: tasks whose texts must not come out.
    """
    kept_back = {normalise_task(sample.task) for sample in held_out}
    return [
        clause
        for sample in train
        if len(sample.plan) > 1 and sample.image is None and not is_reworded(sample)
        for clause in _of_plan(sample)
        if normalise_task(clause.task) not in kept_back
    ]


def _of_plan(sample: RobotSample) -> Iterator[RobotSample]:
    parts = clauses(sample.task)
    if len(parts) < 2:
        return
    stems = [_stems(part) for part in parts]
    free = dict.fromkeys(range(len(parts)))
    for step in sample.plan:
        wanted = _stems(step.subtask)
        if not free or not wanted:
            return
        place = max(free, key=lambda each: len(wanted & stems[each]))
        if wanted & stems[place]:
            del free[place]
            robots = (step.robot,)
            yield RobotSample(
                id=f"{sample.id}{CLAUSE}{place + 1}",
                task=parts[place],
                leaders=robots,
                selected=robots,
                family=sample.family,
                voice=sample.voice,
                fleet=sample.fleet,
            )


def _stems(text: str) -> frozenset[str]:
    words = re.findall(r"[^\W_]+", text.casefold())
    return frozenset(word[:STEM_LETTERS] for word in words if word not in _COMMON_WORDS)
