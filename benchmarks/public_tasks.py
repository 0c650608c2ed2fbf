"""Measures the model on the public robot-selection files by cross-validation, beside the baselines on the same folds.

For each fold the model is trained further, by stage 3, on the other folds' tasks and some of the collection; its
measured tasks it has never seen. The baselines are trained on the other folds, with and without the collection.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from embervlm.data.robot_format import write_robot_lines
from embervlm.data.robot_loader import read_robot_tasks
from embervlm.data.sample import RobotSample
from embervlm.evaluation.folds import apart_from, folds
from embervlm.evaluation.metrics import Measures, measure
from embervlm.evaluation.predictions import Predictions, joined, predict
from embervlm.evaluation.run import cross_validate
from embervlm.fleet import Fleet
from embervlm.selection import RobotSelector
from embervlm.training.arguments import RunSettings
from embervlm.training.pipeline import run


def main(arguments: list[str] | None = None) -> int:
    """Measure and print a table, or one JSON object."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the public robot files")
    parser.add_argument("--model", type=Path, required=True, metavar="DIR", help="trained on the collection alone")
    parser.add_argument("--train", type=Path, default=Path("collection/train"), metavar="DIR", help="the collection")
    parser.add_argument("--own", type=int, default=100, metavar="N", help="tasks of the collection in each fold")
    parser.add_argument("--folds", type=int, default=5, metavar="K")
    parser.add_argument("--epochs", type=float, default=4.0)
    parser.add_argument("--learning_rate", type=float, default=5e-4)
    parser.add_argument("--variants", type=int, default=2, help="wordings of each training task")
    parser.add_argument("--only", type=int, metavar="N", help="measure the first N folds alone")
    parser.add_argument("--no_baselines", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING)

    fleet = Fleet.default()
    samples = read_robot_tasks(options.data, fleet)
    collection = read_robot_tasks(options.train, fleet)
    parts = folds(samples, options.folds, options.seed)[: options.only]
    answers = []
    for number, part in enumerate(parts, 1):
        held_out = [samples[place] for place in part]
        others = [sample for place, sample in enumerate(samples) if place not in set(part)]
        own = random.Random(options.seed).sample(collection, min(options.own, len(collection)))
        with tempfile.TemporaryDirectory() as folder:
            answers.append(_answers(Path(folder), options, others + apart_from(own, held_out), held_out, fleet))
        _say(f"fold {number}: {_line(measure(answers[-1], held_out, seed=options.seed))}")
    order = np.argsort([place for part in parts for place in part]).tolist()
    measured = [samples[place] for place in sorted(place for part in parts for place in part)]
    found = {"EmberVLM": measure(joined(answers).of(order), measured, seed=options.seed)}
    if not options.no_baselines:
        for what, train in (("", None), (" and the collection", options.train)):
            whole = cross_validate(options.data, fleet, options.folds, train=train, seed=options.seed)
            found |= {f"{name}, trained on the public tasks{what}": each for name, each in whole.baselines.items()}
    if options.json:
        sys.stdout.write(json.dumps({name: asdict(each) for name, each in found.items()}, indent=2) + "\n")
    else:
        for name, each in found.items():
            sys.stdout.write(f"{name}: {_line(each)}\n")
    return 0


def _answers(
    folder: Path,
    options: argparse.Namespace,
    train: Sequence[RobotSample],
    held_out: Sequence[RobotSample],
    fleet: Fleet,
) -> Predictions:
    (folder / "tasks").mkdir()
    write_robot_lines(folder / "tasks" / "tasks.jsonl", train)
    settings = RunSettings(
        output_dir=folder / "outputs",
        stages=(3,),
        mixed_precision="bf16",
        batch_size=32,
        learning_rate=options.learning_rate,
        save_steps=100_000,
        log_steps=100_000,
        robot_data=folder / "tasks",
        robot_variants=options.variants,
        stage3_robot_epochs=options.epochs,
        init_from=options.model,
        seed=options.seed,
        num_workers=1,
    )
    settings.check()
    selector = RobotSelector.from_pretrained(run(settings))
    return predict(selector, [sample.task for sample in held_out], [None] * len(held_out))


def _line(measures: Measures) -> str:
    figures = {
        "leader": measures.leader_accuracy,
        "exact set": measures.exact_set,
        "Jaccard": measures.jaccard,
        "macro-F1": measures.macro_f1,
    }
    return ", ".join(f"{name} {each.value:.3f} ({each.low:.3f} to {each.high:.3f})" for name, each in figures.items())


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main())
