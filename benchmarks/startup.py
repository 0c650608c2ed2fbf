"""Measures how long the command takes from the start of its process to its answer, and how much memory.

Run as ``python benchmarks/startup.py --out DIR``; ``--model`` measures another model folder than the one in the box.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from measured import HERE, MIB, Watched, finish, machine, run_benchmark, say, table, watch
from workload import write_pictures

TASK = "Look along the pipe under the bridge for cracks and leaks."
#: The parts of a start, each a program of its own that does what those before it do.
PARTS = {
    "the interpreter": "",
    "the package": "import embervlm, embervlm.cli",
    "torch": "import embervlm, torch",
    "what is decided with": "import embervlm, embervlm.selection",
    "the model": "from embervlm import RobotSelector; RobotSelector.from_pretrained({model!r})",
    "an answer": "from embervlm import RobotSelector;"
    " RobotSelector.from_pretrained({model!r}).select({task!r}, image={picture!r}, reason=False)",
}


def main(arguments: list[str] | None = None) -> int:
    """Measure; 0 when it has, whatever the figures, 1 when it could not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="spark", metavar="DIR", help="the model that is asked (default: in the box)")
    return run_benchmark(parser, _measure, arguments)


def _measure(options: argparse.Namespace) -> int:
    found: dict[str, Any] = {"machine": machine(), "model": options.model, "rows": []}
    environment = {"PYTHONPATH": str(HERE.parent), "HF_HUB_OFFLINE": "1"}
    with tempfile.TemporaryDirectory() as work:
        (picture,) = write_pictures(Path(work), 1)
        names = {"model": options.model, "task": TASK, "picture": str(picture)}
        programs = {name: [sys.executable, "-c", text.format(**names)] for name, text in PARTS.items()}
        asked = ["select", "--model", options.model, "--task", TASK, "--image", str(picture), "--no-reason", "--json"]
        programs["embervlm select"] = [
            sys.executable,
            "-c",
            f"import sys; from embervlm.cli import main; sys.exit(main({json.dumps(asked)}))",
        ]
        for name, command in programs.items():
            say(f"start-up: {name}")
            # The first one brings the files into the page cache.
            runs = [watch(command, environment) for _ in range(2 if options.quick else 6)][1:]
            found["rows"].append({"name": name, **_summary(runs)})
    listed = table(f"From the start of a process, model {options.model}", "up to and with", "seconds", "peak MiB")
    for row in found["rows"]:
        listed.add_row(row["name"], f"{row['seconds']:.2f}", f"{row['peak_mib']:,.0f}")
    return finish(found, [listed], options.out / "startup.json")


def _summary(runs: list[Watched]) -> dict[str, Any]:
    return {
        "seconds": statistics.median(run.seconds for run in runs),
        "all_seconds": [run.seconds for run in runs],
        "peak_mib": max(run.resident for run in runs) / MIB,
    }


if __name__ == "__main__":
    sys.exit(main())
