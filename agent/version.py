"""The version of this program, as installed."""

from __future__ import annotations

from importlib.metadata import version


def version_string() -> str:
    """For example "0.1.0"; read from the installed package, so that pyproject.toml is the only place that says it."""
    return version("nslora-agent")
