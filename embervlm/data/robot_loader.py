"""From the robot-selection files to robot tasks: reading, merging what says the same, and the split by task text.

Two layouts are read, recognised by content. Records are counted from 0. Of a single record::

    {"instruction": "Robots: ...", "input": "Task: Map the reef.", "output": "Drone, Underwater Robot"}

``output`` is a set. Of a multi record::

    {"instruction": "Robots: ...", "input": "Task: Map the reef.", "original_single_robot_output": "Underwater Robot",
     "subtasks": [{"subtask": "Survey the water's surface", "assigned_robot": "Drone", "execution_order": 1},
                  {"subtask": "Map the reef", "assigned_robot": "Underwater Robot", "execution_order": 3}]}

``original_single_robot_output`` is a text or a list, and orders may have ties and gaps. Both may also have ``image``
(relative to the file's folder), ``leader`` and ``reasoning`` (``requirements``, ``environment``, ``capabilities``).
The two records give::

    RobotSample(id="single_robot_selection.json[0]", task="Map the reef.", leaders=("Drone", "Underwater Robot"),
                selected=("Drone", "Underwater Robot"),
                plan=(PlanStep(1, "Drone", "Survey the water's surface"),
                      PlanStep(2, "Underwater Robot", "Map the reef")))
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from embervlm.data.files import list_folder, relative_name
from embervlm.data.json_files import Head, peek_json, read_json
from embervlm.data.sample import DataError, PlanStep, Reasoning, RobotSample, normalise_task, split_by_key
from embervlm.fleet import Fleet, FleetError

logger = logging.getLogger(__name__)

MAX_FILE_BYTES = 256 * 1024**2
MAX_TASK_CHARACTERS = 2_000
MAX_SUBTASK_CHARACTERS = 500
MAX_REASON_CHARACTERS = 1_000
MAX_SUBTASKS = 50

Kind = Literal["single", "multi"]


@dataclass(frozen=True, slots=True)
class RobotReport:
    """What became of the robot records.

    Attributes:
        files: the files read.
        records: records in them.
        missing_images: records left out because the picture they name is not there.
        merged: records that say the same task about the same picture as an earlier one, and were joined with it.
        conflicts: tasks whose records disagree on the label; all leaders that they give are kept.
        samples: robot tasks after merging.
        tasks: distinct task texts among them.
        with_image: robot tasks with a picture.
        train: robot tasks for training; all of them where nothing was split.
        validation: robot tasks for validation.
    """

    files: tuple[Path, ...]
    records: int
    missing_images: int
    merged: int
    conflicts: int
    samples: int
    tasks: int
    with_image: int
    train: int
    validation: int


@dataclass(frozen=True, slots=True)
class RobotData:
    """Robot tasks split by task text, and what was left out or joined on the way to them."""

    train: list[RobotSample]
    validation: list[RobotSample]
    report: RobotReport


@dataclass(slots=True)
class _Record:
    """One record as its file gives it, names already the fleet's."""

    id: str
    place: str
    kind: Kind
    task: str
    labelled: tuple[str, ...]  # the robots of `output` or `original_single_robot_output`
    leader: str | None
    reasoning: Reasoning | None
    image: Path | None
    subtasks: tuple[PlanStep, ...] = ()


@dataclass(slots=True)
class _Counts:
    files: list[Path] = field(default_factory=list)
    records: int = 0
    missing: list[str] = field(default_factory=list)
    merged: int = 0
    conflicts: int = 0


def load_robot_tasks(
    folder_or_file: str | Path, fleet: Fleet, *, seed: int = 0, validation_share: float = 0.1
) -> RobotData:
    """Read the robot tasks and split them by normalised task text, so that no text is on both sides.

    Args:
        folder_or_file: a folder with robot files anywhere below it, or one such file.
        fleet: whose names the files must use; case is ignored.
        seed: of the split.
        validation_share: share of the distinct task texts; at least one text is held out unless this is 0.

    Raises:
        DataError: see :func:`read_robot_tasks`; or there is only one task text, so that none can be held out.
    """
    samples, counts = _read(Path(folder_or_file), fleet)
    train, validation = split_by_key(samples, _text_key, validation_share, seed)
    if validation_share > 0 and not (train and validation):
        raise DataError(
            f"{folder_or_file}: all {len(samples)} robot records have the same task text; at least two texts are"
            " needed to train on one and validate on another"
        )
    shared = {_text_key(sample) for sample in train} & {_text_key(sample) for sample in validation}
    if shared:
        raise DataError(f"{folder_or_file}: task {min(shared)!r:.80} is in training and in validation")
    report = _report(samples, counts, len(train), len(validation))
    logger.info(
        "robot tasks: %d records in %d files, %d tasks on %d distinct texts, %d with a picture;"
        " %d for training, %d for validation (%d records merged, %d tasks with differing labels)",
        report.records,
        len(report.files),
        report.samples,
        report.tasks,
        report.with_image,
        report.train,
        report.validation,
        report.merged,
        report.conflicts,
    )
    return RobotData(list(train), list(validation), report)


def read_robot_tasks(path: str | Path, fleet: Fleet) -> list[RobotSample]:
    """Read every robot task of a folder or file without splitting, for evaluation on held-out data.

    Raises:
        DataError: the path is missing or holds no robot file; a field is missing, empty, too long or of the wrong type;
            a robot is not in the fleet; a picture's path leaves its file's folder; or no record is left. Names file,
            record and what was found.
    """
    return _read(Path(path), fleet)[0]


def _read(path: Path, fleet: Fleet) -> tuple[list[RobotSample], _Counts]:
    counts = _Counts()
    groups: dict[tuple[str, Path | None], list[_Record]] = {}
    for file, kind in _robot_files(path):
        counts.files.append(file)
        document = read_json(file, max_bytes=MAX_FILE_BYTES)
        if not isinstance(document, list):
            raise DataError(f"{file}: expected a list of robot records, found {type(document).__name__}")
        for number, entry in enumerate(document):
            counts.records += 1
            record = _record(entry, kind, file, number, fleet)
            if record.image is not None and not record.image.is_file():
                counts.missing.append(str(record.image))
                continue
            groups.setdefault((normalise_task(record.task), record.image), []).append(record)
    if counts.missing:
        logger.warning(
            "robot tasks: %d records, %d left out: image not found (first: %s)",
            counts.records,
            len(counts.missing),
            counts.missing[0],
        )
    if not groups:
        raise DataError(
            f"{path}: no usable robot record: {counts.records} records in {len(counts.files)} files,"
            f" {len(counts.missing)} of them name a picture that is not there"
        )
    return [_merged(records, fleet, counts) for records in groups.values()], counts


def _robot_files(path: Path) -> list[tuple[Path, Kind]]:
    """The robot files, single-robot ones first, as theirs is the wording that is kept."""
    if not path.exists():
        raise DataError(f"{path}: no such robot data")
    candidates = list_folder(path).with_suffix(".json") if path.is_dir() else [path]
    found: list[tuple[Path, Kind]] = []
    unknown: list[str] = []
    for file in candidates:
        kind = _kind(peek_json(file))
        if kind is None:
            unknown.append(file.name)
        else:
            found.append((file, kind))
    if not found:
        if path.is_file():
            read_json(path, max_bytes=MAX_FILE_BYTES)  # a damaged file is told with the place of the damage
        raise DataError(
            f"{path}: no robot data among {len(candidates)} JSON files; looked for a list of objects with 'input' and"
            " 'output', or 'input' and 'subtasks'"
        )
    if unknown:
        logger.info("no robot data, passed over: %s", ", ".join(unknown[:8]))
    return sorted(found, key=lambda item: (item[1] != "single", item[0]))


def _kind(head: Head | None) -> Kind | None:
    if head is None or head.key or "input" not in head.first:
        return None
    if "subtasks" in head.first:
        return "multi"
    return "single" if "output" in head.first else None


def _record(entry: Any, kind: Kind, file: Path, number: int, fleet: Fleet) -> _Record:
    place = f"{file}: record {number}"
    if not isinstance(entry, dict):
        raise DataError(f"{place}: expected an object, found {type(entry).__name__}")
    task = _text(entry.get("input"), f"{place}: 'input'", MAX_TASK_CHARACTERS)
    task = re.sub(r"^task\s*:\s*", "", task, flags=re.IGNORECASE)
    if not normalise_task(task):
        raise DataError(f"{place}: 'input' holds no task, found {entry['input']!r:.60}")
    leader = None
    if entry.get("leader") is not None:
        leader = _robot(entry["leader"], f"{place}: 'leader'", fleet)
    subtasks: tuple[PlanStep, ...] = ()
    if kind == "single":
        labelled = _robots(entry.get("output"), f"{place}: 'output'", fleet)
        if leader is not None and leader not in labelled:
            raise DataError(f"{place}: 'leader' {leader} is not among the robots of 'output': {', '.join(labelled)}")
    else:
        subtasks = _subtasks(entry.get("subtasks"), place, fleet)
        given = entry.get("original_single_robot_output")
        labelled = () if given is None else _robots(given, f"{place}: 'original_single_robot_output'", fleet)
        if leader is None and not labelled:
            raise DataError(f"{place}: expected 'original_single_robot_output' or 'leader', found neither")
    reasoning = None
    if entry.get("reasoning") is not None:
        leaders = (leader,) if leader is not None else labelled
        reasoning = _reasoning(entry["reasoning"], leaders, f"{place}: 'reasoning'", fleet)
    image = None if entry.get("image") is None else _image(entry["image"], file, place)
    return _Record(f"{file.name}[{number}]", place, kind, task, labelled, leader, reasoning, image, subtasks)


def _text(value: Any, place: str, limit: int) -> str:
    if not isinstance(value, str):
        raise DataError(f"{place} must be text, found {'nothing' if value is None else repr(value)[:60]}")
    text = " ".join(value.split())
    if not text or len(text) > limit:
        raise DataError(f"{place} must have 1 to {limit:,} characters, found {len(text):,}")
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise DataError(f"{place} is not valid Unicode text")
    return text


def _robot(value: Any, place: str, fleet: Fleet) -> str:
    name = _text(value, place, MAX_SUBTASK_CHARACTERS)
    try:
        return fleet.names[fleet.index(name)]
    except FleetError as error:
        raise DataError(f"{place}: {error}") from None


def _robots(value: Any, place: str, fleet: Fleet) -> tuple[str, ...]:
    """A comma list or a list of names, as a set in the fleet's order."""
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, list) or not value:
        raise DataError(f"{place} must be robot names, found {'nothing' if value is None else repr(value)[:60]}")
    return _in_order({_robot(name, place, fleet) for name in value}, fleet)


def _in_order(names: Iterable[str], fleet: Fleet) -> tuple[str, ...]:
    return tuple(sorted(names, key=fleet.index))


def _subtasks(value: Any, place: str, fleet: Fleet) -> tuple[PlanStep, ...]:
    if not isinstance(value, list) or len(value) > MAX_SUBTASKS:
        found = f"{len(value)} entries" if isinstance(value, list) else repr(value)[:60]
        raise DataError(f"{place}: 'subtasks' must be a list of at most {MAX_SUBTASKS}, found {found}")
    steps = []
    for number, entry in enumerate(value):
        where = f"{place}: subtask {number}"
        if not isinstance(entry, dict):
            raise DataError(f"{where}: expected an object, found {type(entry).__name__}")
        order = entry.get("execution_order")
        if not isinstance(order, int) or isinstance(order, bool):
            raise DataError(f"{where}: 'execution_order' must be a whole number, found {order!r:.60}")
        robot = _robot(entry.get("assigned_robot"), f"{where}: 'assigned_robot'", fleet)
        steps.append(PlanStep(order, robot, _text(entry.get("subtask"), f"{where}: 'subtask'", MAX_SUBTASK_CHARACTERS)))
    return tuple(steps)


def _reasoning(value: Any, leaders: tuple[str, ...], place: str, fleet: Fleet) -> Reasoning:
    if not isinstance(value, dict):
        raise DataError(f"{place}: expected an object, found {type(value).__name__}")
    named = value.get("capabilities")
    if not isinstance(named, list) or not named:
        raise DataError(f"{place}: 'capabilities' must be a list of phrases, found {named!r:.60}")
    known = {phrase.casefold(): phrase for leader in leaders for phrase in fleet[leader].capabilities}
    capabilities = []
    for phrase in named:
        text = _text(phrase, f"{place}: 'capabilities'", MAX_REASON_CHARACTERS)
        if text.casefold() not in known:
            raise DataError(
                f"{place}: capability {text!r:.80} is not among those of {', '.join(leaders)}:"
                f" {', '.join(known.values())}"
            )
        capabilities.append(known[text.casefold()])
    return Reasoning(
        requirements=_text(value.get("requirements"), f"{place}: 'requirements'", MAX_REASON_CHARACTERS),
        environment=_text(value.get("environment"), f"{place}: 'environment'", MAX_REASON_CHARACTERS),
        capabilities=tuple(capabilities),
    )


def _image(value: Any, file: Path, place: str) -> Path:
    folder = file.parent.resolve()
    image = folder / relative_name(value, place)
    if not image.resolve().is_relative_to(folder):
        raise DataError(f"{place}: picture {value!r:.120} leads out of {folder} by a link")
    return image


def _merged(records: list[_Record], fleet: Fleet, counts: _Counts) -> RobotSample:
    """One robot task from all records about the same task text and picture."""
    led_multi = [record for record in records if record.kind == "multi" and record.leader is not None]
    singles = [record for record in records if record.kind == "single"]
    selected: set[str] = set()
    if led_multi:
        for record in led_multi:
            selected |= {record.leader or "", *(step.robot for step in record.subtasks)}
    else:
        for record in singles or records:
            selected |= set(record.labelled)
    leaders = {record.leader for record in records if record.leader is not None}
    selected |= leaders
    labels = {record.labelled for record in records if record.labelled}
    counts.merged += len(records) - 1
    counts.conflicts += len(labels) > 1 or len(leaders) > 1
    first = records[0]
    return RobotSample(
        id=first.id,
        task=first.task,
        leaders=_in_order(leaders or selected, fleet),
        selected=_in_order(selected, fleet),
        plan=next((plan for plan in (_plan(record.subtasks, selected) for record in records) if plan), ()),
        reasoning=next((record.reasoning for record in records if record.reasoning is not None), None),
        image=first.image,
    )


def _plan(subtasks: tuple[PlanStep, ...], selected: set[str]) -> tuple[PlanStep, ...]:
    """The phases of the selected robots, their orders numbered 1, 2, 3 ... with ties kept."""
    kept = [step for step in subtasks if step.robot in selected]
    orders = sorted({step.order for step in kept})
    kept.sort(key=lambda step: step.order)
    return tuple(PlanStep(orders.index(step.order) + 1, step.robot, step.subtask) for step in kept)


def _text_key(sample: RobotSample) -> str:
    return normalise_task(sample.task)


def _report(samples: list[RobotSample], counts: _Counts, train: int, validation: int) -> RobotReport:
    return RobotReport(
        files=tuple(counts.files),
        records=counts.records,
        missing_images=len(counts.missing),
        merged=counts.merged,
        conflicts=counts.conflicts,
        samples=len(samples),
        tasks=len({_text_key(sample) for sample in samples}),
        with_image=sum(sample.image is not None for sample in samples),
        train=train,
        validation=validation,
    )
