"""What the benchmarks share: fresh processes whose memory is watched from outside, the machine and its peak, tables.

The watching is done by another process, since a thread of the same one waits while a C function such as ``json.load``
holds the interpreter's lock, and would miss the peak.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MIB = 1024**2
INTERVAL = 0.01

_PACKAGES = ("torch", "transformers", "accelerate", "pyarrow", "msgspec", "numpy", "pillow")


class BenchmarkError(ValueError):
    """A measurement that cannot be taken; the message says what failed."""


@dataclass(frozen=True, slots=True)
class Watched:
    """What came of one process.

    Attributes:
        result: the JSON object that it printed last, empty without one.
        seconds: wall time from start to end.
        anonymous: highest anonymous and shared memory of it and its children together, in bytes; pages of mapped files
            do not count.
        resident: highest resident memory of the process itself, mapped files included, in bytes.
    """

    result: dict[str, Any]
    seconds: float
    anonymous: int
    resident: int


class Again:
    """A data set of a few batches, over and over."""

    def __init__(self, batches: list[Any]) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return 10**6

    def __getitem__(self, place: int) -> Any:
        return self.batches[place % len(self.batches)]


def watch(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Watched:
    """Run ``command`` to its end.

    Raises:
        BenchmarkError: it failed; the end of what it wrote to standard error is in the message.
    """
    with tempfile.TemporaryFile("w+") as errors:
        started = time.perf_counter()
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env={**os.environ, **(environment or {})},
        )
        written: list[str] = []
        assert process.stdout is not None
        reader = threading.Thread(target=lambda: written.extend(process.stdout or ()), daemon=True)
        reader.start()
        anonymous = resident = 0
        while process.poll() is None:
            now, peak = _memory(process.pid)
            anonymous, resident = max(anonymous, now), max(resident, peak)
            time.sleep(INTERVAL)
        seconds = time.perf_counter() - started
        reader.join()
        process.stdout.close()
        if process.returncode:
            errors.seek(0)
            tail = " / ".join(errors.read().strip().splitlines()[-6:])
            raise BenchmarkError(f"{' '.join(command)} ended with {process.returncode}: {tail}")
    last = written[-1] if written else ""
    return Watched(json.loads(last) if last.startswith("{") else {}, seconds, anonymous, resident)


def resident(field: str) -> int:
    """Resident memory of the process that asks, in bytes: ``VmRSS``, now, or ``VmHWM``, the highest so far."""
    return _status(os.getpid()).get(field, 0)


def _memory(pid: int) -> tuple[int, int]:
    """Anonymous memory of a process and its descendants now, and the process's own highest resident memory."""
    fields = _status(pid)
    anonymous = fields.get("RssAnon", 0) + fields.get("RssShmem", 0)
    for child in descendants(pid):
        fields_of_child = _status(child)
        anonymous += fields_of_child.get("RssAnon", 0) + fields_of_child.get("RssShmem", 0)
    return anonymous, fields.get("VmHWM", 0)


def _status(pid: int) -> dict[str, int]:
    return _kilobytes(f"/proc/{pid}/status")


def _kilobytes(path: str) -> dict[str, int]:
    """The sizes that a file of /proc gives, in bytes; empty once the process has gone."""
    found = {}
    try:
        with open(path, encoding="ascii", errors="replace") as file:  # noqa: PTH123 - called a hundred times a second
            for line in file:
                if line.endswith("kB\n"):
                    name, _, rest = line.partition(":")
                    found[name] = int(rest.split()[0]) * 1024
    except OSError:
        return {}
    return found


def descendants(pid: int) -> list[int]:
    """The ids of a process's children, their children and so on."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            children = [int(child) for child in task.read_text(encoding="ascii").split()]
        except OSError:  # ended meanwhile
            continue
        for child in children:
            found += [child, *descendants(child)]
    return found


def proportional(pids: Sequence[int]) -> tuple[int, int]:
    """Memory of processes together, each shared page counted once, in bytes: all of it, and its anonymous part."""
    rolled = [_kilobytes(f"/proc/{pid}/smaps_rollup") for pid in pids]
    return sum(each.get("Pss", 0) for each in rolled), sum(each.get("Pss_Anon", 0) for each in rolled)


def worker(
    program: str, task: str, settings: Mapping[str, Any], environment: Mapping[str, str] | None = None
) -> Watched:
    """Run a task of a program beside this file in a process of its own, on the package of this checkout.

    Raises:
        BenchmarkError: it failed.
    """
    own = {
        "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")]),
        "HF_HUB_OFFLINE": "1",
        **(environment or {}),
    }
    return watch([sys.executable, str(HERE / program), task, json.dumps(settings)], own)


def peak_flops(dtype: Any, side: int = 2048, repeats: int = 8) -> float:
    """Operations a second of a large matrix product in this process, the best of a few: what figures are shares of."""
    import torch

    left, right = torch.randn(side, side).to(dtype), torch.randn(side, side).to(dtype)
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - started)
    return 2 * side**3 / min(times)


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median, 99th percentile and extremes, in the unit given."""
    ordered = sorted(seconds)
    return {
        "median": statistics.median(ordered),
        "p99": ordered[min(len(ordered) - 1, math.ceil(0.99 * len(ordered)) - 1)],
        "least": ordered[0],
        "most": ordered[-1],
        "count": len(ordered),
    }


def line(xs: Sequence[float], ys: Sequence[float]) -> tuple[float, float]:
    """Intercept and slope of the least squares line through points."""
    slope, intercept = statistics.linear_regression(xs, ys)
    return intercept, slope


def verdict(name: str, value: float, relation: str, bound: float) -> dict[str, Any]:
    """What was measured beside what it is held against."""
    holds = {"<=": value <= bound, ">=": value >= bound, "==": value == bound}[relation]
    return {"name": name, "numbers": [value, bound], "relation": relation, "holds": holds}


def say(text: str) -> None:
    """Name on standard error what is being measured, since it takes minutes."""
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")


def table(title: str, *columns: str) -> Any:
    """A table of the terminal; columns of words stand left, those of numbers right."""
    from rich.table import Table

    made = Table(title=title, title_justify="left")
    for place, name in enumerate(columns):
        made.add_column(name, justify="left" if place == 0 or name in ("way", "encoder", "what") else "right")
    return made


def show(*what: Any) -> None:
    """Print tables and lines."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else 140, highlight=False)
    for each in what:
        console.print(each)


def finish(found: dict[str, Any], tables: Sequence[Any], path: Path | None) -> int:
    """Print what was found with the machine and the verdicts, and write it to ``path`` where one is given.

    Args:
        found: with ``machine`` and, where something was held against a bound, ``verdicts``.
        tables: of :func:`table`.
        path: of the JSON file; the tables lie beside it as Markdown.
    """
    here = found["machine"]
    here["load_after"] = round(os.getloadavg()[0], 2)
    versions = ", ".join(f"{name} {version}" for name, version in here["versions"].items())
    lines = [
        f"{here['cpu']}, {here['cores']} cores, {here['memory_gib']} GiB, {here['system']}, load {here['load_before']}"
        f" before and {here['load_after']} after",
        f"Python {here['python']}, {versions}",
    ]
    for each in found.get("verdicts", ()):
        value, bound = (f"{number:,.4g}" if isinstance(number, float) else f"{number:,}" for number in each["numbers"])
        holds = "yes" if each["holds"] else "NO "
        lines.append(f"{holds}  {each['name']}: {value} ({each['relation']} {bound})")
    show(*tables, *lines)
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
        text = "\n\n".join([*(f"{each.title}\n\n{markdown(each)}" for each in tables), "\n".join(lines)])
        path.with_suffix(".md").write_text(text + "\n", encoding="utf-8")
    return 0


def markdown(table: Any) -> str:
    """A table of :func:`table` as the documentation has it."""
    rows = zip(*([str(cell) for cell in column.cells] for column in table.columns), strict=True)
    sides = ("---" if column.justify == "left" else "---:" for column in table.columns)
    heads = (str(column.header) for column in table.columns)
    return "\n".join(f"| {' | '.join(row)} |" for row in (heads, sides, *rows))


def out_flags(parser: argparse.ArgumentParser) -> None:
    """Give a benchmark's parser the flags that all of them have."""
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="where the JSON goes")
    parser.add_argument("--quick", action="store_true", help="a few repeats of each: whether it runs, not how fast")


def preset_flags(parser: argparse.ArgumentParser) -> None:
    """Give a benchmark's parser the flags of those that measure a preset in this process's threads."""
    parser.add_argument("--preset", choices=("ember", "spark"), default="ember")
    parser.add_argument("--threads", type=int, default=2)


def folder_flags(parser: argparse.ArgumentParser) -> None:
    """Give a benchmark's parser the flag of those that also measure model folders."""
    parser.add_argument("--model", action="append", default=[], metavar="DIR", help="also this model folder")


def run_benchmark(
    parser: argparse.ArgumentParser, measure: Callable[[argparse.Namespace], int], arguments: Sequence[str] | None
) -> int:
    """Measure by a command's arguments: 0 when it has, whatever the figures, 1 with a line when it could not."""
    out_flags(parser)
    try:
        return measure(parser.parse_args(arguments))
    except (BenchmarkError, OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 1


def format_name(precision: str) -> str:
    """What tables call a precision of the training command."""
    return "fp32" if precision == "no" else precision


def machine() -> dict[str, Any]:
    """What a figure has to be read with: processor, cores, memory and versions."""
    information = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.partition(":")[2].strip() for line in information if line.startswith("model name")]
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "missing"
    return {
        "cpu": names[0] if names else platform.processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1024**3, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": versions,
        "load_before": round(os.getloadavg()[0], 2),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }
