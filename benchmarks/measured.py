"""Runs a command in a fresh process, watches its memory from outside, and describes the machine; used by ``data.py``.

The watching is done by another process, since a thread of the same one waits while a C function such as ``json.load``
holds the interpreter's lock, and would miss the peak.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
