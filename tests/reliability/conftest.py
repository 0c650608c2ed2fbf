"""What the tests of this folder share. All of them are slow, and run by ``make reliability`` alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from running import Command

from embervlm.data.sample_data import write_sample_data


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sample") / "data"
    write_sample_data(out, scenes=24, seed=3, workers=1, progress=False)
    return out


@pytest.fixture
def command(sample: Path, tiny_folder: Path, tmp_path: Path) -> Callable[..., Command]:
    def make(name: str, stage: int, steps: int) -> Command:
        return Command(sample, tiny_folder, tmp_path / name, stage, steps, tmp_path / f"{name}.log")

    return make
