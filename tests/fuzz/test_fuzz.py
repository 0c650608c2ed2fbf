"""Inputs that strangers could send, made by a fuzzer that follows what they reach: no error but the documented ones.

A short run of few seeded inputs; ``make fuzz`` gives each target ``FUZZ_SECONDS``, with other inputs each time.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("atheris", reason="atheris has no build for this machine")

SECONDS = int(os.environ.get("FUZZ_SECONDS", "0"))
TARGETS = ["images", "fleets", "json_files", "select", "folders"]
#: The outside test data, from which long runs start too.
OUTSIDE = Path(__file__).resolve().parents[3] / "shared"
_RESULT = re.compile(r"^target (\w+)$|DONE +cov: (\d+)|^Done (\d+) runs in (\d+) second", re.MULTILINE)


def test_no_error_but_the_documented_ones(tiny_folder: Path, tmp_path: Path) -> None:
    script = str(Path(__file__).with_name("fuzz.py"))
    flags = []
    if SECONDS:
        flags = ["--seconds", str(SECONDS), "--seed", str(random.randrange(1, 2**31))]
        flags += ["--outside", str(OUTSIDE)] if OUTSIDE.is_dir() else []
    done = subprocess.run(
        [sys.executable, script, str(tmp_path), str(tiny_folder), *flags],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=len(TARGETS) * (SECONDS + 120),
    )
    faults = sorted(tmp_path.glob("*/fault-*"))
    assert done.returncode == 0 and not faults, f"{faults}: {done.stderr[-4000:]}"
    found = _RESULT.findall(done.stderr)
    assert [name for name, *_ in found if name] == TARGETS and len(found) == 3 * len(TARGETS)
    for (name, *_), (_, reached, *_), (*_, runs, seconds) in zip(*[iter(found)] * 3, strict=True):
        print(f"{name}: {runs} inputs in {seconds} s, {reached} places of the code reached, no fault")
        assert int(runs) >= 30
