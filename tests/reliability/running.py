"""The real training command on rendered data with a tiny model: started, waited for and compared."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

REPOSITORY = Path(__file__).resolve().parents[2]
SCRIPT = REPOSITORY / "scripts" / "train_all.py"
#: Runs the command with a fault in one process: see the file.
FAULTY = Path(__file__).with_name("faulty.py")
#: What must be the same to the last bit. What the trainer writes itself also counts operations.
STATE = ("model.safetensors", "training_state.safetensors", "training_state.json")


@dataclass
class Command:
    """The training command into one folder."""

    sample: Path
    model: Path
    output: Path
    stage: int
    steps: int
    log: Path

    def start(
        self, *more: str, processes: int = 1, accumulation: int = 2, script: Path = SCRIPT, **environment: str
    ) -> subprocess.Popen[bytes]:
        launcher = [sys.executable]
        if processes > 1:
            launcher += ["-m", "torch.distributed.run", f"--nproc_per_node={processes}", "--standalone"]
            launcher += ["--shutdown_timeout=5"]
        flags = {
            "output_dir": self.output,
            "stage": self.stage,
            "init_from": self.model,
            "stage1_data": self.sample / "base_vlm",
            "stage2_data": self.sample / "base_vlm" / "llava",
            "robot_data": self.sample / "robot-selection-dataset",
            "batch_size": 2,
            "gradient_accumulation": accumulation,
            "learning_rate": "1e-3",
            "max_steps": self.steps,
            "log_steps": 1,
            "num_workers": 0,
            "robot_variants": 1,
            "seed": 4,
            "resume": "auto",
        }
        command = [
            *launcher,
            str(script),
            *(part for flag, value in flags.items() for part in (f"--{flag}", str(value))),
        ]
        command += [*(["--distributed"] if processes > 1 else []), *more]
        with self.log.open("ab") as log:
            environ = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
            return subprocess.Popen(command, stdout=log, stderr=log, env=environ, start_new_session=True)

    def run(self, *more: str, **other: Any) -> None:
        process = self.start(*more, **other)
        assert process.wait(timeout=600) == 0, self.text()[-3000:]

    def text(self) -> str:
        return self.log.read_text(errors="replace") if self.log.is_file() else ""

    def wait_for(self, found: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float = 120) -> bool:
        """Whether something was found before the process ended."""
        deadline = time.monotonic() + seconds
        while process.poll() is None:
            if found():
                return True
            assert time.monotonic() < deadline, self.text()[-3000:]
            time.sleep(0.002)
        return False

    @property
    def folder(self) -> Path:
        return self.output / f"stage{self.stage}"

    @property
    def last(self) -> Path:
        return self.folder / f"checkpoint-{self.steps}"

    def history(self) -> list[dict[str, float]]:
        entries = json.loads((self.last / "trainer_state.json").read_text())["log_history"]
        return [entry for entry in entries if "loss" in entry]


def assert_same(first: Command, second: Command) -> None:
    """The same bits in the last checkpoint and the result, the same figures in every line of the log."""
    for name in STATE:
        assert (first.last / name).read_bytes() == (second.last / name).read_bytes(), name
    assert first.history() == second.history() and len(first.history()) == first.steps
    assert (first.folder / "final" / STATE[0]).read_bytes() == (second.folder / "final" / STATE[0]).read_bytes()


def workers_of(launcher: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The processes of torchrun, by their rank."""
    found = [child for child in psutil.Process(launcher.pid).children() if "--output_dir" in child.cmdline()]
    return sorted(found, key=lambda child: int(child.environ()["RANK"]))


def ended(processes: list[psutil.Process]) -> bool:
    return not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)
