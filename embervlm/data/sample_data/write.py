"""Writes the sample data: rendered scenes with their texts and robot tasks, in the publishers' own layouts.

The last step of ``embervlm data sample``; the readers of ``embervlm.data`` read the result like the real data sets.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from embervlm.data.sample import DataError
from embervlm.fleet import Fleet

from .render import encode_jpeg, render
from .scenes import KINDS, Kind, build_scene
from .tasks import TaskRecord, draw_kinds, make_records, picture_only_bound, text_only_bound

DEFAULT_SCENES = 1600
DEFAULT_SIZE = 144
MIN_SCENES = 20
HELD_OUT_SHARE = 0.15
VALIDATION_SHARE = 0.05
# Real COCO numbers end below 600,000; these never meet them where both are read in one run.
FIRST_ID = 900_000_001
_IN_PROCESS_BELOW = 48
_CHUNK = 8


@dataclass(frozen=True, slots=True)
class SampleDataSummary:
    """What was written.

    Attributes:
        out: the folder.
        seed: what everything was drawn from.
        scenes: pictures in all: those for training, for validation of captions, and held out for robot selection.
        captions, questions, conversations: records of stages 1 and 2 (validation captions included).
        single_tasks, multi_tasks: robot records for training.
        held_out_tasks: robot records of the held-out set, one phase and several.
        text_only_bound, picture_only_bound: what no guess from one of the two alone can exceed on the held-out set.
    """

    out: Path
    seed: int
    scenes: int
    train_scenes: int
    validation_scenes: int
    held_out_scenes: int
    captions: int
    questions: int
    conversations: int
    single_tasks: int
    multi_tasks: int
    held_out_tasks: int
    text_only_bound: float
    picture_only_bound: float


@dataclass(frozen=True, slots=True)
class _Job:
    seed: int
    index: int
    kind: str
    size: int


@dataclass(frozen=True, slots=True)
class _Shot:
    """A rendered scene: the file's bytes and what is known of it."""

    id: int
    kind: Kind
    light: str
    colour: str
    extras: tuple[str, ...]
    jpeg: bytes


def _shoot(job: _Job) -> _Shot:
    """Render one scene; runs in a worker, from nothing but the job."""
    rng = np.random.default_rng([job.seed, job.index])
    scene = build_scene(job.kind, rng)
    pixels = render(scene.picture, job.size, rng)
    jpeg = encode_jpeg(pixels, int(rng.integers(72, 93)))
    return _Shot(FIRST_ID + job.index, KINDS[job.kind], scene.light, scene.colour, scene.extras, jpeg)


def write_sample_data(
    out: Path,
    scenes: int = DEFAULT_SCENES,
    seed: int = 0,
    *,
    size: int = DEFAULT_SIZE,
    workers: int | None = None,
    progress: bool = True,
) -> SampleDataSummary:
    """Render ``scenes`` square pictures of ``size`` pixels and write them with their records to the new folder ``out``.

    15% of the scenes are held out for robot selection, 5% are COCO's validation pictures. The same seed gives the same
    bytes with any number of workers (None: one a core). Nothing is left behind if it fails.

    Raises:
        DataError: ``out`` exists and is not an empty folder, or a number is out of range.
    """
    out = Path(out)
    if scenes < MIN_SCENES or not 32 <= size <= 1024 or seed < 0:
        raise DataError(
            f"sample data: scenes={scenes}, size={size}, seed={seed}; expected at least {MIN_SCENES} scenes, "
            "a size of 32 to 1024 pixels and a seed from 0"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(
            f"{out} already exists and is not empty; name a new folder for the sample data, or delete it first"
        )
    partial = out.absolute().with_name(f"{out.absolute().name}.partial-{os.getpid()}")
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        partial.mkdir()
        summary = _write(partial, out, scenes, seed, size, workers, progress)
        if out.exists():
            out.rmdir()
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return summary


def _write(
    folder: Path, out: Path, scenes: int, seed: int, size: int, workers: int | None, progress: bool
) -> SampleDataSummary:
    rng = np.random.default_rng([seed, 1])
    held_out_count = max(round(scenes * HELD_OUT_SHARE), 2)
    validation_count = max(round(scenes * VALIDATION_SHARE), 1)
    train_count = scenes - held_out_count - validation_count
    train_kinds, validation_kinds, held_out_kinds = (
        draw_kinds(n, rng) for n in (train_count, validation_count, held_out_count)
    )
    kinds = [*train_kinds, *validation_kinds, *held_out_kinds]
    jobs = [_Job(seed, index, kind, size) for index, kind in enumerate(kinds)]

    coco, vqa, llava = (folder / "base_vlm" / name for name in ("coco", "vqa", "llava"))
    robots, held_out = folder / "robot-selection-dataset", folder / "heldout"
    for place in (
        coco / "train2017",
        coco / "val2017",
        vqa / "train2014",
        llava / "train2017",
        robots / "images",
        held_out / "images",
    ):
        place.mkdir(parents=True)
    train: list[_Shot] = []
    validation: list[_Shot] = []
    with _progress_bar(len(jobs), progress) as step:
        for index, shot in enumerate(_shots(jobs, workers)):
            name = f"{shot.id:012d}.jpg"
            if index < train_count:
                train.append(shot)
                copies = [
                    coco / "train2017" / name,
                    vqa / "train2014" / f"COCO_train2014_{name}",
                    llava / "train2017" / name,
                    robots / "images" / name,
                ]
            elif index < train_count + validation_count:
                validation.append(shot)
                copies = [coco / "val2017" / name]
            else:
                copies = [held_out / "images" / name]
            for path in copies:
                path.write_bytes(shot.jpeg)
            step()

    captions = 0
    for split, shots in (("train", train), ("val", validation)):
        document = _coco(shots, split, size, np.random.default_rng([seed, 2, captions]))
        captions += len(document["annotations"])
        _dump(document, coco / "annotations" / f"captions_{split}2017.json")
    questions, annotations = _vqa(train, np.random.default_rng([seed, 3]))
    _dump(questions, vqa / "v2_OpenEnded_mscoco_train2014_questions.json")
    _dump(annotations, vqa / "v2_mscoco_train2014_annotations.json")
    conversations = _llava(train, np.random.default_rng([seed, 4]))
    _dump(conversations, llava / "llava_instruct_150k.json")
    records = make_records(train_kinds, seed, held_out=False, first=0)
    tests = make_records(held_out_kinds, seed, held_out=True, first=train_count + validation_count)
    for place, chosen in ((robots, records), (held_out, tests)):
        _dump([_single(record) for record in chosen if not record.plan], place / "single_robot_selection.json")
        _dump([_multi(record) for record in chosen if record.plan], place / "multi_robot_selection_dataset.json")
    multi = sum(bool(record.plan) for record in records)
    summary = SampleDataSummary(
        out=out,
        seed=seed,
        scenes=scenes,
        train_scenes=train_count,
        validation_scenes=validation_count,
        held_out_scenes=held_out_count,
        captions=captions,
        questions=len(questions["questions"]),
        conversations=len(conversations),
        single_tasks=len(records) - multi,
        multi_tasks=multi,
        held_out_tasks=len(tests),
        text_only_bound=text_only_bound(tests),
        picture_only_bound=picture_only_bound(tests),
    )
    (folder / "README.md").write_text(_readme(summary, size), encoding="utf-8")
    return summary


def _shots(jobs: Sequence[_Job], workers: int | None) -> Iterator[_Shot]:
    """The rendered jobs in order; few of them are not worth starting workers for."""
    count = workers if workers is not None else os.cpu_count() or 1
    if count <= 1 or (workers is None and len(jobs) < _IN_PROCESS_BELOW):
        yield from map(_shoot, jobs)
        return
    # Fresh processes: a forked one would inherit torch's threads in a broken state.
    with ProcessPoolExecutor(count, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_shoot, jobs, chunksize=_CHUNK)


@contextmanager
def _progress_bar(total: int, shown: bool) -> Iterator[Callable[[], None]]:
    if not shown:
        yield lambda: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("Rendering scenes"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("scenes", total=total)
        yield lambda: bar.advance(task)


def _dump(document: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _choose(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


# ------- captions

_LICENCE = {"id": 1, "name": "MIT License", "url": "https://opensource.org/license/mit"}
_DATE = "2024-01-01 00:00:00"


def _info(description: str) -> dict[str, Any]:
    return {
        "description": description,
        "url": "",
        "version": "1.0",
        "year": 2024,
        "contributor": "EmberVLM",
        "date_created": "2024/01/01",
    }


def _light_words(shot: _Shot) -> str:
    if shot.kind.setting == "under water":
        return "under water"
    return {"daylight": "in daylight", "dusk": "at dusk", "artificial light": "under artificial light"}[shot.light]


def _seen(shot: _Shot) -> list[str]:
    return [*shot.kind.parts, *shot.extras]


def _subject(shot: _Shot) -> str | None:
    """The kind's subject with its colour, for example ``a yellow pipe``."""
    if not shot.kind.subject:
        return None
    name = f"{shot.colour} {shot.kind.subject}"
    if shot.kind.subject.endswith("s"):
        return name
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def _captions(shot: _Shot, rng: np.random.Generator) -> list[str]:
    """Two different true captions."""
    phrase, light, seen = shot.kind.phrase, _light_words(shot), _seen(shot)
    one, two = (seen[int(k)] for k in rng.permutation(len(seen))[:2])
    first = _choose(
        rng, (f"A picture of {phrase} {light}.", f"{_capital(phrase)}, seen {light}.", f"This is {phrase} {light}.")
    )
    options = [
        f"{_capital(phrase)} with {one} and {two}."
        if one.split()[-1] not in phrase and two.split()[-1] not in phrase
        else f"{_capital(one)} and {two}: {phrase}.",
        f"{_capital(one)} and {two} {light}.",
    ]
    subject = _subject(shot)
    if subject is not None:
        options += [
            f"{_capital(subject)} and {one}, {light}.",
            f"{_capital(phrase)}; there is {subject}."
            if subject.startswith(("a ", "an "))
            else f"{_capital(phrase)}; there are {subject}.",
        ]
    return [first, _choose(rng, options)]


def _coco(shots: Sequence[_Shot], split: str, size: int, rng: np.random.Generator) -> dict[str, Any]:
    images, annotations = [], []
    for shot in shots:
        images.append(
            {
                "license": 1,
                "file_name": f"{shot.id:012d}.jpg",
                "coco_url": "",
                "height": size,
                "width": size,
                "date_captured": _DATE,
                "flickr_url": "",
                "id": shot.id,
            }
        )
        annotations += [(shot.id, caption) for caption in _captions(shot, rng)]
    # As in the published files, captions of one picture do not stand side by side.
    order = rng.permutation(len(annotations))
    base = FIRST_ID + (0 if split == "train" else 50_000_000)
    return {
        "info": _info("Rendered sample scenes in the layout of COCO 2017 captions"),
        "licenses": [_LICENCE],
        "images": images,
        "annotations": [
            {"image_id": annotations[int(k)][0], "id": base + number, "caption": annotations[int(k)][1]}
            for number, k in enumerate(order)
        ],
    }


# ------- questions

# Things that are always in view in some kinds and never in the others.
_SIGNS = {
    "a pipe": ("underwater_pipeline",),
    "corals": ("coral_reef",),
    "racks": ("warehouse",),
    "a stove": ("kitchen",),
    "desks": ("office",),
    "steps": ("staircase",),
    "a car": ("road", "flooded_street"),
    "pylons": ("power_line",),
    "mountains": ("mountain_trail",),
    "broken slabs": ("rubble",),
    "a ship": ("harbour",),
}


def _questions(shot: _Shot, rng: np.random.Generator) -> list[tuple[str, str, str]]:
    """About five (question, question type, answer) of a scene."""
    kind = shot.kind
    under, indoors = kind.setting == "under water", kind.setting == "indoors"

    def yes(fact: bool) -> str:
        return "yes" if fact else "no"

    place_question = _choose(
        rng,
        (
            "What kind of place is this?",
            "What place is shown in the picture?",
            "What is in the picture?",
            "What place do you see?",
        ),
    )
    bank = [
        ("Is this under water?", "is this", yes(under)),
        ("Is this indoors?", "is this", yes(indoors)),
        ("Is this picture taken outdoors?", "is this", yes(not under and not indoors)),
        ("Is this place indoors, outdoors or under water?", "is this", kind.setting),
        ("Is the ground flat and firm?", "is the", yes(kind.flat)),
        ("Are there stairs?", "are there", yes(kind.name == "staircase")),
        ("What would one move on here?", "what", kind.ground),
    ]
    if not under:
        bank.append(("What is the light like?", "what is the", shot.light))
        bank.append(("Is it dusk?", "is it", yes(shot.light == "dusk")))
    if kind.subject:
        verb = "are" if kind.subject.endswith("s") else "is"
        bank.append((f"What color {verb} the {kind.subject}?", f"what color {verb} the", shot.colour))
    sign = _choose(rng, list(_SIGNS))
    own = [thing for thing, kinds in _SIGNS.items() if kind.name in kinds]
    if own and rng.random() < 0.5:
        sign = own[0]
    verb = "Is" if sign.startswith("a ") else "Are"
    bank.append((f"{verb} there {sign} in the picture?", f"{verb.lower()} there", yes(kind.name in _SIGNS[sign])))
    chosen = sorted(int(k) for k in rng.permutation(len(bank))[:4])
    return [(place_question, "what", kind.place), *(bank[k] for k in chosen)]


def _vqa(shots: Sequence[_Shot], rng: np.random.Generator) -> tuple[dict[str, Any], dict[str, Any]]:
    questions, annotations = [], []
    for shot in shots:
        for number, (question, question_type, answer) in enumerate(_questions(shot, rng)):
            key = shot.id * 1000 + number
            questions.append({"image_id": shot.id, "question": question, "question_id": key})
            annotations.append(
                {
                    "question_type": question_type,
                    "multiple_choice_answer": answer,
                    "answers": [{"answer": answer, "answer_confidence": "yes", "answer_id": k} for k in range(1, 11)],
                    "image_id": shot.id,
                    "answer_type": "yes/no" if answer in ("yes", "no") else "other",
                    "question_id": key,
                }
            )
    info = _info("Rendered sample scenes in the layout of VQA v2") | {"date_created": _DATE}
    head = {"info": info, "data_type": "mscoco", "data_subtype": "train2014", "license": _LICENCE}
    return {**head, "task_type": "Open-Ended", "questions": questions}, {**head, "annotations": annotations}


# ------- conversations


def _listing(things: Sequence[str]) -> str:
    return things[0] if len(things) == 1 else f"{', '.join(things[:-1])} and {things[-1]}"


def _llava(shots: Sequence[_Shot], rng: np.random.Generator) -> list[dict[str, Any]]:
    records = []
    for shot in shots:
        kind = shot.kind
        where = "under water" if kind.setting == "under water" else kind.setting
        light = {"daylight": "It is daylight.", "dusk": "It is dusk.", "artificial light": "Lamps light the place."}[
            shot.light
        ]
        firm = "flat and firm" if kind.flat else "not flat and firm"
        turns = [
            (
                _choose(rng, ("What does this picture show?", "Where are we?", "Describe the scene in a sentence.")),
                _choose(rng, (f"This is {kind.phrase}, {where}.", f"The picture shows {kind.phrase}. It is {where}.")),
            ),
            (
                _choose(rng, ("What can you see there?", "Which things are in view?", "What stands out?")),
                f"I can see {_listing(_seen(shot))}.",
            ),
            (
                _choose(rng, ("What would one move on here?", "What is the ground like?")),
                f"One would move on {kind.ground}, which {'are' if kind.ground.endswith('s') else 'is'} {firm}."
                if kind.setting != "under water"
                else "One would swim above sand.",
            ),
        ]
        if kind.setting != "under water":
            turns.append((_choose(rng, ("How is the light?", "What is the light like?")), light))
        subject = _subject(shot)
        if subject is not None:
            ending = "are" if kind.subject.endswith("s") else "is"
            turns.append((f"What color {ending} the {kind.subject}?", f"The {kind.subject} {ending} {shot.colour}."))
        count = int(rng.integers(2, min(len(turns), 4) + 1))
        rest = sorted(int(k) for k in rng.permutation(len(turns) - 1)[: count - 1])
        chosen = [turns[0], *(turns[k + 1] for k in rest)]
        conversation = []
        for number, (question, answer) in enumerate(chosen):
            if number == 0:
                question = f"<image>\n{question}" if rng.random() < 0.5 else f"{question}\n<image>"
            conversation += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        records.append({"id": f"{shot.id:012d}", "image": f"{shot.id:012d}.jpg", "conversations": conversation})
    return records


# ------- robot tasks


def _instruction() -> str:
    """The constant field of the robot files: the fleet in words."""
    fleet = Fleet.default()
    lines = [
        f"Robots: {', '.join(fleet.names)}. What is the most suited robot for the task? "
        "It can be more than one robot if they are both equally suited for the task."
    ]
    for robot in fleet:
        lines.append(
            f"{robot.name}:\ncapabilities: {', '.join(robot.capabilities)},\n"
            f"limitations: {', '.join(robot.limitations)},\nenvironments: {', '.join(robot.environments)}"
        )
    return "\n".join(lines)


def _common(record: TaskRecord) -> dict[str, Any]:
    return {
        "image": f"images/{FIRST_ID + record.scene:012d}.jpg",
        "leader": record.leader,
        "reasoning": {
            "requirements": record.reasoning.requirements,
            "environment": record.reasoning.environment,
            "capabilities": list(record.reasoning.capabilities),
        },
    }


def _single(record: TaskRecord) -> dict[str, Any]:
    head = {"instruction": _instruction(), "input": f"Task: {record.task}", "output": record.leader}
    return head | _common(record)


def _multi(record: TaskRecord) -> dict[str, Any]:
    head = {
        "instruction": _instruction(),
        "input": f"Task: {record.task}",
        "subtasks": [
            {"subtask": step.subtask, "assigned_robot": step.robot, "execution_order": step.order}
            for step in record.plan
        ],
        "original_single_robot_output": record.leader,
    }
    return head | _common(record)


def _readme(summary: SampleDataSummary, size: int) -> str:
    lines: Iterable[str] = (
        "# Sample data",
        "",
        f"Rendered scenes of {len(KINDS)} kinds of places ({size} x {size} pixels), their truth known, seed "
        f"{summary.seed}; made by `embervlm data sample`.",
        "",
        f"- `base_vlm`: {summary.train_scenes} training and {summary.validation_scenes} validation pictures with "
        f"{summary.captions} captions (COCO's layout), {summary.questions} questions (VQA v2), {summary.conversations} "
        "conversations (LLaVA)",
        f"- `robot-selection-dataset`: {summary.single_tasks} tasks of one phase and {summary.multi_tasks} of several, "
        "on the training pictures",
        f"- `heldout`: {summary.held_out_tasks} tasks on {summary.held_out_scenes} other pictures, worded differently; "
        "for evaluation only. There no guess from the text alone is right in more than "
        f"{summary.text_only_bound:.1%}, from the picture alone in more than {summary.picture_only_bound:.1%}.",
    )
    return "\n".join(lines) + "\n"
