"""Robots and fleets: who can be sent, and how a fleet file is read. Robot names and their order live only here."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

#: What a fleet file is called in a model folder and beside robot files.
FLEET_FILE = "fleet.yaml"
MAX_FLEET_FILE_BYTES = 1_000_000
MAX_ROBOTS = 1_000
MAX_NAME_CHARACTERS = 80
MAX_PHRASE_CHARACTERS = 200
MAX_PHRASES = 50

_REQUIRED_KEYS = ("name", "capabilities", "limitations", "environments")
_OPTIONAL_KEYS = ("count", "payload_kg", "urdf", "same_as", "overlaps", "outdoes")


# What PyYAML raises on what is no YAML, and on values that are not of the type that a tag says, such as `!!int x`.
_YAML_ERRORS = (
    *(yaml.YAMLError, RecursionError, ValueError, TypeError, AttributeError, LookupError, ArithmeticError),
    AssertionError,
)


class FleetError(ValueError):
    """A fleet, or a robot's name, that cannot be used; the message says what was found and what was expected."""


@dataclass(frozen=True, slots=True)
class Robot:
    """One robot as its fleet file describes it.

    Attributes:
        name: what the robot is called; unique in its fleet regardless of case.
        capabilities: what it does well, a phrase each.
        limitations: what it cannot do or suffers from, a phrase each.
        environments: where it works, a phrase each.
        count: how many of it there are.
        payload_kg: what it carries, in kilograms, where known.
        urdf: path or name of its URDF description, where there is one; not opened here.
        same_as: the robot, of any fleet, that it does the same as and can stand in for in training; None for none.
        overlaps: names of robots that do some of what it does; neither is a wrong answer to the other's tasks.
        outdoes: names of robots of which it does some tasks better: it is no wrong answer to theirs, but they are to
            its own.

    The last three say which robots training may set beside each other. They are no part of the description.
    """

    name: str
    capabilities: tuple[str, ...]
    limitations: tuple[str, ...] = ()
    environments: tuple[str, ...] = ()
    count: int = 1
    payload_kg: float | None = None
    urdf: str | None = None
    same_as: str | None = None
    overlaps: tuple[str, ...] = ()
    outdoes: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """The name of what it is, without case: of the robot that it is the same as, or its own."""
        return _name_key(self.same_as or self.name)

    def overlapping(self, other: Robot) -> bool:
        """Whether the two have one name, are of one kind or do some of the same, as far as either says."""
        return (
            self.kind == other.kind
            or _name_key(self.name) == _name_key(other.name)
            or any(_name_key(name) == other.kind for name in self.overlaps)
            or any(_name_key(name) == self.kind for name in other.overlaps)
        )

    def may_do_for(self, other: Robot) -> bool:
        """Whether it may be a right answer to a task that ``other`` is sent for, as far as the two say."""
        return self.overlapping(other) or any(_name_key(name) == other.kind for name in self.outdoes)

    def to_dict(self) -> dict[str, Any]:
        """The robot as an entry of a fleet file; optional keys only where they are set."""
        entry: dict[str, Any] = {
            "name": self.name,
            "capabilities": list(self.capabilities),
            "limitations": list(self.limitations),
            "environments": list(self.environments),
        }
        if self.count != 1:
            entry["count"] = self.count
        if self.payload_kg is not None:
            entry["payload_kg"] = self.payload_kg
        if self.urdf is not None:
            entry["urdf"] = self.urdf
        if self.same_as is not None:
            entry["same_as"] = self.same_as
        for key, names in (("overlaps", self.overlaps), ("outdoes", self.outdoes)):
            if names:
                entry[key] = list(names)
        return entry


class Fleet:
    """An ordered set of robots with distinct names.

    Raises:
        FleetError: no robots, too many, or two with the same name.
    """

    def __init__(self, robots: Iterable[Robot]) -> None:
        self.robots = tuple(robots)
        if not self.robots:
            raise FleetError("the fleet has no robots; list at least one under 'robots:'")
        if len(self.robots) > MAX_ROBOTS:
            raise FleetError(f"the fleet has {len(self.robots)} robots; at most {MAX_ROBOTS} are supported")
        self._index: dict[str, int] = {}
        for index, robot in enumerate(self.robots):
            key = _name_key(robot.name)
            if key in self._index:
                raise FleetError(
                    f"two robots of the fleet are called {robot.name!r} (case is ignored); names must be distinct"
                )
            self._index[key] = index

    def __len__(self) -> int:
        return len(self.robots)

    def __iter__(self) -> Iterator[Robot]:
        return iter(self.robots)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fleet) and self.robots == other.robots

    def __hash__(self) -> int:
        return hash(self.robots)

    @property
    def names(self) -> tuple[str, ...]:
        """The robots' names in the fleet's order."""
        return tuple(robot.name for robot in self.robots)

    def index(self, name: str) -> int:
        """The place of the robot called ``name``; case and extra blanks are ignored.

        Raises:
            FleetError: no robot of the fleet has this name.
        """
        try:
            return self._index[_name_key(name)]
        except KeyError:
            raise FleetError(f"unknown robot {name!r}; the fleet has: {', '.join(self.names)}") from None

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and _name_key(name) in self._index

    def __getitem__(self, name: str) -> Robot:
        return self.robots[self.index(name)]

    @classmethod
    def default(cls) -> Fleet:
        """The five robots of the public robot-selection data, as their ``instruction`` field describes them."""
        return cls(_DEFAULT_ROBOTS)

    @classmethod
    def from_yaml(cls, path: str | Path) -> Fleet:
        """Read a fleet file.

        Raises:
            FleetError: the file is missing, too large, no YAML, or does not describe a fleet; names the place.
        """
        path = Path(path)
        try:
            with path.open("rb") as file:
                data = file.read(MAX_FLEET_FILE_BYTES + 1)
            if len(data) > MAX_FLEET_FILE_BYTES:
                raise FleetError(f"{path}: more than {MAX_FLEET_FILE_BYTES:,} bytes, the most that a fleet file has")
            text = data.decode("utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            raise FleetError(f"{path}: cannot read the fleet file ({_reason(error)})") from None
        try:
            document = yaml.load(text, Loader=_PlainLoader)  # noqa: S506 - a SafeLoader
        except _YAML_ERRORS as error:
            raise FleetError(f"{path}: not valid YAML ({_reason(error)})") from None
        try:
            return cls.from_dict(document)
        except FleetError as error:
            raise FleetError(f"{path}: {error}") from None

    @classmethod
    def from_dict(cls, document: Any) -> Fleet:
        """Build a fleet from the parsed content of a fleet file: ``{"robots": [{"name": ..., ...}, ...]}``.

        Raises:
            FleetError: names the robot and the key that is wrong.
        """
        if not isinstance(document, dict) or set(document) != {"robots"} or not isinstance(document["robots"], list):
            raise FleetError("expected one key 'robots' with a list of robots")
        if len(document["robots"]) > MAX_ROBOTS:
            raise FleetError(f"{len(document['robots'])} robots; at most {MAX_ROBOTS} are supported")
        return cls(_robot_from_entry(entry, number) for number, entry in enumerate(document["robots"], start=1))

    def to_dict(self) -> dict[str, Any]:
        """The fleet as the content of a fleet file."""
        return {"robots": [robot.to_dict() for robot in self.robots]}

    def to_yaml(self, path: str | Path) -> None:
        """Write the fleet as a fleet file that :meth:`from_yaml` reads back unchanged."""
        text = yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True)
        Path(path).write_text(text, encoding="utf-8")


class _PlainLoader(yaml.SafeLoader):
    """Safe YAML without aliases: a short file cannot expand into a huge one."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not supported in fleet files")
        return super().compose_node(parent, index)


def _robot_from_entry(entry: Any, number: int) -> Robot:
    place = f"robot {number}"
    if not isinstance(entry, dict):
        raise FleetError(f"{place}: expected keys {', '.join(_REQUIRED_KEYS)}, found {type(entry).__name__}")
    unknown = [str(key) for key in entry if key not in _REQUIRED_KEYS + _OPTIONAL_KEYS]
    missing = [key for key in _REQUIRED_KEYS if key not in entry]
    if unknown or missing:
        found = "; ".join(
            part
            for part in (
                f"missing keys: {', '.join(missing)}" if missing else "",
                f"unknown keys: {', '.join(unknown)}" if unknown else "",
            )
            if part
        )
        raise FleetError(
            f"{place}: {found}; expected {', '.join(_REQUIRED_KEYS)}, optional {', '.join(_OPTIONAL_KEYS)}"
        )
    name = _clean_phrase(entry["name"], f"{place}: name", MAX_NAME_CHARACTERS)
    if "," in name:
        raise FleetError(f"{place}: name {name!r} holds a comma, which separates names in the data")
    place = f"robot {number} ({name})"
    count, payload, urdf = entry.get("count", 1), entry.get("payload_kg"), entry.get("urdf")
    if not isinstance(count, int) or isinstance(count, bool) or count < 1:
        raise FleetError(f"{place}: count must be a whole number from 1, found {count!r}")
    if payload is not None and (
        not isinstance(payload, (int, float)) or isinstance(payload, bool) or not 0 <= payload < float("inf")
    ):
        raise FleetError(f"{place}: payload_kg must be a number from 0, found {payload!r}")
    if urdf is not None:
        urdf = _clean_phrase(urdf, f"{place}: urdf", MAX_PHRASE_CHARACTERS)
    same_as = entry.get("same_as")
    if same_as is not None:
        same_as = _clean_phrase(same_as, f"{place}: same_as", MAX_NAME_CHARACTERS)
    capabilities = _phrases(entry["capabilities"], f"{place}: capabilities")
    if not capabilities:
        raise FleetError(f"{place}: capabilities is empty; a robot is chosen by what it can do")
    return Robot(
        name=name,
        capabilities=capabilities,
        limitations=_phrases(entry["limitations"], f"{place}: limitations"),
        environments=_phrases(entry["environments"], f"{place}: environments"),
        count=count,
        payload_kg=None if payload is None else float(payload),
        urdf=urdf,
        same_as=same_as,
        overlaps=_phrases(entry.get("overlaps", []), f"{place}: overlaps", "names"),
        outdoes=_phrases(entry.get("outdoes", []), f"{place}: outdoes", "names"),
    )


def _phrases(value: Any, place: str, of: str = "phrases") -> tuple[str, ...]:
    if not isinstance(value, list):
        raise FleetError(f"{place} must be a list of {of}, found {type(value).__name__}")
    if len(value) > MAX_PHRASES:
        raise FleetError(f"{place} has {len(value)} {of}; at most {MAX_PHRASES} are supported")
    return tuple(_clean_phrase(phrase, place, MAX_PHRASE_CHARACTERS) for phrase in value)


def _clean_phrase(value: Any, place: str, limit: int) -> str:
    if not isinstance(value, str):
        raise FleetError(f"{place} must be text, found {value!r:.60}")
    phrase = " ".join(value.split())
    if not phrase or len(phrase) > limit:
        raise FleetError(f"{place} must have 1 to {limit} characters, found {len(phrase)}")
    if not phrase.isprintable():
        raise FleetError(f"{place} holds control characters")
    return phrase


@lru_cache(maxsize=4 * MAX_ROBOTS)
def _name_key(name: str) -> str:
    return re.sub(r"\s+", " ", name).strip().casefold()


def _reason(error: Exception) -> str:
    return " ".join(str(getattr(error, "strerror", None) or error).split())[:200] or type(error).__name__


_DEFAULT_ROBOTS = (
    Robot(
        name="Drone",
        capabilities=("fastest", "aerial navigation", "surveillance", "lightweight transport", "aerial inspection"),
        limitations=("limited payload", "loud", "weather dependent", "battery life"),
        environments=("outdoor", "large indoor spaces", "hard to reach areas"),
    ),
    Robot(
        name="Underwater Robot",
        capabilities=(
            "underwater navigation",
            "deep sea exploration",
            "marine inspection",
            "underwater manipulation",
        ),
        limitations=("water environments only", "communication limitations", "pressure constraints"),
        environments=("underwater", "marine", "pools", "pipes", "ocean exploration"),
    ),
    Robot(
        name="Humanoid",
        capabilities=("manipulation", "walking", "human interaction", "complex tasks", "tool use"),
        limitations=("slow movement", "balance issues", "high power consumption"),
        environments=("indoor", "human environments", "stairs", "complex terrain"),
    ),
    Robot(
        name="Robot with Wheels",
        capabilities=("fast movement", "good payload", "stable platform", "efficient"),
        limitations=("flat surfaces only", "limited climbing", "obstacle avoidance"),
        environments=("indoor", "warehouse", "flat outdoor areas", "roads"),
    ),
    Robot(
        name="Robot with Legs",
        capabilities=("rough terrain navigation", "stability", "load carrying", "inspection"),
        limitations=("limited manipulation", "height restrictions"),
        environments=("outdoor", "uneven terrain", "stairs", "industrial sites", "search and rescue"),
    ),
)
