"""Which robots a task of stage 3 is trained among: fleets of other data, stand-ins, and fleets put together by lot.

A model that always sees one fleet learns its five names. So training draws for each task who stands in for whom, and
with which others: the fleets that come out differ in size, names and descriptions, and the task's own robots are right
in all of them, as no robot stands beside them that may do their work too (``Robot.may_do_for``).
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from embervlm.data.sample import DataError, RobotSample
from embervlm.fleet import FLEET_FILE, Fleet, Robot

#: Share of the training tasks of the run's fleet whose robots are replaced by others that do the same, where there are
#: any, and share of those that keep their robots but get others of the batch beside them, or fewer. The other tasks are
#: trained among the run's fleet as it is.
STAND_IN_SHARE = 0.3
OTHER_FLEET_SHARE = 0.2
#: How often a training task of another fleet stands in an epoch, each time in other company: descriptions are learnt
#: from these, and there are few.
OTHER_FLEET_REPEATS = 4
#: Robots of a batch, which is filled up to so many where its tasks need fewer; each description is encoded once.
POOL_ROBOTS = 16


def fleet_beside(file: Path, fleet: Fleet) -> Fleet | None:
    """The fleet whose names a robot file uses: that of the fleet file in its folder; None where that is ``fleet``.

    Raises:
        FleetError: the fleet file cannot be used.
        DataError: it is a link out of its folder.
    """
    path = file.parent / FLEET_FILE
    if not path.is_file():
        return None
    if not path.resolve().is_relative_to(file.parent.resolve()):
        raise DataError(f"{path}: leads out of {file.parent} by a link; put the fleet file itself there")
    own = Fleet.from_yaml(path)
    return None if set(own) == set(fleet) else own


def other_robots(samples: Iterable[RobotSample], fleet: Fleet) -> tuple[Robot, ...]:
    """The robots of the samples' own fleets, each name once, without those that ``fleet`` has by name."""
    found: dict[str, Robot] = {}
    for own in other_fleets(samples):
        for robot in own:
            if robot.name not in fleet:
                found.setdefault(robot.name.casefold(), robot)
    return tuple(found.values())


def other_fleets(samples: Iterable[RobotSample]) -> list[Fleet]:
    """The samples' own fleets, each once."""
    # By identity, since a file's samples share theirs, and there may be many samples.
    return list({id(sample.fleet): sample.fleet for sample in samples if sample.fleet is not None}.values())


def stand_ins(fleet: Fleet, others: Iterable[Robot]) -> dict[str, tuple[Robot, ...]]:
    """By the name of a robot of ``fleet`` the others that do the same as it; robots without any are left out."""
    found: dict[str, list[Robot]] = {}
    for robot in others:
        if robot.same_as is not None and robot.same_as in fleet:
            found.setdefault(fleet[robot.same_as].name, []).append(robot)
    return {name: tuple(robots) for name, robots in found.items()}


def recast(sample: RobotSample, roles: Mapping[str, Robot]) -> RobotSample:
    """The task with other robots in its robots' roles.

    Its grounds name none of the leader's capabilities then, since the others' are worded otherwise.

    Args:
        sample: a task of robots, some of whom are replaced.
        roles: by name, who takes a robot's place.
    """

    def new(names: Sequence[str]) -> tuple[str, ...]:
        return tuple(roles[name].name if name in roles else name for name in names)

    return replace(
        sample,
        leaders=new(sample.leaders),
        selected=new(sample.selected),
        suitable=new(sample.suitable),
        plan=tuple(replace(step, robot=new([step.robot])[0]) for step in sample.plan),
        reasoning=None if sample.reasoning is None else replace(sample.reasoning, capabilities=()),
    )


@dataclass(frozen=True, slots=True)
class Cast:
    """A task as it is trained this time.

    Attributes:
        sample: the task, its robots' names those of the ones who do it.
        robots: who does it, around whom a fleet is put together; empty for the run's fleet as it is.
        lot: decides who else is in that fleet.
    """

    sample: RobotSample
    robots: tuple[Robot, ...] = ()
    lot: int = 0


def cast(
    sample: RobotSample, fleet: Fleet, stand_ins: Mapping[str, Sequence[Robot]], rng: random.Random, *, varied: bool
) -> Cast:
    """Draw who does a task and whether a fleet is put together around them.

    Args:
        sample: of ``fleet``, or of a fleet of its own.
        fleet: the run's.
        stand_ins: of :func:`stand_ins`.
        rng: draws.
        varied: whether tasks of the run's fleet get other robots at all.
    """
    drawn, lot = rng.random(), rng.getrandbits(32)
    if sample.fleet is not None:
        return Cast(sample, tuple(sample.fleet[name] for name in sample.selected), lot)
    roles = {name: fleet[name] for name in sample.selected}
    if varied and drawn < STAND_IN_SHARE and not stand_ins.keys().isdisjoint(roles):
        roles |= {name: rng.choice(stand_ins[name]) for name in roles if name in stand_ins}
        return Cast(recast(sample, roles), tuple(roles.values()), lot)
    if varied and STAND_IN_SHARE <= drawn < STAND_IN_SHARE + OTHER_FLEET_SHARE:
        return Cast(sample, tuple(roles.values()), lot)
    return Cast(sample)


@dataclass(frozen=True, slots=True)
class Company:
    """The robots of a batch, and for each of its tasks the places of some of them.

    Attributes:
        pool: all robots, whose descriptions are encoded once.
        own: the places of each task's robots as it gave them: the run's fleet where it gave none.
        fleets: the places of all the robots of each task's fleet.
    """

    pool: tuple[Robot, ...]
    own: list[list[int]]
    fleets: list[list[int]]


def gathered(tasks: Sequence[tuple[Sequence[Robot], int]], fleet: Fleet, others: Sequence[Robot]) -> Company:
    """Put the fleets of a batch together.

    Args:
        tasks: ``robots`` and ``lot`` of each task, as in :class:`Cast`.
        fleet: the run's.
        others: further robots that tasks may get beside their own.
    """
    rng = random.Random("/".join(str(lot) for _, lot in tasks))
    pool = pool_of((robot for robots, _ in tasks for robot in robots), fleet, others, rng)
    places = {robot: place for place, robot in enumerate(pool)}
    own, fleets = [], []
    for given, _ in tasks:
        robots: Sequence[Robot] = given or fleet.robots
        own.append([places[robot] for robot in robots])
        if given:
            least = len(robots) + 1
            robots = composed(robots, pool, rng.randint(least, max(least, len(pool))), rng)
        fleets.append([places[robot] for robot in robots])
    return Company(pool, own, fleets)


def pool_of(needed: Iterable[Robot], fleet: Fleet, others: Sequence[Robot], rng: random.Random) -> tuple[Robot, ...]:
    """The robots of a batch: those of the run's fleet, those that its tasks need, and further ones by lot."""
    pool = dict.fromkeys([*fleet, *needed])
    further = [robot for robot in others if robot not in pool]
    missing = max(0, min(POOL_ROBOTS - len(pool), len(further)))
    return (*pool, *rng.sample(further, missing))


def composed(needed: Sequence[Robot], pool: Sequence[Robot], size: int, rng: random.Random) -> list[Robot]:
    """A fleet of ``size`` robots, or fewer where the pool has too few that fit.

    Args:
        needed: the task's robots, which come first.
        pool: among whom the others are drawn; none of them may do what a needed one does, nor do any two overlap.
        size: robots in all.
        rng: draws them.
    """
    fleet = list(needed)
    for robot in rng.sample(pool, len(pool)):
        if len(fleet) >= size:
            break
        if not any(map(robot.may_do_for, needed)) and not any(map(robot.overlapping, fleet[len(needed) :])):
            fleet.append(robot)
    return fleet
