"""Measures one selection after another, a JPEG's decoding and the text's encoding counted in.

Run as ``python benchmarks/selection.py --out DIR``; ``--model`` measures a model folder too, whatever runs it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from measured import (
    MIB,
    finish,
    folder_flags,
    format_name,
    machine,
    preset_flags,
    run_benchmark,
    say,
    table,
    verdict,
    worker,
)
from workload import write_pictures

#: What the package is held against.
MOST_P99_OVER_MEDIAN = 2.0
MOST_LARGE_OVER_SMALL = 1.5
SMALL_FLEET, LARGE_FLEET = 5, 200


def main(arguments: list[str] | None = None) -> int:
    """Measure; 0 when it has, whatever the figures, 1 when it could not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    preset_flags(parser)
    folder_flags(parser)
    parser.add_argument("--repeats", type=int, default=200, help="questions of each way")
    return run_benchmark(parser, _measure, arguments)


def _measure(options: argparse.Namespace) -> int:
    found: dict[str, Any] = {"machine": machine(), "preset": options.preset, "rows": []}
    repeats = 5 if options.quick else options.repeats
    cases: list[dict[str, Any]] = [
        {"way": "naive", "precision": "no", "repeats": min(repeats, 30)},
        {"way": "naive", "precision": "bf16", "repeats": min(repeats, 30)},
        {"way": "ours", "precision": "no", "repeats": repeats},
        {"way": "ours", "precision": "no", "repeats": repeats, "robots": LARGE_FLEET},
        *({"way": "ours", "precision": "no", "repeats": repeats, "model": model} for model in options.model),
    ]
    with tempfile.TemporaryDirectory() as work:
        (picture,) = write_pictures(Path(work), 1)
        for case in cases:
            say("selection: " + ", ".join(f"{name} {value}" for name, value in case.items()))
            settings = case | {"preset": options.preset, "threads": options.threads, "picture": str(picture)}
            run = worker("asking.py", "select", settings, {"OMP_NUM_THREADS": str(options.threads)})
            found["rows"].append(case | run.result | {"peak_mib": run.resident / MIB})
    plain, _, small, large, *folders = found["rows"]

    def median(row: dict[str, Any]) -> float:
        return float(row["milliseconds"]["median"])

    for row in found["rows"]:
        row["times_as_fast"] = median(plain) / median(row)
    found["verdicts"] = [
        verdict("p99 over the median", small["milliseconds"]["p99"] / median(small), "<=", MOST_P99_OVER_MEDIAN),
        verdict(f"{LARGE_FLEET} robots over {SMALL_FLEET}", median(large) / median(small), "<=", MOST_LARGE_OVER_SMALL),
    ]
    listed = table(
        f"One selection, {options.preset}, picture and task",
        "way",
        "what",
        "robots",
        "median ms",
        "p99 ms",
        "times as fast",
        "GFLOP",
        "share of peak",
        "peak MiB",
    )
    for row in (plain, found["rows"][1], small, large, *folders):
        counted = "operations" in row
        listed.add_row(
            row["way"],
            row.get("model") or (format_name(row["precision"])),
            str(row.get("robots", SMALL_FLEET)),
            f"{median(row):.1f}",
            f"{row['milliseconds']['p99']:.1f}",
            f"{row['times_as_fast']:.1f}",
            f"{row['operations'] / 1e9:.1f}" if counted else "",
            f"{row['share_of_peak']:.0%}" if counted else "",
            f"{row['peak_mib']:,.0f}",
        )
    return finish(found, [listed], options.out / f"selection_{options.preset}.json")


if __name__ == "__main__":
    sys.exit(main())
