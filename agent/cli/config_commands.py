"""`config show` and `config check`: what holds on this box, and where it comes from."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator
from typing import Any

from agent.system.config import GROUPS, Config, read_config, setting_lines
from agent.system.output import print_json, print_table, say
from agent.system.paths import Home

Row = dict[str, Any]


def show(arguments: argparse.Namespace, home: Home) -> int:
    """Every setting with its value; with --origin also where that comes from."""
    rows = list(_rows(read_config(home.config), home))
    chosen = [row for row in rows if arguments.name is None or row["setting"].startswith(arguments.name)]
    if arguments.json:
        print_json(chosen)
        return 0
    headers = ("setting", "value", "from") if arguments.origin else ("setting", "value")
    cells = []
    for row in chosen:
        value = ", ".join(map(str, row["value"])) if isinstance(row["value"], tuple) else str(row["value"])
        cells.append((row["setting"], value, row["origin"])[: len(headers)])
    print_table(headers, cells)
    return 0


def _rows(config: Config, home: Home) -> Iterator[Row]:
    lines = setting_lines(home.config.read_text(encoding="utf-8")) if home.config.exists() else {}

    def row(name: str, value: Any, known: dataclasses.Field[Any]) -> Row:
        origin = f"{home.config}, line {lines[name]}" if name in lines else "default"
        return {"setting": name, "value": value, "origin": origin, "meaning": known.metadata["help"]}

    yield row("base", config.base, Config.__dataclass_fields__["base"])
    for group, cls in GROUPS.items():
        values = getattr(config, group)
        for known in dataclasses.fields(cls):
            yield row(f"{group}.{known.name}", getattr(values, known.name), known)


def check(arguments: argparse.Namespace, home: Home) -> int:
    """Say whether config.toml can be used; ConfigError lists every fault with its line."""
    read_config(home.config)
    print_json({"config": str(home.config), "ok": True}) if arguments.json else say(
        f"{home.config}: every setting is fine"
    )
    return 0
