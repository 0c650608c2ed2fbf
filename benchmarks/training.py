"""Measures training: samples a second, memory, share of the machine's peak, and where a step's time goes.

Each stage is trained by the package and by the plain reference (``naive.py``) over batches that lie ready in memory, in
fresh processes one after another. Run as ``python benchmarks/training.py --out DIR``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from measured import MIB, finish, format_name, machine, preset_flags, run_benchmark, say, table, verdict, worker

#: What the package is held against: times as fast at batch 8, in bf16, as the reference in fp32 and in bf16.
LEAST_SPEEDUP = {1: (45.0, 28.0), 2: (18.0, 9.0), 3: (30.0, 22.0)}
LEAST_SHARE_OF_PEAK = 0.5
MOST_MEMORY = 0.2
COMPARED_BATCH, LARGE_BATCH = 8, 32


def main(arguments: list[str] | None = None) -> int:
    """Measure; 0 when it has, whatever the figures, 1 when it could not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    preset_flags(parser)
    parser.add_argument("--stages", type=int, nargs="+", choices=(1, 2, 3), default=[1, 2, 3])
    parser.add_argument("--batch_sizes", type=int, nargs="+", default=[COMPARED_BATCH, LARGE_BATCH])
    parser.add_argument("--compile", action="store_true", help="also with the language model compiled")
    return run_benchmark(parser, _measure, arguments)


def _measure(options: argparse.Namespace) -> int:
    found: dict[str, Any] = {"machine": machine(), "preset": options.preset, "rows": [], "verdicts": []}
    with tempfile.TemporaryDirectory() as work:
        for stage in options.stages:
            for way, precision, size in _cases(options):
                say(f"stage {stage}: {way}, {precision}, batch {size}")
                settings = {
                    "stage": stage,
                    "preset": options.preset,
                    "way": way,
                    "precision": precision,
                    "batch_size": size,
                    "steps": 1 if options.quick else 3 if way == "naive" else 18,
                    "threads": options.threads,
                    "pictures": str(Path(work) / "pictures"),
                    "out": str(Path(work) / "run"),
                    "profile": way == "ours",
                }
                run = worker("stepping.py", "step", settings, {"OMP_NUM_THREADS": str(options.threads)})
                row = {"stage": stage, "way": way, "precision": precision, "batch_size": size}
                found["rows"].append(row | run.result | {"peak_mib": run.result["resident"] / MIB})
            found["verdicts"] += _verdicts(stage, found["rows"])
    return finish(found, _tables(found), options.out / f"training_{options.preset}.json")


def _cases(options: argparse.Namespace) -> list[tuple[str, str, int]]:
    compared = [(way, precision, COMPARED_BATCH) for way in ("naive", "ours") for precision in ("no", "bf16")]
    if options.compile:
        compared.append(("compiled", "bf16", COMPARED_BATCH))
    sizes = [size for size in options.batch_sizes if size != COMPARED_BATCH]
    return [each for each in compared if COMPARED_BATCH in options.batch_sizes] + [
        ("ours", "bf16", size) for size in sizes
    ]


def _verdicts(stage: int, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    by = {(row["way"], row["precision"], row["batch_size"]): row for row in rows if row["stage"] == stage}
    ours, large = by.get(("ours", "bf16", COMPARED_BATCH)), by.get(("ours", "bf16", LARGE_BATCH))
    made = []
    if ours is not None:
        for precision, least in zip(("no", "bf16"), LEAST_SPEEDUP[stage], strict=True):
            plain = by["naive", precision, COMPARED_BATCH]
            factor = ours["samples_per_second"] / plain["samples_per_second"]
            made.append(verdict(f"stage {stage}: bf16 over naive {format_name(precision)}", factor, ">=", least))
        plain = by["naive", "bf16", COMPARED_BATCH]
        made.append(
            verdict(f"stage {stage}: memory of naive bf16", ours["peak_mib"] / plain["peak_mib"], "<=", MOST_MEMORY)
        )
    if large is not None and stage < 3:
        made.append(
            verdict(
                f"stage {stage}: share of peak, batch {LARGE_BATCH}", large["share_of_peak"], ">=", LEAST_SHARE_OF_PEAK
            )
        )
    return made


def _tables(found: dict[str, Any]) -> list[Any]:
    speed = table(
        f"Training {found['preset']}",
        "stage",
        "way",
        "format",
        "batch",
        "samples/s",
        "ms a step",
        "tokens",
        "supervised",
        "GFLOP a sample",
        "share of peak",
        "peak MiB",
    )
    for row in found["rows"]:
        speed.add_row(
            str(row["stage"]),
            row["way"],
            format_name(row["precision"]),
            str(row["batch_size"]),
            f"{row['samples_per_second']:.2f}",
            f"{1000 * row['batch_size'] / row['samples_per_second']:,.0f}",
            f"{row['tokens']:.0f}",
            f"{row['supervised']:.0f}",
            f"{row['operations_per_sample'] / 1e9:.1f}",
            f"{row['share_of_peak']:.0%}",
            f"{row['peak_mib']:,.0f}",
        )
    profiled = [row for row in found["rows"] if row["profile"] and row["precision"] == "bf16"]
    kinds = list(dict.fromkeys(kind for row in profiled for kind in row["profile"]))
    where = table(
        "Where a step's time goes, bf16",
        "what",
        *(f"stage {row['stage']}, batch {row['batch_size']}" for row in profiled),
    )
    for kind in kinds:
        where.add_row(kind, *(f"{row['profile'].get(kind, 0):.0%}" for row in profiled))
    return [speed, where]


if __name__ == "__main__":
    sys.exit(main())
