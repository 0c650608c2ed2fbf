"""Measures two training processes against one on the same cores, and works out what many would be held up by.

Run as ``python benchmarks/scaling.py --out DIR``. The second table is arithmetic on measured numbers of operations and
gradient sizes and on assumptions that it names; no such run has been made.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

from measured import MIB, finish, machine, run_benchmark, say, table, worker
from workload import write_pictures

BATCH = 16
#: Of the reckoning: GPUs, links, samples of each GPU, and operations a second that a GPU is assumed to reach: a third
#: of the 989 TFLOP/s that NVIDIA gives for an H100 in bf16.
GPUS = 64
GIGABITS = (25, 100)
SAMPLES = (32, 256)
ASSUMED_FLOPS = 330e12
#: Bytes of a gradient's number, and the share of a step in which gradients can be sent: of its three equal parts the
#: two of the backward pass.
GRADIENT_BYTES = 4
OVERLAPPED = 2 / 3


def main(arguments: list[str] | None = None) -> int:
    """Measure; 0 when it has, whatever the figures, 1 when it could not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--preset", choices=("ember", "spark"), default="ember")
    parser.add_argument("--stages", type=int, nargs="+", choices=(1, 2, 3), default=[1, 2])
    return run_benchmark(parser, _measure, arguments)


def _measure(options: argparse.Namespace) -> int:
    found: dict[str, Any] = {"machine": machine(), "preset": options.preset, "rows": [], "reckoned": []}
    measured = table(
        f"Processes, {options.preset}, bf16, {BATCH} samples a step in all",
        "stage",
        "processes",
        "threads of each",
        "samples/s",
        "against one thread",
        "peak MiB of each",
    )
    with tempfile.TemporaryDirectory() as work:
        write_pictures(Path(work) / "pictures")
        for stage in options.stages:
            rows = [
                _row(options, stage, processes, threads, Path(work)) for processes, threads in ((1, 1), (1, 2), (2, 1))
            ]
            for row in rows:
                row["against_one_thread"] = row["samples_per_second"] / rows[0]["samples_per_second"]
                measured.add_row(
                    str(stage),
                    str(row["processes"]),
                    str(row["threads"]),
                    f"{row['samples_per_second']:.2f}",
                    f"{row['against_one_thread']:.2f}",
                    f"{row['peak_mib']:,.0f}",
                )
            found["rows"] += rows
            found["reckoned"] += reckon(stage, rows[0]["operations_per_sample"], rows[0]["trained_parameters"])
    return finish(found, [measured, _reckoned_table(found["reckoned"])], options.out / f"scaling_{options.preset}.json")


def _row(options: argparse.Namespace, stage: int, processes: int, threads: int, work: Path) -> dict[str, Any]:
    say(f"scaling: stage {stage}, {processes} processes of {threads} threads")
    settings = {
        "preset": options.preset,
        "stage": stage,
        "way": "ours",
        "precision": "bf16",
        "batch_size": BATCH // processes,
        "steps": 1 if options.quick else 10,
        "threads": threads,
        "processes": processes,
        "pictures": str(work / "pictures"),
        "out": str(work / "run"),
    }
    run = worker("stepping.py", "step" if processes == 1 else "ranks", settings, {"OMP_NUM_THREADS": str(threads)})
    found = {"stage": stage, "processes": processes, "threads": threads, "peak_mib": run.result["resident"] / MIB}
    return found | run.result


def reckon(stage: int, operations_per_sample: float, parameters: int) -> list[dict[str, float]]:
    """What a step of ``GPUS`` takes by arithmetic: its work, and the gradients' way in a ring.

    In a ring each GPU sends and receives 2 (n - 1) / n times the gradients' size (Patarasuk and Yuan, 2009). What goes
    on beside the backward pass costs nothing; latencies and the optimizer are left out.
    """
    size = GRADIENT_BYTES * parameters
    rows = []
    for gigabits in GIGABITS:
        for samples in SAMPLES:
            work = samples * operations_per_sample / ASSUMED_FLOPS
            sending = 2 * (GPUS - 1) / GPUS * size / (gigabits * 1e9 / 8)
            waiting = max(0.0, sending - OVERLAPPED * work)
            rows.append(
                {
                    "stage": stage,
                    "gigabits": gigabits,
                    "samples": samples,
                    "gradient_megabytes": size / 1e6,
                    "work_ms": 1000 * work,
                    "sending_ms": 1000 * sending,
                    "efficiency": work / (work + waiting),
                    # Steps between exchanges (--gradient_accumulation) from which on nine tenths of the time is work.
                    "accumulation": max(1, math.ceil(9 * waiting / work)),
                }
            )
    return rows


def _reckoned_table(rows: list[dict[str, float]]) -> Any:
    listed = table(
        f"By arithmetic: {GPUS} GPUs at {ASSUMED_FLOPS / 1e12:.0f} TFLOP/s",
        "stage",
        "Gbit/s",
        "samples a GPU",
        "gradients MB",
        "work ms",
        "sending ms",
        "efficiency",
        "accumulation for 90%",
    )
    for row in rows:
        listed.add_row(
            f"{row['stage']}",
            f"{row['gigabits']}",
            f"{row['samples']}",
            f"{row['gradient_megabytes']:.0f}",
            f"{row['work_ms']:.1f}",
            f"{row['sending_ms']:.1f}",
            f"{row['efficiency']:.0%}",
            f"{row['accumulation']}",
        )
    return listed


if __name__ == "__main__":
    sys.exit(main())
