"""Programs of the operating system that some tests run."""

from __future__ import annotations

import os
import shutil

import pytest


def needs(program: str, package: str) -> str:
    """The path of `program`; without it the test is skipped, except under CI, where it fails."""
    path = shutil.which(program)
    if path is not None:
        return path
    reason = f"{program} is not installed: apt-get install {package}"
    if os.environ.get("CI") == "true":
        pytest.fail(reason)
    pytest.skip(reason)
