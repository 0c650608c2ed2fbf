"""Killed, stopped and stalled processes; other numbers of them; numbers that are none in one of them."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from running import FAULTY, Command, assert_same, ended, workers_of
from safetensors.torch import load_file

from embervlm.training.checkpoints import verify_checkpoint

#: Kills of one process in each stage, and of one of two.
CYCLES = int(os.environ.get("RELIABILITY_CYCLES", "10"))
#: SIGTERMs of one process.
STOPS = min(5, CYCLES)
TIMEOUT = 10
MARGIN = 10


def saved(command: Command) -> int:
    return max((int(path.name.rpartition("-")[2]) for path in command.folder.glob("checkpoint-*")), default=0)


def _reached(command: Command, before: int, logged: int, in_a_save: bool) -> bool:
    if saved(command) <= before:
        return False
    return any(command.folder.glob(".*.partial")) if in_a_save else "step " in command.text()[logged:]


def kill_until_done(command: Command, cycles: int, processes: int, seed: int) -> int:
    """Start and kill until ``cycles`` kills, then run to the end; how many were inside saves."""
    rng, in_saves = random.Random(seed), 0
    for killed in range(cycles):
        before = saved(command)
        process = command.start("--save_steps", "2", processes=processes, accumulation=2 // processes)
        logged = len(command.text())
        in_a_save = killed % 2 == 1
        if not command.wait_for(partial(_reached, command, before, logged, in_a_save), process):
            raise AssertionError(f"ended after {killed} kills: {command.text()[-2000:]}")
        if not in_a_save:
            time.sleep(rng.uniform(0, 0.3))
        victims = workers_of(process) if processes > 1 else []
        started = time.monotonic()
        os.kill(victims[rng.randrange(2)].pid if victims else process.pid, signal.SIGKILL)
        assert process.wait(timeout=TIMEOUT + MARGIN) != 0
        assert time.monotonic() - started < TIMEOUT + MARGIN and ended(victims)
        in_saves += any(command.folder.glob(".*.partial"))
    command.run("--save_steps", "2", processes=processes, accumulation=2 // processes)
    return in_saves


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_killed_at_random_steps_and_inside_saves(stage: int, command: Callable[..., Command]) -> None:
    steps = 30 * CYCLES
    whole, cut = command("whole", stage, steps), command("cut", stage, steps)
    whole.run("--save_steps", "2")
    in_saves = kill_until_done(cut, CYCLES, 1, stage)
    print(f"stage {stage}: {CYCLES} kills, {in_saves} of them inside a save, bit-equal after {steps} steps")
    assert_same(whole, cut)
    assert not [path.name for path in cut.folder.iterdir() if path.name.startswith(".")]


def test_one_of_two_killed(command: Callable[..., Command]) -> None:
    steps = 30 * CYCLES
    whole, cut = command("whole", 3, steps), command("cut", 3, steps)
    whole.run("--save_steps", "2", processes=2, accumulation=1)
    in_saves = kill_until_done(cut, CYCLES, 2, 9)
    print(f"two processes: {CYCLES} kills, {in_saves} of them inside a save, bit-equal after {steps} steps")
    assert_same(whole, cut)


@pytest.mark.parametrize("stage", [1, 3])
def test_two_one_two_processes(stage: int, command: Callable[..., Command]) -> None:
    whole, changed = command("whole", stage, 30), command("changed", stage, 10)
    whole.run("--save_steps", "100", processes=2, accumulation=1)
    # The schedule goes by the steps of the whole run, so that a part is ended by a signal.
    changed.steps = 30
    for processes, end in ((2, 10), (1, 20)):
        process = changed.start("--save_steps", "10", processes=processes, accumulation=2 // processes)
        assert changed.wait_for(lambda end=end: (changed.folder / f"checkpoint-{end}").is_dir(), process)
        for worker in workers_of(process) if processes > 1 else ():
            worker.kill()
        process.kill()
        process.wait()
        for later in changed.folder.glob("checkpoint-*"):
            if int(later.name.rpartition("-")[2]) > end:
                raise AssertionError("the run was faster than the test")
    changed.run("--save_steps", "10", processes=2, accumulation=1)
    differences = [abs(a["loss"] - b["loss"]) for a, b in zip(whole.history(), changed.history(), strict=True)]
    print(f"stage {stage}: largest difference of a step's loss: {max(differences):.2e}")
    assert len(differences) == 30 and max(differences) <= 1e-4


def test_sigterm_saves_and_goes_on(command: Callable[..., Command]) -> None:
    steps, slowest = 60 * STOPS, 0.0
    whole, cut = command("whole", 3, steps), command("cut", 3, steps)
    whole.run("--save_steps", "1000")
    rng = random.Random(5)
    for _ in range(STOPS):
        process, logged = cut.start("--save_steps", "1000"), len(cut.text())
        assert cut.wait_for(lambda logged=logged: "step " in cut.text()[logged:], process)
        time.sleep(rng.uniform(0, 0.5))
        before, started = saved(cut), time.monotonic()
        process.terminate()
        assert process.wait(timeout=10) == 128 + signal.SIGTERM
        slowest = max(slowest, time.monotonic() - started)
        assert saved(cut) > before and "--resume auto goes on from there" in cut.text()
    cut.run("--save_steps", "1000")
    print(f"{STOPS} of {STOPS}, the slowest after {slowest:.1f} s")
    assert_same(whole, cut)


def test_sigterm_to_one_of_two_stops_both(command: Callable[..., Command]) -> None:
    run = command("run", 3, 5000)
    process = run.start("--save_steps", "5000", processes=2, accumulation=1)
    assert run.wait_for(lambda: "step 3/" in run.text(), process)
    workers = workers_of(process)
    started = time.monotonic()
    workers[1].terminate()
    assert process.wait(timeout=10) != 0 and ended(workers)
    print(f"both ended after {time.monotonic() - started:.1f} s")
    (checkpoint,) = run.folder.glob("checkpoint-*")
    verify_checkpoint(checkpoint)


def test_a_stalled_process_ends_the_others(command: Callable[..., Command]) -> None:
    run = command("run", 3, 5000)
    process = run.start(
        *("--save_steps", "5000", "--ddp_timeout", str(TIMEOUT)),
        processes=2,
        accumulation=1,
        script=FAULTY,
        FAULT="1/3/stall",
    )
    assert run.wait_for(lambda: "step 3/" in run.text(), process)
    workers = workers_of(process)
    started = time.monotonic()
    assert process.wait(timeout=TIMEOUT + MARGIN) != 0 and ended(workers)
    print(f"job over {time.monotonic() - started:.1f} s after a stall, timeout {TIMEOUT} s")


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_numbers_that_are_none_in_one_process(kind: str, command: Callable[..., Command]) -> None:
    run = command("run", 1, 6)
    run.run("--save_steps", "3", processes=2, accumulation=1, script=FAULTY, FAULT=f"1/3/{kind}")
    assert run.text().count("no finite number; the step is skipped on all processes. Samples: ") == 1
    before, after = (load_file(run.folder / f"checkpoint-{step}" / "model.safetensors") for step in (3, 6))
    assert all(torch.isfinite(tensor).all() for tensor in after.values()) and before.keys() == after.keys()
    assert not list(Path(run.folder).glob(".*"))
