"""Measures how long a hundred tokens take to be written after a picture and a task.

Run as ``python benchmarks/generation.py --out DIR``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from measured import MIB, finish, folder_flags, format_name, machine, preset_flags, run_benchmark, say, table, worker
from workload import write_pictures

TOKENS = 100


def main(arguments: list[str] | None = None) -> int:
    """Measure; 0 when it has, whatever the figures, 1 when it could not."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    preset_flags(parser)
    folder_flags(parser)
    return run_benchmark(parser, _measure, arguments)


def _measure(options: argparse.Namespace) -> int:
    found: dict[str, Any] = {"machine": machine(), "preset": options.preset, "tokens": TOKENS, "rows": []}
    with tempfile.TemporaryDirectory() as work:
        (picture,) = write_pictures(Path(work), 1)
        ways = [("naive", "no", None), ("naive", "bf16", None), ("ours", "no", None)]
        for way, precision, model in [*ways, *(("ours", "no", model) for model in options.model)]:
            say(f"generation: {way}, {model or precision}")
            settings = {
                "preset": options.preset,
                "way": way,
                "precision": precision,
                "model": model,
                "repeats": 1 if options.quick else 5,
                "tokens": 10 if options.quick else TOKENS,
                "threads": options.threads,
                "picture": str(picture),
            }
            run = worker("asking.py", "generate", settings, {"OMP_NUM_THREADS": str(options.threads)})
            row = {"way": way, "precision": precision, "model": model}
            found["rows"].append(row | run.result | {"peak_mib": run.resident / MIB})
    listed = table(
        f"{TOKENS} tokens, {options.preset}", "way", "what", "median ms", "ms a token", "times as fast", "peak MiB"
    )
    plain = found["rows"][0]["milliseconds"]["median"]
    for row in found["rows"]:
        median = row["milliseconds"]["median"]
        row["times_as_fast"] = plain / median
        listed.add_row(
            row["way"],
            row["model"] or format_name(row["precision"]),
            f"{median:,.0f}",
            f"{median / (10 if options.quick else TOKENS):.1f}",
            f"{row['times_as_fast']:.1f}",
            f"{row['peak_mib']:,.0f}",
        )
    return finish(found, [listed], options.out / f"generation_{options.preset}.json")


if __name__ == "__main__":
    sys.exit(main())
