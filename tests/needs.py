"""Needs of some tests: programs of the operating system, and rights."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest


def needs(program: str, package: str) -> str:
    """The path of `program`; without it the test is skipped, except under CI, where it fails."""
    path = shutil.which(program)
    if path is None:
        lacks(f"{program} is not installed: apt-get install {package}")
    return path


def lacks(reason: str) -> NoReturn:
    """Skip the test, or fail it under CI, where everything that is tested must be."""
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
