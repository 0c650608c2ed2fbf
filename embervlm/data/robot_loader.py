"""From robot files to robot tasks: reading, merging what says the same, the split by task text, and the rewordings.

Files are recognised by content. The one format of ``robot_format`` holds all that a task can have. Of the public files
two layouts are read as they are; their records are counted from 0. Of a single record::

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

import hashlib
import logging
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from embervlm.data.files import list_folder
from embervlm.data.json_files import Head, peek_json, read_json
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
from embervlm.data.robot_fleets import fleet_beside
from embervlm.data.robot_format import SUFFIX, is_robot_lines, read_robot_lines
from embervlm.data.robot_rewording import DEFAULT_VARIANTS, REWORDED, add_rewordings
from embervlm.data.sample import DataError, PlanStep, Reasoning, RobotSample, normalise_task, split_by_key
from embervlm.fleet import Fleet

logger = logging.getLogger(__name__)

MAX_FILE_BYTES = 256 * 1024**2

#: ``lines`` is the one format; the others are the public files' layouts.
Kind = Literal["lines", "single", "multi"]
_KINDS: tuple[Kind, ...] = ("lines", "single", "multi")

DATASET = "robot_tasks"
STAGE: Literal[3] = 3


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
        train: robot tasks for training, as they are written; all of them where nothing was split.
        validation: robot tasks for validation.
        records_with_image: records whose picture was found.
        reworded: rewordings that stand beside the training tasks.
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
    records_with_image: int = 0
    reworded: int = 0

    @property
    def rejected(self) -> int:
        """Records left out; what is wrong with a record otherwise ends the reading."""
        return self.missing_images

    @property
    def kept(self) -> int:
        """Robot tasks for training and validation, without rewordings."""
        return self.train + self.validation

    def row(self) -> dict[str, str | int]:
        """The row for a report on data, where ``records`` is the sum of ``rejected``, ``duplicates`` and ``kept``."""
        return {
            "stage": STAGE,
            "dataset": DATASET,
            "files": len(self.files),
            "records": self.records,
            "with_answer": self.records,
            "with_image": self.records_with_image,
            "rejected": self.rejected,
            "duplicates": self.merged,
            "kept": self.kept,
            "reworded": self.reworded,
        }


@dataclass(frozen=True, slots=True)
class RobotData:
    """Robot tasks split by task text, and what was left out or joined on the way to them.

    Attributes:
        train: each task for training, followed by its rewordings.
        validation: the tasks for validation, as they are written.
        report: the counts.
    """

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
    labelled: tuple[str, ...]  # the robots of `robots`, `output` or `original_single_robot_output`
    leaders: tuple[str, ...]  # empty where the record does not say who leads
    reasoning: Reasoning | None
    image: Path | None
    subtasks: tuple[PlanStep, ...] = ()
    family: str | None = None
    voice: str | None = None
    suitable: tuple[str, ...] = ()
    fleet: Fleet | None = None


@dataclass(slots=True)
class _Counts:
    files: list[Path] = field(default_factory=list)
    records: int = 0
    with_image: int = 0
    missing: list[str] = field(default_factory=list)
    merged: int = 0
    conflicts: int = 0
    places: dict[str, str] = field(default_factory=dict)  # by a task's id: file and record


def load_robot_tasks(
    folder_or_file: str | Path,
    fleet: Fleet,
    *,
    seed: int = 0,
    validation_share: float = 0.1,
    variants: int = DEFAULT_VARIANTS,
) -> RobotData:
    """Read the robot tasks, split them and add rewordings to those for training.

    No text and no family is on both sides, whatever file it is in, and no rewording says what a validation task says.
    Of tasks whose voice is known whole voices are held out (see :func:`_held_out_groups`); of the others, texts.

    Args:
        folder_or_file: a folder with robot files anywhere below it, or one such file.
        fleet: whose names the files must use, but for those that a ``fleet.yaml`` lies beside; case is ignored.
        seed: of the split and the rewordings.
        validation_share: about this share of the tasks with a voice, and of the others' distinct texts; at least one
            text is held out unless this is 0.
        variants: how often each training task stands in ``train``: as written and in ``variants - 1`` rewordings.

    Raises:
        DataError: see :func:`read_robot_tasks`; or there is only one task text, so that none can be held out.
    """
    samples, counts = _read(Path(folder_or_file), fleet)
    groups = linked_groups(samples)
    voiced, held_out_groups = _held_out_groups(samples, groups, validation_share, seed)
    others = [sample for sample in samples if groups[_text_key(sample)] not in voiced]
    train, validation = split_by_key(others, lambda sample: groups[_text_key(sample)], validation_share, seed)
    train = [*train, *(s for s in samples if groups[_text_key(s)] in voiced - held_out_groups)]
    validation = [*validation, *(s for s in samples if groups[_text_key(s)] in held_out_groups)]
    if validation_share > 0 and not (train and validation):
        raise DataError(
            f"{folder_or_file}: all {len(samples)} robot records have one task text or family; at least two are"
            " needed to train on one and validate on another"
        )
    held_out = {_text_key(sample) for sample in validation}
    with_rewordings = add_rewordings(train, held_out, variants=variants, seed=seed)
    check_no_leak(with_rewordings, validation, counts.places)
    report = _report(samples, counts, len(train), len(validation), len(with_rewordings) - len(train))
    logger.info(
        "robot tasks: %d records in %d files, %d tasks on %d distinct texts, %d with a picture;"
        " %d for training and %d rewordings of them, %d for validation"
        " (%d records merged, %d tasks with differing labels)",
        report.records,
        len(report.files),
        report.samples,
        report.tasks,
        report.with_image,
        report.train,
        report.reworded,
        report.validation,
        report.merged,
        report.conflicts,
    )
    return RobotData(with_rewordings, validation, report)


def check_no_leak(
    train: Sequence[RobotSample], validation: Sequence[RobotSample], places: dict[str, str] | None = None
) -> None:
    """Make sure that no validation task's normalised text is among the training tasks, rewordings included.

    Args:
        train: what is trained on.
        validation: what is not.
        places: by id, a task's file and record, for the message; the id itself stands for those that are missing.

    Raises:
        DataError: names the text and both records.
    """
    held_out = {_text_key(sample): sample for sample in validation}
    for sample in train:
        found = held_out.get(_text_key(sample))
        if found is not None:
            names = [_place(each.id, places or {}) for each in (found, sample)]
            raise DataError(
                f"task {found.task!r:.120} is in validation ({names[0]}) and, normalised, in training ({names[1]});"
                " a validation task must not be trained on"
            )


def _place(sample_id: str, places: dict[str, str]) -> str:
    written, reworded, number = sample_id.rpartition(REWORDED)
    if sample_id in places or not reworded:
        return places.get(sample_id, sample_id)
    return f"{places.get(written, written)}{reworded}{number}"


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
    groups: dict[tuple[str, Path | None, int], list[_Record]] = {}
    fleets: dict[Path, Fleet | None] = {}
    found = _robot_files(path)
    names = Counter(file.name for file, _ in found)
    for file, kind in found:
        counts.files.append(file)
        # Two files of one name are told apart by their folders.
        label = file.name if names[file.name] == 1 else file.relative_to(path.resolve()).as_posix()
        if file.parent not in fleets:
            fleets[file.parent] = fleet_beside(file, fleet)
        own = fleets[file.parent]
        for record in _records(file, label, kind, own or fleet):
            record.fleet = own
            counts.records += 1
            if record.image is not None and not record.image.is_file():
                counts.missing.append(str(record.image))
                continue
            counts.with_image += record.image is not None
            groups.setdefault((normalise_task(record.task), record.image, id(own)), []).append(record)
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
    for first, *_ in groups.values():
        if first.id in counts.places:
            raise DataError(f"{first.place}: id {first.id!r:.80} is that of {counts.places[first.id]} already")
        counts.places[first.id] = first.place
    return [_merged(records, records[0].fleet or fleet, counts) for records in groups.values()], counts


def _lines_records(file: Path, label: str, fleet: Fleet) -> Iterator[_Record]:
    for number, sample in read_robot_lines(file, fleet, label):
        yield _Record(
            id=sample.id,
            place=f"{file}: line {number}",
            kind="lines",
            task=sample.task,
            labelled=sample.selected,
            leaders=sample.leaders,
            reasoning=sample.reasoning,
            image=sample.image,
            subtasks=sample.plan,
            family=sample.family,
            voice=sample.voice,
            suitable=sample.suitable,
        )


def file_pictures(file: Path, kind: Kind, fleet: Fleet) -> list[Path | None]:
    """The picture of each record of a robot file, there or not.

    Raises:
        DataError: as :func:`read_robot_tasks`, for this file alone.
    """
    return [record.image for record in _records(file, file.name, kind, fleet_beside(file, fleet) or fleet)]


def _records(file: Path, label: str, kind: Kind, fleet: Fleet) -> Iterator[_Record]:
    if kind == "lines":
        yield from _lines_records(file, label, fleet)
        return
    document = read_json(file, max_bytes=MAX_FILE_BYTES)
    if not isinstance(document, list):
        raise DataError(f"{file}: expected a list of robot records, found {type(document).__name__}")
    for number, entry in enumerate(document):
        yield _record(entry, kind, f"{label}[{number}]", file, number, fleet)


def _robot_files(path: Path) -> list[tuple[Path, Kind]]:
    """The robot files; the wording of the first ones is kept, which of the public files are those of single robots."""
    if not path.exists():
        raise DataError(f"{path}: no such robot data")
    if path.is_dir():
        listing = list_folder(path)
        candidates = listing.with_suffix(".json") + listing.with_suffix(SUFFIX)
    else:
        candidates = [path]
    found: list[tuple[Path, Kind]] = []
    unknown: list[str] = []
    for file in candidates:
        kind = kind_of(file)
        if kind is None:
            unknown.append(file.name)
        else:
            found.append((file, kind))
    if not found:
        if path.is_file() and path.suffix.lower() != SUFFIX:
            read_json(path, max_bytes=MAX_FILE_BYTES)  # a damaged file is told with the place of the damage
        raise DataError(
            f"{path}: no robot data among {len(candidates)} JSON files; looked for a list of objects with 'input' and"
            " 'output', or 'input' and 'subtasks', and for lines with 'task' and 'robots'"
        )
    if unknown:
        logger.info("no robot data, passed over: %s", ", ".join(unknown[:8]))
    return sorted(found, key=lambda item: (_KINDS.index(item[1]), item[0]))


def kind_of(file: Path) -> Kind | None:
    """Which kind of robot file this is, by its content; None where it is none."""
    kind = None if file.suffix.lower() == SUFFIX else _kind(peek_json(file))
    return kind if kind is not None or not is_robot_lines(file) else "lines"


def _kind(head: Head | None) -> Kind | None:
    if head is None or head.key or "input" not in head.first:
        return None
    if "subtasks" in head.first:
        return "multi"
    return "single" if "output" in head.first else None


def _record(entry: Any, kind: Kind, record_id: str, file: Path, number: int, fleet: Fleet) -> _Record:
    place = f"{file}: record {number}"
    if not isinstance(entry, dict):
        raise DataError(f"{place}: expected an object, found {type(entry).__name__}")
    task = checked_text(entry.get("input"), f"{place}: 'input'", MAX_TASK_CHARACTERS)
    task = re.sub(r"^task\s*:\s*", "", task, flags=re.IGNORECASE)
    if not normalise_task(task):
        raise DataError(f"{place}: 'input' holds no task, found {entry['input']!r:.60}")
    leaders: tuple[str, ...] = ()
    if entry.get("leader") is not None:
        leaders = (checked_robot(entry["leader"], f"{place}: 'leader'", fleet),)
    subtasks: tuple[PlanStep, ...] = ()
    if kind == "single":
        labelled = _robots(entry.get("output"), f"{place}: 'output'", fleet)
        if not set(leaders) <= set(labelled):
            raise DataError(
                f"{place}: 'leader' {leaders[0]} is not among the robots of 'output': {', '.join(labelled)}"
            )
    else:
        subtasks = _subtasks(entry.get("subtasks"), place, fleet)
        given = entry.get("original_single_robot_output")
        labelled = () if given is None else _robots(given, f"{place}: 'original_single_robot_output'", fleet)
        if not leaders and not labelled:
            raise DataError(f"{place}: expected 'original_single_robot_output' or 'leader', found neither")
    reasoning = None
    if entry.get("reasoning") is not None:
        reasoning = checked_reasoning(
            entry["reasoning"],
            leaders or labelled,
            f"{place}: 'reasoning'",
            fleet,
            has_image=entry.get("image") is not None,
        )
    image = None if entry.get("image") is None else checked_picture(entry["image"], file, place)
    return _Record(record_id, place, kind, task, labelled, leaders, reasoning, image, subtasks)


def _robots(value: Any, place: str, fleet: Fleet) -> tuple[str, ...]:
    """A comma list or a list of names, as a set in the fleet's order."""
    if isinstance(value, str):
        value = value.split(",")
    if not isinstance(value, list) or not value:
        raise DataError(f"{place} must be robot names, found {'nothing' if value is None else repr(value)[:60]}")
    return in_fleet_order({checked_robot(name, place, fleet) for name in value}, fleet)


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
        robot = checked_robot(entry.get("assigned_robot"), f"{where}: 'assigned_robot'", fleet)
        steps.append(
            PlanStep(order, robot, checked_text(entry.get("subtask"), f"{where}: 'subtask'", MAX_SUBTASK_CHARACTERS))
        )
    return tuple(steps)


def _merged(records: list[_Record], fleet: Fleet, counts: _Counts) -> RobotSample:
    """One robot task from all records about the same task text and picture.

    Records of the one format say who goes; then public plans with their leader; then the other records.
    """
    whole = [record for record in records if record.kind == "lines"]
    led_multi = [record for record in records if record.kind == "multi" and record.leaders]
    singles = [record for record in records if record.kind == "single"]
    leaders = {leader for record in whole or records for leader in record.leaders}
    if led_multi and not whole:
        selected = {step.robot for record in led_multi for step in record.subtasks} | leaders
    else:
        selected = {robot for record in whole or singles or records for robot in record.labelled} | leaders
    counts.merged += len(records) - 1
    counts.conflicts += len({record.labelled for record in records if record.labelled}) > 1 or (
        len({record.leaders for record in records if record.leaders}) > 1
    )
    first = records[0]
    return RobotSample(
        id=first.id,
        task=first.task,
        leaders=in_fleet_order(leaders or selected, fleet),
        selected=in_fleet_order(selected, fleet),
        plan=next((plan for plan in (_plan(record.subtasks, selected) for record in records) if plan), ()),
        reasoning=next((record.reasoning for record in records if record.reasoning is not None), None),
        image=first.image,
        family=next((record.family for record in records if record.family is not None), None),
        voice=next((record.voice for record in records if record.voice is not None), None),
        suitable=next((record.suitable for record in records if record.suitable), ()),
        fleet=first.fleet,
    )


def _plan(subtasks: tuple[PlanStep, ...], selected: set[str]) -> tuple[PlanStep, ...]:
    """The phases of the selected robots, their orders numbered 1, 2, 3 ... with ties kept."""
    kept = [step for step in subtasks if step.robot in selected]
    orders = sorted({step.order for step in kept})
    kept.sort(key=lambda step: step.order)
    return tuple(PlanStep(orders.index(step.order) + 1, step.robot, step.subtask) for step in kept)


def _text_key(sample: RobotSample) -> str:
    return normalise_task(sample.task)


def linked_groups(samples: Sequence[RobotSample]) -> dict[str, str]:
    """By normalised text the name of its group: texts of one family, and those of families that share a text."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            name = parent[name]
        return name

    for sample in samples:
        text = _text_key(sample)
        root(text)
        if sample.family is not None:
            parent[root(text)] = root(f"family/{sample.family}")
    return {_text_key(sample): root(_text_key(sample)) for sample in samples}


def _held_out_groups(
    samples: Sequence[RobotSample], groups: dict[str, str], share: float, seed: int
) -> tuple[set[str], set[str]]:
    """The groups of tasks with a voice, and those of them that validation gets: all of some voices.

    A model reads its own training's voices better than others, so that validation in the same ones would promise too
    much. Voices are drawn with the seed, those that would fill more than half of validation alone last, and a voice is
    held out if that brings the number of tasks nearer to ``share``. A group goes with its voices: one that has a
    held-out voice is held out whole, the few tasks in other voices that it may have included. So no held-out voice is
    trained on, and a voice that families bind to many others stays in training without keeping the others there.

    Returns:
        both empty where no voice can be held out; all tasks are then split by text alone.
    """
    by_voice: dict[str, set[str]] = defaultdict(set)
    for sample in samples:
        if sample.voice is not None:
            by_voice[sample.voice].add(groups[_text_key(sample)])
    voiced = set[str]().union(*by_voice.values())
    sizes = Counter(groups[_text_key(sample)] for sample in samples)
    wanted = share * sum(sizes[group] for group in voiced)
    held_out, size = set[str](), 0
    drawn = sorted(by_voice, key=lambda voice: hashlib.sha256(f"{seed}/voice/{voice}".encode()).digest())
    for voice in sorted(drawn, key=lambda voice: sum(sizes[group] for group in by_voice[voice]) > wanted / 2):
        further = sum(sizes[group] for group in by_voice[voice] - held_out)
        if abs(size + further - wanted) < abs(size - wanted):
            held_out |= by_voice[voice]
            size += further
    if held_out:
        logger.info(
            "robot tasks: %d of %d voices are held out for validation, with %d of %d tasks",
            sum(found <= held_out for found in by_voice.values()),
            len(by_voice),
            size,
            sum(sizes[group] for group in voiced),
        )
        return voiced, held_out
    if voiced and share > 0:
        logger.warning(
            "robot tasks: none of %d voices can be held out for validation, which is split by text alone;"
            " it will read higher than on tasks in other voices",
            len(by_voice),
        )
    return set(), set()


def _report(samples: list[RobotSample], counts: _Counts, train: int, validation: int, reworded: int) -> RobotReport:
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
        records_with_image=counts.with_image,
        reworded=reworded,
    )
