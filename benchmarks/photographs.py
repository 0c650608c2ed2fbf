"""Measures a model on real photographs, by the rule of ``docs/photographs.md``; no model is trained on them.

The photographs are read from a folder of their own. Results are a table and, with ``--json``, a file.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from embervlm.data.robot_format import write_robot_lines
from embervlm.data.sample import RobotSample
from embervlm.data.sample_data.tasks import INTENTS, RULES, wordings
from embervlm.evaluation.metrics import Bootstrap, Figure
from embervlm.evaluation.report import write_report
from embervlm.evaluation.run import Case, Evaluation, evaluate
from embervlm.selection import RobotSelector

TASKS_A_PHOTOGRAPH = 6
TASKS_UNDER_WATER = 4
TASKS_A_ROBOT = 3
TEXTS_AN_INTENT = 2


@dataclass(frozen=True, slots=True)
class Place:
    """What a photograph counts as.

    Attributes:
        kinds: of the table; where there are two, only what both answer alike is asked.
        intents: what is asked at most; empty for all.
    """

    kinds: tuple[str, ...]
    intents: tuple[str, ...] = ()

    def robots(self) -> dict[str, str]:
        """By intent that can be asked here: who goes."""
        found = {}
        for intent in self.intents or INTENTS:
            answers = {RULES[intent].get(kind) for kind in self.kinds}
            robot = answers.pop()
            if robot is not None and not answers:
                found[intent] = robot
        return found


_WOODED = Place(("forest", "mountain_trail"))

#: By folder, what its photographs count as; None for one whose photographs are all named in ``SINGLE``.
FOLDERS: dict[str, Place | None] = {
    "aerial_field_buildings": Place(("field_from_air",)),
    "aerial_power_lines": Place(("power_line",)),
    "corridor": Place(("corridor",)),
    "forest_trail": Place(("forest",)),
    "kitchen": Place(("kitchen",)),
    "office": Place(("office",)),
    "road": Place(("road",)),
    "rough_terrain": None,
    "stairs": Place(("staircase",), ("bottom", "heavy", "patrol", "hand_over", "operate", "guide", "repair")),
    "underwater": Place(("coral_reef",)),
    "warehouse": Place(("warehouse",)),
}

#: Photographs that count as something else than their folder; None for one that is left out.
SINGLE: dict[str, Place | None] = {
    "aerial_field_buildings/brighton_DJI_0018.jpg": Place(("forest",)),
    "aerial_field_buildings/deepforest_osbs_029.jpg": _WOODED,
    "aerial_power_lines/ttpla_18_02276.jpg": Place(("road",)),
    "forest_trail/jetson_trail_4.jpg": _WOODED,
    "forest_trail/jetson_trail_6.jpg": _WOODED,
    "rough_terrain/jetson_peds_2_log_pile_mountain.jpg": Place(("mountain_trail",)),
    "rough_terrain/wvn_mpi_outdoor_stepping_stones.jpg": _WOODED,
    "rough_terrain/coco_000000216794.jpg": None,
    "warehouse/indoor_pantry_shelves.jpg": Place(("kitchen",)),
}


class PhotographsError(ValueError):
    """Photographs that are not there or have no place in the rule; the message names them."""


def main(arguments: list[str] | None = None) -> int:
    """Measure and print; 0 when it has measured, whatever the figures, 1 when it could not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", required=True, metavar="DIR", help="a trained model's folder")
    parser.add_argument("--photos", type=Path, required=True, metavar="DIR", help="the photographs, by folder")
    parser.add_argument("--seed", type=int, default=0, help="of the tasks, the shuffling and the intervals")
    parser.add_argument("--report", type=Path, metavar="DIR", help="write a page, plots and every case there")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results here too")
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N photographs, to try this command")
    options = parser.parse_args(arguments)
    try:
        if options.seed < 0 or (options.limit is not None and options.limit < 1):
            raise PhotographsError("--seed must be 0 or more and --limit 1 or more")
        samples = make_samples(find_photographs(options.photos, options.limit), options.photos, options.seed)
        found = measure_photographs(RobotSelector.from_pretrained(options.model), samples, options)
        folders = by_folder(found.cases, options.photos, options.seed)
        if options.report is not None:
            sys.stderr.write(f"report: {write_report(found, options.report)}\n")
        if options.json is not None:
            values = found.to_dict() | {"by_folder": {name: asdict(figure) for name, figure in folders.items()}}
            options.json.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write("\n".join(_table(found, folders)) + "\n")
    return 0


def find_photographs(root: Path, limit: int | None = None) -> dict[str, Place]:
    """By ``folder/name``, in the order of the names, what each photograph counts as; those left out are not in it.

    Raises:
        PhotographsError: a folder or a named photograph is missing, or a folder is empty or has no place in the rule.
    """
    if not root.is_dir():
        raise PhotographsError(f"{root}: no such folder; expected the photographs, in folders such as kitchen")
    unknown = sorted({path.name for path in root.iterdir() if path.is_dir()} - FOLDERS.keys())
    if unknown:
        raise PhotographsError(f"{root / unknown[0]}: the rule has no such folder; it has {', '.join(FOLDERS)}")
    places: dict[str, Place] = {}
    for folder, general in FOLDERS.items():
        names = sorted(path.name for path in root.glob(f"{folder}/*.jpg"))
        if not names:
            raise PhotographsError(f"{root / folder}: no photographs there; expected *.jpg")
        for key in (f"{folder}/{name}" for name in names):
            place = SINGLE.get(key, general)
            if place is None and key not in SINGLE:
                raise PhotographsError(f"{root / key}: the rule does not say what this photograph counts as")
            if place is not None:
                places[key] = place
    missing = [key for key in SINGLE if not (root / key).is_file()]
    if missing:
        raise PhotographsError(f"{root / missing[0]}: missing; the rule names it")
    return dict(list(places.items())[:limit])


def make_samples(places: dict[str, Place], root: Path, seed: int) -> list[RobotSample]:
    """The tasks of the photographs, in their order, with who goes."""
    rng = np.random.default_rng([seed, 2])
    drawn = _draw_intents(places, rng)
    texts = _deal_texts(drawn, rng)
    return [
        RobotSample(
            id=f"{Path(key).with_suffix('')}/{intent}", task=text, leaders=(robot,), selected=(robot,), image=root / key
        )
        for (key, intent, robot), text in zip(drawn, texts, strict=True)
    ]


def _draw_intents(places: dict[str, Place], rng: np.random.Generator) -> list[tuple[str, str, str]]:
    """(photograph, intent, robot), balanced over robots in a photograph and over each intent's robots."""
    led: Counter[str] = Counter()
    asked: dict[str, Counter[str]] = defaultdict(Counter)
    drawn: dict[str, list[tuple[str, str, str]]] = {}
    keys = list(places)
    for key in (keys[int(k)] for k in rng.permutation(len(keys))):
        robots = places[key].robots()
        alone = len(set(robots.values())) == 1
        left = list(robots)
        rng.shuffle(left)
        here: Counter[str] = Counter()
        drawn[key] = []
        while left and len(drawn[key]) < (TASKS_UNDER_WATER if alone else TASKS_A_PHOTOGRAPH):
            robot = min((robots[intent] for intent in left), key=lambda name: (here[name], led[name]))
            if here[robot] == TASKS_A_ROBOT and not alone:
                break
            own = [intent for intent in left if robots[intent] == robot]
            intent = min(own, key=lambda one: asked[one][robot] / max(1, asked[one].total()))
            left.remove(intent)
            for counts, name in ((here, robot), (led, robot), (asked[intent], robot)):
                counts[name] += 1
            drawn[key].append((key, intent, robot))
    return [task for key in keys for task in drawn[key]]


def _deal_texts(drawn: Sequence[tuple[str, str, str]], rng: np.random.Generator) -> list[str]:
    pools = {intent: wordings(intent, True, rng, TEXTS_AN_INTENT) for intent in INTENTS}
    used: Counter[tuple[str, str]] = Counter()
    texts = []
    for _, intent, robot in drawn:
        texts.append(pools[intent][used[intent, robot] % TEXTS_AN_INTENT])
        used[intent, robot] += 1
    return texts


def measure_photographs(
    selector: RobotSelector, samples: Sequence[RobotSample], options: argparse.Namespace
) -> Evaluation:
    """The evaluation of the tasks; its cases have the photographs' own places."""
    with tempfile.TemporaryDirectory() as folder:
        # The evaluation reads tasks whose pictures lie beside them.
        work, copied = Path(folder), []
        for sample in samples:
            assert sample.image is not None
            copy = work / sample.image.relative_to(options.photos)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(sample.image, copy)
            copied.append(replace(sample, image=copy))
        write_robot_lines(work / "tasks.jsonl", copied)
        found = evaluate(selector, work, seed=options.seed, written=0, name=str(options.model), progress=_say)
        cases = [
            replace(case, image=options.photos / case.image.relative_to(work)) for case in found.cases if case.image
        ]
    return replace(found, data=str(options.photos), cases=tuple(cases))


def by_folder(cases: Iterable[Case], root: Path, seed: int) -> dict[str, Figure]:
    """Leader accuracy by the photographs' folders; intervals by draws of photographs."""
    found = defaultdict(list)
    for case in cases:
        if case.image is not None:
            found[case.image.relative_to(root).parts[0]].append(case)
    return {
        folder: Bootstrap([case.image for case in of], seed=seed).mean([float(case.leader_right) for case in of])
        for folder, of in sorted(found.items())
    }


def _say(what: str, done: int, total: int) -> None:
    if done == total:
        sys.stderr.write(f"{what}: {total} tasks\n")


def _table(found: Evaluation, folders: dict[str, Figure]) -> list[str]:
    def row(name: str, figure: Figure, per: str = "") -> str:
        return f"  {name:<28} {figure.value:6.1%}  ({figure.low:.1%} to {figure.high:.1%}){per}"

    lines = [f"{found.tasks} tasks about {found.pictures} photographs; 95% intervals by photograph", "Leader right"]
    for name, measures in (
        ("own photograph", found.own_pictures),
        ("another's photograph", found.shuffled_pictures),
        ("blank picture", found.blank_picture),
        ("no picture", found.no_picture),
    ):
        if measures is not None:
            lines.append(row(name, measures.leader_accuracy))
    lines.append(f"  {'at best by the text alone':<28} {found.text_only_bound:6.1%}")
    if found.picture_only_bound is not None:
        lines.append(f"  {'at best by the picture alone':<28} {found.picture_only_bound:6.1%}")
    lines.append(f"  {'always the same robot':<28} {found.majority:6.1%}")
    if found.own_pictures is not None:
        ece = found.own_pictures.ece
        lines += ["With their own photographs", row("exact set", found.own_pictures.exact_set)]
        lines.append(f"  {'calibration error (ECE)':<28} {ece.value:6.3f}  ({ece.low:.3f} to {ece.high:.3f})")
    if found.coverage is not None:
        lines.append(row(f"in the set for {found.coverage.level:.10g}", found.coverage.covered))
    lines.append("Leader right with their own photographs, by folder")
    lines += [row(folder, figure, f", {figure.tasks} tasks") for folder, figure in folders.items()]
    return lines + [f"note: {note}" for note in found.notes]


if __name__ == "__main__":
    raise SystemExit(main())
