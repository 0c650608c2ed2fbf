"""``--report_to`` through the command: each tracker writes the run's losses, and a missing one is said at once."""

from __future__ import annotations

import csv
import importlib.util
import socket
from pathlib import Path
from typing import Any

import pytest

from embervlm.cli import main
from embervlm.data.sample_data import write_sample_data


def _without(extra: str, module: str) -> Any:
    return pytest.mark.skipif(
        importlib.util.find_spec(module) is None, reason=f"{module} of the extra '{extra}' is not installed"
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sample") / "data"
    write_sample_data(out, scenes=20, seed=3, workers=1, progress=False)
    return out / "base_vlm"


def train(tracker: str, output: Path, data: Path, model: Path) -> int:
    return main(
        [
            *("train", "--output_dir", str(output), "--stage", "1", "--init_from", str(model), "--report_to", tracker),
            *("--stage1_data", str(data), "--max_stage1", "10", "--num_workers", "0", "--batch_size", "2"),
            *("--max_steps", "2", "--log_steps", "1"),
        ]
    )


@_without("dev", "tensorboard")
def test_tensorboard_has_the_losses(data: Path, tiny_folder: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert train("tensorboard", tmp_path / "out", data, tiny_folder) == 0
    (folder,) = (tmp_path / "out" / "stage1" / "runs").iterdir()
    events = EventAccumulator(str(folder)).Reload()
    assert {"train/loss", "train/language_loss", "train/learning_rate", "eval/loss"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2]


@_without("track", "wandb")
def test_wandb_writes_a_run_a_stage_below_the_output(
    data: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_DIR", "WANDB_PROJECT"):  # which the run sets; so put back afterwards
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    assert train("wandb", tmp_path / "out", data, tiny_folder) == 0
    assert wandb.run is None
    (file,) = (tmp_path / "out" / "wandb").glob("offline-run-*/*.wandb")
    content = file.read_bytes()
    assert all(text in content for text in (b"out stage 1", b"train/language_loss", b"embervlm"))


@_without("track", "codecarbon")
def test_codecarbon_writes_emissions(
    data: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: Any) -> None:
        raise OSError("no test asks a network for anything")

    # It would ask where the machine stands.
    monkeypatch.setattr(socket.socket, "connect", refused)
    assert train("codecarbon", tmp_path / "out", data, tiny_folder) == 0
    with (tmp_path / "out" / "stage1" / "emissions.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert float(row["energy_consumed"]) > 0 and float(row["duration"]) > 0


def test_a_tracker_that_is_not_installed_is_said_before_anything_is_read(
    data: Path, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "wandb" else find(name))
    assert train("wandb", tmp_path / "out", data, tiny_folder) == 1
    assert capsys.readouterr().err.endswith(
        'embervlm train: --report_to wandb: it is not installed. Cure: pip install "embervlm[track]"\n'
    )
    assert not (tmp_path / "out").exists()
