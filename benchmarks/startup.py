"""Measures how long the command takes from the start of its process to its answer, and how much memory.

Run as ``python benchmarks/startup.py --out DIR``; ``--model`` measures other model folders than the one in the box.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from measured import HERE, MIB, Watched, finish, machine, run_benchmark, say, table, verdict, watch
from workload import write_pictures

from embervlm.folders import is_onnx

TASK = "Look along the pipe under the bridge for cracks and leaks."
#: The parts of a start, each a program of its own that does what those before it do: first those without a model.
BEFORE = {
    "the interpreter": "",
    "the package": "import embervlm, embervlm.cli",
    "torch": "import embervlm, torch",
    "what is decided with": "import embervlm, embervlm.selection",
}
WITH_MODEL = {
    "the model": "from embervlm import RobotSelector; RobotSelector.from_pretrained({model!r})",
    "an answer": "from embervlm import RobotSelector;"
    " RobotSelector.from_pretrained({model!r}).select({task!r}, image={picture!r}, reason=False)",
}
COMMAND = "embervlm select"
ENVIRONMENT = {"PYTHONPATH": str(HERE.parent), "HF_HUB_OFFLINE": "1"}
#: What a folder of graphs is held against.
MOST_SECONDS, MOST_MEGABYTES = 1.0, 150.0


def main(arguments: list[str] | None = None) -> int:
    """Measure; 0 when it has, whatever the figures, 1 when it could not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--model", action="append", metavar="DIR", help="a model that is asked, may be repeated (default: in the box)"
    )
    return run_benchmark(parser, _measure, arguments)


def _measure(options: argparse.Namespace) -> int:
    models = options.model or ["spark"]
    found: dict[str, Any] = {"machine": machine(), "models": models, "rows": [], "verdicts": []}
    listed = table("From the start of a process", "up to and with", "model", "seconds", "peak MiB")
    with tempfile.TemporaryDirectory() as work:
        (picture,) = write_pictures(Path(work), 1)
        for name, model, command in _programs(models, str(picture)):
            say(f"start-up: {name}{model and f', {model}'}")
            # The first one brings the files into the page cache.
            runs = [watch(command, ENVIRONMENT) for _ in range(2 if options.quick else 6)][1:]
            row = {"name": name, "model": model, **_summary(runs)}
            found["rows"].append(row)
            listed.add_row(name, Path(model).name, f"{row['seconds']:.2f}", f"{row['peak_mib']:,.0f}")
            if name == COMMAND and is_onnx(model):
                called = f"{Path(model).name}, {name}"
                found["verdicts"] += [
                    verdict(f"{called}: s", row["seconds"], "<=", MOST_SECONDS),
                    verdict(f"{called}: MB", row["peak_mib"] * MIB / 1e6, "<=", MOST_MEGABYTES),
                ]
    return finish(found, [listed], options.out / "startup.json")


def _programs(models: list[str], picture: str) -> Iterator[tuple[str, str, list[str]]]:
    """Name, model (empty for what needs none) and command of each program."""
    for name, text in BEFORE.items():
        yield name, "", [sys.executable, "-c", text]
    for model in models:
        for name, text in WITH_MODEL.items():
            yield name, model, [sys.executable, "-c", text.format(model=model, task=TASK, picture=picture)]
        asked = ["select", "--model", model, "--task", TASK, "--image", picture, "--no-reason", "--json"]
        program = f"import sys; from embervlm.cli import main; sys.exit(main({json.dumps(asked)}))"
        yield COMMAND, model, [sys.executable, "-c", program]


def _summary(runs: list[Watched]) -> dict[str, Any]:
    return {
        "seconds": statistics.median(run.seconds for run in runs),
        "all_seconds": [run.seconds for run in runs],
        "peak_mib": max(run.resident for run in runs) / MIB,
    }


if __name__ == "__main__":
    sys.exit(main())
