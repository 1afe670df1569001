"""The checkout under test: where it is, its Python files, what pyproject.toml says."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("agent", "quant", "offload")
"""Packages that are shipped."""


def python_files(*folders: str) -> list[Path]:
    """Every Python file below the named folders of the checkout, those that are there."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())
