"""Programs of the operating system that some tests run."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest


def lacking(what: str) -> NoReturn:
    """Skip the test for want of something; under CI, where nothing may be skipped, it fails."""
    if os.environ.get("CI") == "true":
        pytest.fail(what)
    pytest.skip(what)


def needs(program: str, package: str) -> str:
    """The path of `program`; without it the test is skipped, except under CI, where it fails."""
    path = shutil.which(program)
    return path if path is not None else lacking(f"{program} is not installed: apt-get install {package}")
