"""A resumed run is the run that was not stopped: the same bytes in every later checkpoint."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from embervlm.data.sample_data import write_sample_data
from embervlm.folders import MANIFEST, UNFINISHED
from embervlm.training import checkpoints, engine, pipeline
from embervlm.training.arguments import RunSettings
from embervlm.training.checkpoints import CheckpointError
from embervlm.training.engine import NumbersError, StageTrainer
from embervlm.training.stopping import EXIT_TERMINATED, Stopped

STEPS = 5
#: Two micro-batches a step, three steps an epoch in stage 1: the third step ends it, the fourth is in mid-epoch.
STATE = ("model.safetensors", "training_state.safetensors", "training_state.json", "trainer_state.json")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sample") / "data"
    write_sample_data(out, scenes=20, seed=3, workers=1, progress=False)
    return out


def settings(output: Path, data: Path, model: Path, stage: int, **other: Any) -> RunSettings:
    values: dict[str, Any] = {
        "batch_size": 2,
        "gradient_accumulation": 2,
        "save_steps": 1,
        "log_steps": 2,
        "max_steps": STEPS,
        "num_workers": 0,
        "learning_rate": 1e-2,
        "robot_variants": 1,
        "seed": 4,
        "max_stage1": 10,
    }
    return RunSettings(
        output,
        stages=(stage,),
        init_from=model,
        stage1_data=data / "base_vlm",
        stage2_data=data / "base_vlm" / "llava",
        robot_data=data / "robot-selection-dataset",
        **(values | other),
    )


@pytest.fixture
def keep_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoints, "KEPT", 100)


def same(first: Path, second: Path) -> None:
    for name in STATE:
        assert (first / name).read_bytes() == (second / name).read_bytes(), f"{first.name}/{name}"


@pytest.mark.usefixtures("keep_all")
@pytest.mark.parametrize(("stage", "steps"), [(1, (1, 2, 3, 5)), (2, (3,)), (3, (2,))])
def test_a_stage_goes_on_to_the_same_bits(
    stage: int,
    steps: tuple[int, ...],
    data: Path,
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[Path] = []
    monkeypatch.setattr(engine, "read_state", lambda folder: read.append(folder) or checkpoints.read_state(folder))
    whole = settings(tmp_path / "whole", data, tiny_folder, stage)
    pipeline.run(whole)
    folder = whole.stage_dir(stage)
    logged = [
        entry["step"] for entry in json.loads((folder / f"checkpoint-{STEPS}" / STATE[3]).read_text())["log_history"]
    ]
    assert logged == [1, 2, 4]
    if stage == 1:
        epochs = [json.loads((folder / f"checkpoint-{step}" / STATE[3]).read_text())["epoch"] for step in (2, 3)]
        assert epochs[0] < 1 == epochs[1]
    for step in steps:
        resumed = settings(tmp_path / f"resumed{step}", data, tiny_folder, stage, resume="auto")
        shutil.copytree(folder / f"checkpoint-{step}", resumed.stage_dir(stage) / f"checkpoint-{step}")
        pipeline.run(resumed)
        for later in range(step, STEPS + 1):
            same(resumed.stage_dir(stage) / f"checkpoint-{later}", folder / f"checkpoint-{later}")
        for name in ("model.safetensors", "metrics.json"):
            assert (resumed.stage_result(stage) / name).read_bytes() == (whole.stage_result(stage) / name).read_bytes()
    assert len(read) == len(steps)  # a checkpoint's moments are large: once each
    names = {path.name for path in (folder / f"checkpoint-{STEPS}").iterdir()}
    assert {*STATE, MANIFEST, "stage.json"} <= names
    assert not [name for name in names if Path(name).suffix in (".pt", ".pth", ".bin", ".pkl")]


@pytest.fixture(scope="module")
def stopped(data: Path, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> RunSettings:
    """A run of stage 1 with the checkpoints of its last two steps, whose result is gone."""
    run = settings(tmp_path_factory.mktemp("stopped"), data, tiny_folder, 1, max_steps=3)
    pipeline.run(run)
    shutil.rmtree(run.stage_result(1))
    return run


@pytest.fixture
def copied(stopped: RunSettings, tmp_path: Path) -> RunSettings:
    output = tmp_path / "copied"
    shutil.copytree(stopped.output_dir, output)
    return replace(stopped, output_dir=output, resume="auto")


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (
            lambda folder: _flip(folder / STATE[1]),
            f"{STATE[1]} is missing or damaged (it differs from the manifest: other",
        ),
        (
            lambda folder: _truncate(folder / STATE[0]),
            f"{STATE[0]} is missing or damaged (it differs from the manifest: ",
        ),
        (
            lambda folder: (folder / STATE[3]).unlink(),
            f"{STATE[3]} is missing or damaged (it differs from the manifest: not",
        ),
        (lambda folder: (folder / "optimizer.pt").write_bytes(b"x"), "optimizer.pt is not in its manifest"),
        (lambda folder: (folder / MANIFEST).unlink(), f"has no {MANIFEST}, so was not written to its end"),
    ],
    ids=["flipped", "truncated", "missing", "extra", "no manifest"],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(
    damage: Callable[[Path], None], reason: str, copied: RunSettings, caplog: pytest.LogCaptureFixture
) -> None:
    folder = copied.stage_dir(1)
    assert [path.name for path in checkpoints.checkpoints(folder)] == ["checkpoint-3", "checkpoint-2"]
    damage(folder / "checkpoint-3")
    with caplog.at_level(logging.INFO, logger="embervlm"):
        pipeline.run(copied)
    assert f"Stage 1: a checkpoint is refused: {folder / 'checkpoint-3'}: {reason}" in caplog.text
    assert f"Stage 1 goes on from {folder / 'checkpoint-2'}" in caplog.text
    checkpoints.verify_checkpoint(folder / "checkpoint-3")


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(copied: RunSettings) -> None:
    for path in checkpoints.checkpoints(copied.stage_dir(1)):
        _flip(path / STATE[0])
    with pytest.raises(
        CheckpointError, match=r"none of its 2 checkpoints can be used \(.*Cure: bring back a whole one"
    ):
        pipeline.run(copied)


def _full() -> OSError:
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("place", ["model", "state", "flush", "rename", "measured"])
def test_a_full_disk_ends_the_run_and_leaves_what_was_there(
    place: str, copied: RunSettings, monkeypatch: pytest.MonkeyPatch, one_line: Callable[..., str]
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise _full()

    shutil.rmtree(copied.stage_dir(1) / "checkpoint-3")
    before = {path: path.read_bytes() for path in copied.stage_dir(1).rglob("*") if path.is_file()}
    if place == "model":
        from embervlm.model import EmberVLMForConditionalGeneration

        monkeypatch.setattr(EmberVLMForConditionalGeneration, "save_pretrained", fail)
    elif place == "state":
        monkeypatch.setattr(checkpoints, "save_file", fail)
    elif place == "flush":
        monkeypatch.setattr("embervlm.model.weights.os.fsync", fail)
    elif place == "rename":
        monkeypatch.setattr("embervlm.model.weights.Path.rename", fail)
    else:
        usage = shutil.disk_usage(copied.output_dir)
        monkeypatch.setattr(pipeline, "check_space", lambda *args: None)
        monkeypatch.setattr("embervlm.training.checkpoints.shutil.disk_usage", lambda path: usage._replace(free=10**6))
    with pytest.raises(CheckpointError, match="stage 1: the run ends, as its checkpoint after step 3 cannot") as caught:
        pipeline.run(copied)
    message = one_line(caught.value)
    assert message.endswith("The checkpoints before it are whole")
    assert ("1 MB are free on the disk" if place == "measured" else "No space left on device") in message
    assert {path: path.read_bytes() for path in copied.stage_dir(1).rglob("*") if path.is_file()} == before


def test_a_run_that_will_not_fit_the_disk_is_not_begun(
    data: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("embervlm.training.checkpoints.shutil.disk_usage", lambda path: usage._replace(free=10**6))
    with pytest.raises(CheckpointError, match=r"1 MB are free on the disk, the run with 1 stages and 2 checkpoints"):
        pipeline.run(settings(tmp_path / "run", data, tiny_folder, 1))
    assert not (tmp_path / "run" / "stage1").exists()


def test_what_a_killed_save_left_is_removed(copied: RunSettings) -> None:
    for name, ending in (("checkpoint-4", UNFINISHED[0]), ("checkpoint-1", UNFINISHED[1])):
        shutil.copytree(copied.stage_dir(1) / "checkpoint-2", copied.stage_dir(1) / f".{name}{ending}")
    pipeline.run(copied)
    assert {path.name for path in copied.stage_dir(1).iterdir()} == {"checkpoint-2", "checkpoint-3", "final"}


def test_a_signal_saves_and_ends_and_the_run_goes_on_to_the_same_bits(
    data: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = settings(tmp_path / "whole", data, tiny_folder, 3, save_steps=100)
    pipeline.run(whole)
    cut = settings(tmp_path / "cut", data, tiny_folder, 3, save_steps=100)
    compute = StageTrainer.compute_loss

    def terminated(self: Any, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 2 and not self._micro_batches:
            os.kill(os.getpid(), signal.SIGTERM)
        return compute(self, *args, **kwargs)

    handler = signal.getsignal(signal.SIGTERM)
    with (
        monkeypatch.context() as patch,
        pytest.raises(Stopped, match="stopped by a signal after step 3 of 5") as caught,
    ):
        patch.setattr(StageTrainer, "compute_loss", terminated)
        pipeline.run(cut)
    assert caught.value.exit_code == EXIT_TERMINATED == 143 and signal.getsignal(signal.SIGTERM) is handler
    assert [path.name for path in cut.stage_dir(3).iterdir()] == ["checkpoint-3"]
    pipeline.run(replace(cut, resume="auto"))
    for name in STATE[:3]:
        first, second = (run.stage_dir(3) / f"checkpoint-{STEPS}" / name for run in (cut, whole))
        assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("where", ["loss", "gradient", "forward"])
def test_a_step_without_finite_numbers_is_skipped_and_its_samples_named(
    where: str, data: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    run = settings(tmp_path / "run", data, tiny_folder, 1, max_steps=3)
    compute = StageTrainer.compute_loss

    def spoiled(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        bad = self.state.global_step == 1 and len(self._micro_batches) == 1
        if bad and where == "forward":
            inputs = {**inputs, "pixel_values": inputs["pixel_values"] * float("inf")}
        loss = compute(self, model, inputs, *args, **kwargs)
        if bad and where == "gradient":
            loss.register_hook(lambda gradient: gradient * float("nan"))
        return loss * float("inf") if bad and where == "loss" else loss

    monkeypatch.setattr(StageTrainer, "compute_loss", spoiled)
    with caplog.at_level(logging.WARNING, logger="embervlm"):
        pipeline.run(run)
    lines = [record.getMessage() for record in caplog.records if "no finite number" in record.getMessage()]
    assert len(lines) == 1
    expected = "gradient" if where == "gradient" else "loss"
    assert lines[0].startswith(f"stage 1: step 2: the {expected} is no finite number; the step is skipped on all")
    named = lines[0].partition("Samples: ")[2].split(", ")
    assert len(named) == (4 if where == "gradient" else 2)
    second, third = (_tensors(run.stage_dir(1) / f"checkpoint-{step}") for step in (2, 3))
    assert all(torch.isfinite(tensor).all() for tensor in (*second.values(), *third.values()))
    assert any(not torch.equal(second[name], third[name]) for name in second)


def test_too_many_such_steps_in_a_row_end_the_run(
    data: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_line: Callable[..., str]
) -> None:
    run = settings(tmp_path / "run", data, tiny_folder, 3, max_bad_steps=2)
    compute = StageTrainer.compute_loss
    monkeypatch.setattr(
        StageTrainer,
        "compute_loss",
        lambda self, *args, **kwargs: (
            compute(self, *args, **kwargs) * (1 if self.state.global_step < 2 else float("nan"))
        ),
    )
    with pytest.raises(NumbersError, match="step 4: the loss is no finite number") as caught:
        pipeline.run(run)
    assert "That was 2 in a row; expected fewer than 2." in one_line(caught.value)
    # Step 3 changed nothing.
    second, third = (_tensors(run.stage_dir(3) / f"checkpoint-{step}") for step in (2, 3))
    assert all(torch.equal(second[name], third[name]) for name in second)


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(folder / "model.safetensors")


def test_the_engine_keeps_as_many_as_are_promised() -> None:
    assert engine.KEPT == checkpoints.KEPT == 2
