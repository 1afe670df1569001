"""The commands of the registry: versions, promote, rollback."""

from __future__ import annotations

import argparse
import dataclasses

from agent import api
from agent.system.output import print_json, print_table, say
from agent.system.paths import Home


def versions(arguments: argparse.Namespace, home: Home) -> int:
    """Versions with their held-out figures."""
    found = api.versions(state=home.path)
    if arguments.json:
        print_json([dataclasses.asdict(version) for version in found])
        return 0
    rows = []
    for version in found:
        figures = version.about.get("figures", {})
        before, after = figures.get("before", {}), figures.get("after", {})
        rows.append(
            (
                "*" if version.active else "",
                version.number,
                version.about.get("job"),
                _change(before.get("content"), after.get("content")),
                _change(before.get("loss"), after.get("loss")),
                "the base model as it came" if version.number == 0 else version.about.get("file"),
                "" if version.whole else "damaged",
            )
        )
    print_table(("", "version", "job", "content", "loss", "file", ""), rows)
    return 0


def _change(before: float | None, after: float | None) -> str:
    return "" if before is None or after is None else f"{before:.2f} → {after:.2f}"


def promote(arguments: argparse.Namespace, home: Home) -> int:
    """Make a version active."""
    api.promote(arguments.version, state=home.path)
    return _print_active(arguments, arguments.version)


def rollback(arguments: argparse.Namespace, home: Home) -> int:
    """Make active what was active before."""
    return _print_active(arguments, api.rollback(state=home.path))


def _print_active(arguments: argparse.Namespace, version: int) -> int:
    name = f"version {version}" if version else "the base model"
    print_json({"active": version}) if arguments.json else say(f"{name} is active")
    return 0
