"""Runs the benchmarks one after another and prints their tables: what ``make bench`` does, in half an hour.

Run as ``python benchmarks/bench.py --out DIR``. Each part's JSON goes into the folder; a part that fails is named at
the end, and the others run all the same.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time

from measured import HERE, machine, out_flags, say, show, table

#: The parts with the flags that keep each to a few minutes; OUT stands for the folder of the results, where the first
#: part leaves exported models.
PARTS: dict[str, list[str]] = {
    "export.py": ["--preset", "ember"],
    "training.py": ["--preset", "ember"],
    "selection.py": ["--preset", "ember", "--repeats", "100", "--model", "OUT/ember-onnx", "--model", "OUT/ember-int8"],
    "generation.py": ["--preset", "ember", "--model", "OUT/ember-onnx", "--model", "OUT/ember-int8"],
    "startup.py": ["--model", "OUT/ember-int8", "--model", "OUT/trained-int8"],
    "costs.py": ["--preset", "ember"],
    "scaling.py": ["--preset", "ember", "--stages", "1"],
}
DATA = ["feed", "--seconds", "15", "--photos", "128", "--batch_sizes", "8", "--encoders", "frozen"]


def main(arguments: list[str] | None = None) -> int:
    """Run all parts; 0 when each has measured, whatever the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    out_flags(parser)
    options = parser.parse_args(arguments)
    options.out.mkdir(parents=True, exist_ok=True)
    here, started = machine(), time.perf_counter()
    commands = {
        name: [
            *(sys.executable, str(HERE / name), "--out", str(options.out)),
            *(flag.replace("OUT", str(options.out)) for flag in flags),
            *_quick(options),
        ]
        for name, flags in PARTS.items()
    }
    data = ["--seconds", "2", "--photos", "32"] if options.quick else []
    commands["data.py"] = [
        sys.executable,
        str(HERE / "data.py"),
        *DATA,
        *data,
        "--json",
        str(options.out / "data.json"),
    ]
    paths = os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])
    results = {}
    for name, command in commands.items():
        begun = time.perf_counter()
        done = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths})
        results[name] = (done.returncode, time.perf_counter() - begun)
    listed = table(
        f"Measured in {(time.perf_counter() - started) / 60:.1f} minutes, into {options.out}", "what", "s", ""
    )
    for name, (code, seconds) in results.items():
        listed.add_row(name, f"{seconds:.0f}", "" if code == 0 else f"failed ({code})")
    show(listed)
    if here["load_before"] > 0.5:
        say(f"the machine was not quiet: load {here['load_before']} before the first measurement")
    return int(any(code for code, _ in results.values()))


def _quick(options: argparse.Namespace) -> list[str]:
    return ["--quick"] if options.quick else []


if __name__ == "__main__":
    sys.exit(main())
