"""Measures how a training step's time and memory grow with batch, text and fleet, and a selection's with the fleet.

Run as ``python benchmarks/costs.py --out DIR``; the figures become lines (a constant and a slope) and a picture.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from measured import MIB, finish, line, machine, preset_flags, run_benchmark, say, table, worker
from workload import write_pictures

BATCHES, TOKENS, ROBOTS = (1, 2, 4, 8, 16, 32), (64, 128, 256, 512, 960), (5, 10, 20, 50, 100, 200)
QUICK = {"batch": (1, 4), "text": (64, 128), "fleet": (5, 20), "selection": (5, 20)}
#: What stays as it is while one thing grows.
BATCH, TEXT = 8, 128

#: What grows in each sweep, the ticks of its axis, and what is measured.
SWEEPS = {
    "batch": ("samples in a batch", BATCHES),
    "text": ("tokens of a sample", TOKENS),
    "fleet": ("robots in training", ROBOTS),
    "selection": ("robots in a selection", ROBOTS),
}


def main(arguments: list[str] | None = None) -> int:
    """Measure; 0 when it has, whatever the figures, 1 when it could not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    preset_flags(parser)
    return run_benchmark(parser, _measure, arguments)


def _measure(options: argparse.Namespace) -> int:
    found: dict[str, Any] = {"machine": machine(), "preset": options.preset, "sweeps": {}}
    with tempfile.TemporaryDirectory() as work:
        (picture,) = write_pictures(Path(work), 1)
        for name, (_, full) in SWEEPS.items():
            points = []
            for value in QUICK[name] if options.quick else full:
                say(f"costs: {name} {value}")
                points.append({"value": value, **_point(name, value, options, picture, Path(work))})
            found["sweeps"][name] = {"points": points, **_lines(points)}
    listed = table(
        f"Costs, {options.preset}, bf16 in training, fp32 in a selection", "what", "from", "to", "ms", "peak MiB"
    )
    for name, (label, _) in SWEEPS.items():
        sweep = found["sweeps"][name]
        values = [point["value"] for point in sweep["points"]]
        listed.add_row(
            label,
            str(min(values)),
            str(max(values)),
            "{:.1f} + {:.3g} each".format(*sweep["milliseconds"]),
            "{:,.0f} + {:.3g} each".format(*sweep["peak_mib"]),
        )
    result = finish(found, [listed], options.out / f"costs_{options.preset}.json")
    draw(found, options.out / f"costs_{options.preset}.png")
    return result


def _point(name: str, value: int, options: argparse.Namespace, picture: Path, work: Path) -> dict[str, float]:
    """Milliseconds and the highest resident memory at one place of a sweep."""
    environment = {"OMP_NUM_THREADS": str(options.threads)}
    common = {"preset": options.preset, "way": "ours", "threads": options.threads}
    if name == "selection":
        repeats = 5 if options.quick else 40
        settings = common | {"precision": "no", "picture": str(picture), "repeats": repeats, "robots": value}
        run = worker("asking.py", "select", settings, environment)
        return {"milliseconds": run.result["milliseconds"]["median"], "peak_mib": run.resident / MIB}
    settings = common | {
        "precision": "bf16",
        "stage": 3 if name == "fleet" else 2,
        "batch_size": value if name == "batch" else BATCH,
        "tokens": value if name == "text" else TEXT,
        "steps": 1 if options.quick else 5,
        "out": str(work / "run"),
    }
    if name == "fleet":
        settings["robots"] = value
    run = worker("stepping.py", "step", settings, environment)
    return {"milliseconds": 1000 * statistics.median(run.result["seconds"]), "peak_mib": run.result["resident"] / MIB}


def _lines(points: Sequence[dict[str, float]]) -> dict[str, tuple[float, float]]:
    values = [point["value"] for point in points]
    return {name: line(values, [point[name] for point in points]) for name in ("milliseconds", "peak_mib")}


def draw(found: dict[str, Any], path: Path) -> None:
    """The sweeps as a picture: points, and the line through them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(found["sweeps"]), figsize=(13, 5.6), sharex="col", layout="constrained")
    rows = (("milliseconds", "ms, median", "#1f5fa8"), ("peak_mib", "peak MiB", "#b4511c"))
    for column, (name, sweep) in enumerate(found["sweeps"].items()):
        values = [point["value"] for point in sweep["points"]]
        for row, (key, label, colour) in enumerate(rows):
            axis = axes[row][column]
            constant, slope = sweep[key]
            axis.plot(values, [constant + slope * value for value in values], color=colour, alpha=0.4, linewidth=1.5)
            axis.plot(values, [point[key] for point in sweep["points"]], "o", color=colour, markersize=5)
            axis.set_ylim(0, 1.08 * max(point[key] for point in sweep["points"]))
            axis.grid(alpha=0.25)
            axis.spines[["top", "right"]].set_visible(False)
            if column == 0:
                axis.set_ylabel(label)
        axes[1][column].set_xlabel(SWEEPS[name][0])
    figure.suptitle(f"{found['preset']}: a training step (bf16; the first three) and a selection (fp32)", fontsize=11)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(main())
