"""The one format of robot tasks on disk, JSON lines: single, multi and image-bearing tasks alike, read and written.

``robot_loader`` reads such files beside the public ones; ``write_robot_lines`` writes what was read. One task a line,
whose keys but ``task``, ``robots`` and one of ``leader`` and ``leaders`` may be left out::

    {"id": "dam-1", "task": "Survey the dam, then open the gate.", "image": "images/dam.jpg", "leader": "Drone",
     "robots": ["Drone", "Humanoid"],
     "plan": [{"order": 1, "robot": "Drone", "subtask": "Survey the dam"},
              {"order": 2, "robot": "Humanoid", "subtask": "Open the gate"}],
     "reasoning": {"requirements": "a view from above, hands", "environment": "a dam", "capabilities": ["fastest"]},
     "suitable": ["Drone", "Robot with Legs"], "family": "dam", "voice": "engineer"}

- ``image``: relative to the file's folder, and in it.
- ``leader``: who leads; ``leaders`` is a list, for labels that do not say which of several.
- ``robots``: all that go, leaders included.
- ``plan``: the phases; ``order`` counts 1, 2, 3 ..., phases side by side share one. Its robots are among ``robots``.
- ``reasoning``: all three, ``environment`` only with a picture; ``capabilities`` are some of the leaders', as the fleet
  words them.
- ``suitable``: all that could lead well enough, leaders included.
- ``family``, ``voice``: which tasks are versions of one another, and in whose manner this one is worded.

The line above gives::

    RobotSample(id="dam-1", task="Survey the dam, then open the gate.", leaders=("Drone",),
                selected=("Drone", "Humanoid"), plan=(PlanStep(1, "Drone", "Survey the dam"),
                PlanStep(2, "Humanoid", "Open the gate")), reasoning=Reasoning(...),
                image=Path(".../images/dam.jpg"), family="dam", voice="engineer",
                suitable=("Drone", "Robot with Legs"))
"""

from __future__ import annotations

import difflib
import json
import os
import re
import stat
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from embervlm.data.files import relative_name
from embervlm.data.json_files import BOM, BOM_CURE, StrictDecoder
from embervlm.data.robot_fields import (
    MAX_SUBTASK_CHARACTERS,
    MAX_SUBTASKS,
    MAX_TASK_CHARACTERS,
    checked_picture,
    checked_reasoning,
    checked_robot,
    checked_text,
    in_fleet_order,
)
from embervlm.data.sample import DataError, PlanStep, Reasoning, RobotSample, normalise_task
from embervlm.fleet import Fleet

SUFFIX = ".jsonl"
MAX_FILE_BYTES = 1024**3
#: Four bytes for each character of the longest record, and as much again for its keys and escapes.
MAX_LINE_BYTES = 512 * 1024
MAX_LABEL_CHARACTERS = 200

_KEYS = ("id", "task", "image", "leader", "leaders", "robots", "plan", "reasoning", "family", "voice", "suitable")
_STEP_KEYS = ("order", "robot", "subtask")
_REASONING_KEYS = ("requirements", "environment", "capabilities")
_LABEL_KEY = re.compile(rb'"(?:robots?|leaders?)"\s*:')
_TASK_KEY = re.compile(rb'"task"\s*:')


def is_robot_lines(path: Path) -> bool:
    """Whether a file's first line looks like a task with its robots; a damaged one may, and is then refused in reading.

    Raises:
        DataError: the file cannot be read.
    """
    with _open(path) as file:
        for line in iter(lambda: file.readline(MAX_LINE_BYTES), b""):
            text = line.removeprefix(BOM).strip()
            if text:
                return text.startswith(b"{") and bool(_TASK_KEY.search(text)) and bool(_LABEL_KEY.search(text))
    return False


def read_robot_lines(path: Path, fleet: Fleet, label: str = "") -> Iterator[tuple[int, RobotSample]]:
    """Read the robot tasks of a file, each with the number of its line, counted from 1; empty lines are passed over.

    Args:
        path: the file. Pictures that it names need not be there; that is for the caller to look at.
        fleet: whose names the file must use; case is ignored.
        label: what the ids of tasks without one begin with; the file's name unless given.

    Raises:
        DataError: names the file, the line, what was found and what was expected.
    """
    lines_of: dict[str, int] = {}
    decoder = StrictDecoder(path)
    with _open(path) as file:
        number, size = 0, os.fstat(file.fileno()).st_size
        if size > MAX_FILE_BYTES:
            raise DataError(f"{path}: {size:,} bytes; at most {MAX_FILE_BYTES:,} are read")
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            place = f"{path}: line {number}"
            if len(line) > MAX_LINE_BYTES:
                raise DataError(f"{place}: longer than {MAX_LINE_BYTES:,} bytes; expected one task a line")
            if number == 1 and line.startswith(BOM):
                raise DataError(f"{place}: {BOM_CURE}")
            if not line.strip():
                continue
            entry = decoder.line(line, number)
            if not isinstance(entry, dict):
                raise DataError(f"{place}: expected an object with a task, found {type(entry).__name__}")
            sample = _sample(entry, label or path.name, path, number, place, fleet)
            if sample.id in lines_of:
                raise DataError(f"{place}: 'id' {sample.id!r:.80} is that of line {lines_of[sample.id]} already")
            lines_of[sample.id] = number
            yield number, sample


def write_robot_lines(path: str | Path, samples: Iterable[RobotSample]) -> int:
    """Write robot tasks as one file: whole, or not at all, and what was there before until then stays.

    Args:
        path: the file; its folder is made where it is missing. Pictures must lie in that folder or below it.
        samples: the tasks, in the order of the lines.

    Returns:
        how many were written.

    Raises:
        DataError: a picture lies elsewhere, an id occurs twice, or the file cannot be written.
    """
    path = Path(path)
    count, ids = 0, set[str]()
    partial: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".partial", dir=path.parent)
        partial = Path(name)
        with open(handle, "w", encoding="utf-8", newline="\n") as file:  # noqa: PTH123 (mkstemp's open file)
            for sample in samples:
                if sample.id in ids:
                    raise DataError(f"{path}: id {sample.id!r:.80} occurs twice; each task needs its own")
                ids.add(sample.id)
                file.write(json.dumps(_entry(sample, path), ensure_ascii=False) + "\n")
                count += 1
            file.flush()
            os.fsync(file.fileno())
        # mkstemp's file is its owner's alone; the result gets what any new file gets.
        partial.chmod(0o666 & ~_umask())
        partial.replace(path)
    except OSError as error:
        raise DataError(f"{path}: cannot write the file ({error.strerror or error})") from None
    finally:
        if partial is not None:
            partial.unlink(missing_ok=True)
    return count


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def _open(path: Path) -> BinaryIO:
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            raise DataError(f"{path}: expected a file of robot tasks, found something that is no file")
        return path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot read the file ({error.strerror or error})") from None


def _check_keys(entry: dict[str, Any], known: tuple[str, ...], place: str) -> None:
    unknown = next((key for key in entry if key not in known), None)
    if unknown is not None:
        near = difflib.get_close_matches(unknown[:40].lower(), known, n=1)
        meant = f"did you mean {near[0]!r}? " if near else ""
        raise DataError(f"{place}: unknown key {unknown!r:.60}; {meant}keys are {', '.join(known)}")


def _sample(entry: dict[str, Any], label: str, path: Path, number: int, place: str, fleet: Fleet) -> RobotSample:
    _check_keys(entry, _KEYS, place)
    task = checked_text(entry.get("task"), f"{place}: 'task'", MAX_TASK_CHARACTERS)
    if not normalise_task(task):
        raise DataError(f"{place}: 'task' holds no task, found {task!r:.60}")
    robots = _names(entry.get("robots"), f"{place}: 'robots'", fleet)
    leaders = _leaders(entry, robots, place, fleet)
    reasoning = None
    if entry.get("reasoning") is not None:
        if isinstance(entry["reasoning"], dict):
            _check_keys(entry["reasoning"], _REASONING_KEYS, f"{place}: 'reasoning'")
        reasoning = checked_reasoning(
            entry["reasoning"],
            leaders,
            f"{place}: 'reasoning'",
            fleet,
            has_image=entry.get("image") is not None,
        )
    suitable: tuple[str, ...] = ()
    if entry.get("suitable") is not None:
        suitable = _names(entry["suitable"], f"{place}: 'suitable'", fleet)
        missing = next((name for name in leaders if name not in suitable), None)
        if missing is not None:
            raise DataError(f"{place}: the leader {missing} is not among 'suitable': {', '.join(suitable)}")
    labels = {
        key: None if entry.get(key) is None else checked_text(entry[key], f"{place}: {key!r}", MAX_LABEL_CHARACTERS)
        for key in ("id", "family", "voice")
    }
    return RobotSample(
        id=labels["id"] or f"{label}[{number}]",
        task=task,
        leaders=leaders,
        selected=robots,
        plan=_plan(entry.get("plan"), robots, place, fleet),
        reasoning=reasoning,
        image=None if entry.get("image") is None else checked_picture(entry["image"], path, place),
        family=labels["family"],
        voice=labels["voice"],
        suitable=suitable,
    )


def _names(value: Any, place: str, fleet: Fleet) -> tuple[str, ...]:
    if not isinstance(value, list) or not value:
        found = "nothing" if value is None else repr(value)[:60]
        raise DataError(f"{place} must be a list of robot names, found {found}")
    names = [checked_robot(name, place, fleet) for name in value[: len(fleet) + 1]]
    repeated = next((name for name in names if names.count(name) > 1), None)
    if repeated is not None:
        raise DataError(f"{place}: {repeated} occurs twice; expected each robot once")
    return in_fleet_order(names, fleet)


def _leaders(entry: dict[str, Any], robots: tuple[str, ...], place: str, fleet: Fleet) -> tuple[str, ...]:
    given = [key for key in ("leader", "leaders") if entry.get(key) is not None]
    if len(given) != 1:
        found = "both" if given else "neither"
        raise DataError(f"{place}: expected 'leader' (one name) or 'leaders' (a list), found {found}")
    key = given[0]
    if key == "leader":
        leaders: tuple[str, ...] = (checked_robot(entry[key], f"{place}: 'leader'", fleet),)
    else:
        leaders = _names(entry[key], f"{place}: 'leaders'", fleet)
    outside = next((name for name in leaders if name not in robots), None)
    if outside is not None:
        raise DataError(f"{place}: {key!r} {outside} is not among 'robots': {', '.join(robots)}")
    return leaders


def _plan(value: Any, robots: tuple[str, ...], place: str, fleet: Fleet) -> tuple[PlanStep, ...]:
    if value is None:
        return ()
    if not isinstance(value, list) or len(value) > MAX_SUBTASKS:
        found = f"{len(value)} entries" if isinstance(value, list) else repr(value)[:60]
        raise DataError(f"{place}: 'plan' must be a list of at most {MAX_SUBTASKS} phases, found {found}")
    steps: list[PlanStep] = []
    for number, entry in enumerate(value, 1):
        where = f"{place}: phase {number}"
        if not isinstance(entry, dict):
            raise DataError(f"{where}: expected an object, found {type(entry).__name__}")
        _check_keys(entry, _STEP_KEYS, where)
        order, before = entry.get("order"), steps[-1].order if steps else 0
        expected = (before, before + 1) if steps else (1,)
        if isinstance(order, bool) or not isinstance(order, int) or order not in expected:
            raise DataError(f"{where}: 'order' must be {' or '.join(map(str, expected))}, found {order!r:.60}")
        robot = checked_robot(entry.get("robot"), f"{where}: 'robot'", fleet)
        if robot not in robots:
            raise DataError(f"{where}: 'robot' {robot} is not among 'robots': {', '.join(robots)}")
        subtask = checked_text(entry.get("subtask"), f"{where}: 'subtask'", MAX_SUBTASK_CHARACTERS)
        steps.append(PlanStep(order, robot, subtask))
    return tuple(steps)


def _entry(sample: RobotSample, path: Path) -> dict[str, Any]:
    entry: dict[str, Any] = {"id": sample.id, "task": sample.task}
    if sample.image is not None:
        entry["image"] = _picture_name(sample.image, path, sample.id)
    if len(sample.leaders) == 1:
        entry["leader"] = sample.leaders[0]
    else:
        entry["leaders"] = list(sample.leaders)
    entry["robots"] = list(sample.selected)
    if sample.plan:
        entry["plan"] = [{"order": step.order, "robot": step.robot, "subtask": step.subtask} for step in sample.plan]
    if sample.reasoning is not None:
        entry["reasoning"] = _reasoning_entry(sample.reasoning)
    for key, value in (("family", sample.family), ("voice", sample.voice)):
        if value is not None:
            entry[key] = value
    if sample.suitable:
        entry["suitable"] = list(sample.suitable)
    return entry


def _reasoning_entry(reasoning: Reasoning) -> dict[str, Any]:
    environment = {"environment": reasoning.environment} if reasoning.environment else {}
    return {
        "requirements": reasoning.requirements,
        **environment,
        "capabilities": list(reasoning.capabilities),
    }


def _picture_name(image: Path, path: Path, sample_id: str) -> str:
    folder = path.parent.resolve()
    # As it is called first: a link in the folder keeps its name.
    for picture in (image.absolute(), image.resolve()):
        if picture.is_relative_to(folder):
            return str(relative_name(picture.relative_to(folder).as_posix(), f"{path}: {sample_id}"))
    raise DataError(
        f"{path}: the picture of {sample_id}, {image}, is not below {folder}; write the file into a folder above its"
        " pictures"
    )
