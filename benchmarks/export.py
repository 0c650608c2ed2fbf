"""Measures what an export costs and keeps: sizes, and the answers of ONNX graphs against PyTorch's on 500 inputs.

Run as ``python benchmarks/export.py --out DIR``; the folders stay in DIR, for the other benchmarks to measure. Besides
the model in the box, or that of ``--model``, a preset with random weights is exported, whose sizes and differences are
those of a trained one.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measured import finish, machine, run_benchmark, say, table, verdict

from embervlm.export.check import Questions, loss, rendered_questions
from embervlm.export.write import MOST_LOST, save_onnx
from embervlm.fleet import Fleet
from embervlm.folders import model_folder
from embervlm.model import EmberVLMForConditionalGeneration, EmberVLMProcessor, preset_config
from embervlm.model.weights import save_folder
from embervlm.selection import CALIBRATION_FILE, Calibration, RobotSelector

INPUTS = 500
#: Rendered scenes that give as many inputs: each has four or five tasks, asked with its picture and without.
SCENES = 130
#: What the package is held against: the largest difference of logits, and megabytes of a quantised folder.
MOST_DIFFERENT = 1e-3
MOST_MEGABYTES = {"ember": 45.0, "spark": 10.0}


def main(arguments: list[str] | None = None) -> int:
    """Measure; 0 when it has, whatever the figures, 1 when it could not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="spark", metavar="DIR", help="the trained model (default: in the box)")
    parser.add_argument("--preset", choices=("ember", "spark"), default="ember", help="with random weights")
    return run_benchmark(parser, _measure, arguments)


def _measure(options: argparse.Namespace) -> int:
    found: dict[str, Any] = {"machine": machine(), "rows": [], "verdicts": []}
    asked = _inputs(20 if options.quick else INPUTS)
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    made = EmberVLMForConditionalGeneration(preset_config(options.preset))
    made.config.text_encoder_taught = True  # so that all that is exported has its part in the answers
    # Weights that know nothing would send half of a fleet, and write plans for seconds, as none that are trained do.
    calibration = Calibration(member_threshold=1.0, phases_alone=False)
    untrained = save_folder(
        options.out / f"{options.preset}-random",
        made,
        EmberVLMProcessor.for_config(made.config),
        Fleet.default(),
        {CALIBRATION_FILE: json.dumps(calibration.to_dict())},
    )
    anybody = [Fleet.default().names] * len(asked.tasks)  # who is right is not known of random weights
    for name, source, questions in (
        ("trained", model_folder(options.model), asked),
        (options.preset, untrained, Questions(asked.tasks, asked.pictures, anybody)),
    ):
        selector = RobotSelector.from_pretrained(source)
        for quantize in ("none", "int8"):
            say(f"export: {name}, {quantize}")
            folder = options.out / f"{name}-{'onnx' if quantize == 'none' else quantize}"
            started = time.perf_counter()
            save_onnx(folder, source, quantize, questions if quantize == "int8" else None)
            seconds = time.perf_counter() - started
            row = {"model": name, "quantize": quantize, "seconds": seconds, "megabytes": _megabytes(folder)}
            found["rows"].append(row | _compared(selector, RobotSelector.from_pretrained(folder), questions))
    trained, quantised, _, made_small = found["rows"]
    found["verdicts"] = [
        verdict("inputs with the same leader, exact", trained["same"] * trained["inputs"], "==", trained["inputs"]),
        verdict("difference of logits, exact", trained["difference"], "<=", MOST_DIFFERENT),
        verdict("points lost, int8", quantised["points"], "<=", MOST_LOST),
        verdict(f"MB, {options.preset}, int8", made_small["megabytes"], "<=", MOST_MEGABYTES[options.preset]),
    ]
    if options.model == "spark":
        found["verdicts"].append(verdict("MB, spark, int8", quantised["megabytes"], "<=", MOST_MEGABYTES["spark"]))
    listed = table(
        f"ONNX graphs against PyTorch on {len(asked.tasks)} inputs",
        "what",
        "numbers",
        "MB",
        "same leader",
        "leader right",
        "largest difference of logits",
        "s to export",
    )
    for row in found["rows"]:
        listed.add_row(
            row["model"],
            "exact" if row["quantize"] == "none" else row["quantize"],
            f"{row['megabytes']:.1f}",
            f"{row['same']:.1%}",
            f"{row['right']:.1%}" if row["model"] == "trained" else "",
            f"{row['difference']:.1g}",
            f"{row['seconds']:.0f}",
        )
    return finish(found, [listed], options.out / "export.json")


def _inputs(count: int) -> Questions:
    """Tasks about rendered scenes, with their pictures and without, drawn by lot."""
    every = rendered_questions(SCENES)
    chosen = random.Random(0).sample(range(len(every.tasks)), count)
    return Questions(*([part[n] for n in chosen] for part in (every.tasks, every.pictures, every.leaders)))


def _compared(one: RobotSelector, other: RobotSelector, asked: Questions) -> dict[str, Any]:
    """How the answers of graphs differ from those of PyTorch."""
    logits = [selector.score(asked.tasks, asked.pictures) for selector in (one, other)]
    difference = max(float(np.abs(first - second).max()) for first, second in zip(*logits, strict=True))
    lost = loss(one, other, asked)
    return {
        "inputs": lost.tasks,
        "same": lost.same,
        "right": lost.quantised,
        "points": lost.points,
        "difference": difference,
    }


def _megabytes(folder: Path) -> float:
    return sum(file.stat().st_size for file in folder.iterdir()) / 1e6


if __name__ == "__main__":
    sys.exit(main())
