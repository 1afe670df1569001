"""The versions of this program and of the libraries below it, as installed."""

from __future__ import annotations

from importlib.metadata import version

LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes")
"""What decides a version's numbers or reads its adapter."""


def version_string() -> str:
    """For example "0.1.0"; read from the installed package, so that pyproject.toml is the only place that says it."""
    return version("nslora-agent")


def libraries() -> dict[str, str]:
    """The exact version of each library, read without importing any."""
    return {name: version(name) for name in LIBRARIES}
