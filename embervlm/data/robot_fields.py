"""The fields of a robot record, checked one by one: what the readers of every robot layout share.

Each function takes a value as JSON gave it and ``place``, the file and the field, with which its message begins.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from embervlm.data.files import relative_name
from embervlm.data.sample import DataError, Reasoning
from embervlm.fleet import Fleet, FleetError

MAX_TASK_CHARACTERS = 2_000
MAX_SUBTASK_CHARACTERS = 500
MAX_REASON_CHARACTERS = 1_000
MAX_SUBTASKS = 50


def checked_text(value: Any, place: str, limit: int) -> str:
    """A text of 1 to ``limit`` characters, runs of blanks made one.

    Raises:
        DataError: no text, empty, too long, or half of a surrogate pair in it.
    """
    if not isinstance(value, str):
        raise DataError(f"{place} must be text, found {'nothing' if value is None else repr(value)[:60]}")
    text = " ".join(value.split()) if len(value) <= 10 * limit else value
    if not text or len(text) > limit:
        raise DataError(f"{place} must have 1 to {limit:,} characters, found {len(text):,}")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise DataError(f"{place} is not valid Unicode text")
    return text


def checked_robot(value: Any, place: str, fleet: Fleet) -> str:
    """A robot's name as the fleet writes it.

    Raises:
        DataError: no text, or the fleet has no such robot.
    """
    name = checked_text(value, place, MAX_SUBTASK_CHARACTERS)
    try:
        return fleet.names[fleet.index(name)]
    except FleetError as error:
        raise DataError(f"{place}: {error}") from None


def in_fleet_order(names: Iterable[str], fleet: Fleet) -> tuple[str, ...]:
    """The names in the fleet's order."""
    return tuple(sorted(names, key=fleet.index))


def checked_reasoning(value: Any, leaders: tuple[str, ...], place: str, fleet: Fleet, *, has_image: bool) -> Reasoning:
    """The written grounds; the capabilities must be some of the leaders', in whatever case.

    ``environment`` may be missing where there is no picture to show one.

    Raises:
        DataError: no object, a part of it missing, empty or too long, or a capability that no leader has.
    """
    if not isinstance(value, dict):
        raise DataError(f"{place}: expected an object, found {type(value).__name__}")
    named = value.get("capabilities")
    if not isinstance(named, list) or not named:
        raise DataError(f"{place}: 'capabilities' must be a list of phrases, found {named!r:.60}")
    known = {phrase.casefold(): phrase for leader in leaders for phrase in fleet[leader].capabilities}
    capabilities = []
    for phrase in named:
        text = checked_text(phrase, f"{place}: 'capabilities'", MAX_REASON_CHARACTERS)
        if text.casefold() not in known:
            raise DataError(
                f"{place}: capability {text!r:.80} is not among those of {', '.join(leaders)}:"
                f" {', '.join(known.values())}"
            )
        capabilities.append(known[text.casefold()])
    environment = ""
    if has_image or value.get("environment") is not None:
        environment = checked_text(value.get("environment"), f"{place}: 'environment'", MAX_REASON_CHARACTERS)
    return Reasoning(
        requirements=checked_text(value.get("requirements"), f"{place}: 'requirements'", MAX_REASON_CHARACTERS),
        environment=environment,
        capabilities=tuple(capabilities),
    )


def checked_picture(value: Any, file: Path, place: str) -> Path:
    """The path of a picture that ``file`` names relative to its own folder; it need not be there.

    Raises:
        DataError: no relative name, or it leaves the folder by ``..`` or by a link.
    """
    folder = file.parent.resolve()
    image = folder / relative_name(value, place)
    try:
        inside = image.resolve().is_relative_to(folder)
    except (OSError, RuntimeError):  # links in a circle (RuntimeError before Python 3.13), or a name too long
        inside = False
    if not inside:
        raise DataError(f"{place}: picture {value!r:.120} leads out of {folder} by a link")
    return image
