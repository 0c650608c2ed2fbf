"""Damaged checkpoints: every truncation and every single flipped bit is noticed."""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from embervlm.folders import WeightsError, complete_folder
from embervlm.training.checkpoints import TrainingState, random_state, verify_checkpoint, write_state

TRIALS = 200


@pytest.fixture(scope="module")
def checkpoint(tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damage") / "checkpoint-7"
    state = TrainingState(
        {"state": {0: {"exp_avg": torch.rand(50, 20)}}, "param_groups": [{"lr": 0.1, "betas": [0.9, 0.98]}]},
        {"last_epoch": 7},
        None,
        {name: tensor[None] for name, tensor in random_state().items()},
        {"last_logged": 7, "bad_in_a_row": 0},
    )
    with complete_folder(folder) as temporary:
        for name in ("model.safetensors", "config.json", "tokenizer.json"):
            shutil.copyfile(tiny_folder / name, temporary / name)
        write_state(temporary, state, 1)
    verify_checkpoint(folder)
    return folder


def _truncate(content: bytearray, rng: random.Random) -> bytearray:
    return content[: rng.randrange(len(content))]


def _flip(content: bytearray, rng: random.Random) -> bytearray:
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return content


@pytest.mark.parametrize("damage", [_truncate, _flip], ids=["truncations", "single bit flips"])
def test_damage_is_noticed_wherever_it_is(
    damage: Callable[[bytearray, random.Random], bytearray], checkpoint: Path
) -> None:
    rng, files = random.Random(1), sorted(path for path in checkpoint.iterdir() if path.is_file())
    for trial in range(TRIALS):
        # Every file in turn, the manifest too.
        file = files[trial % len(files)]
        content = file.read_bytes()
        file.write_bytes(damage(bytearray(content), rng))
        with pytest.raises(WeightsError):
            verify_checkpoint(checkpoint)
        file.write_bytes(content)
    verify_checkpoint(checkpoint)
