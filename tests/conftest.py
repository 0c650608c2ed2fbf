"""Fixtures that every test may use: the folder of real and hostile data that stands beside a checkout, where it is there."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of outside test data; tests that need it are skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip(f"the outside test data are not there: {SHARED}")
    return SHARED
