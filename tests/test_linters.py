"""What `make check` runs: formatter, linter, type checker and the arrows between packages find nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from checkout import ROOT

BIN = Path(sys.executable).parent


@pytest.mark.process
@pytest.mark.parametrize("command", ["ruff check .", "ruff format --check .", "mypy", "lint-imports"])
def test_a_linter_finds_nothing(command: str) -> None:
    """Run from the checkout, with its settings."""
    program, *arguments = command.split()
    done = subprocess.run([BIN / program, *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
