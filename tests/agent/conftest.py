"""A state folder, a data file and a queued job for the tests of commands."""

from __future__ import annotations

from pathlib import Path

import pytest
from processes import GOOD, agent


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text(GOOD * 3)
    return path


@pytest.fixture
def job(state: Path, data: Path) -> Path:
    """A state folder with one queued job."""
    assert agent("enqueue", data, state=state).returncode == 0
    return state
