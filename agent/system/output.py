"""Output for people and programs: tables by rich on a terminal, plain text off it, JSON when asked for."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

Row = Sequence[object]
STYLES = {
    "running": "bold cyan", "done": "green", "failed": "red", "dead": "bold red", "cancelled": "dim",
    "parked": "yellow", "paused": "yellow", "ok": "green", "warning": "yellow", "failure": "bold red", "*": "green",
}  # fmt: skip
"""Colours of cells that hold just one of these words."""


def print_json(value: Any) -> None:
    """One JSON value on a line of its own."""
    print(json.dumps(value, ensure_ascii=False, sort_keys=False, default=str), flush=True)


def say(text: str) -> None:
    """A line for people on stdout."""
    print(text, flush=True)


def hint(text: str) -> None:
    """A line for people on stderr: progress and advice, never part of a result."""
    print(text, file=sys.stderr, flush=True)


def hint_new_name(old: str, new: str) -> None:
    """Print the new name of a command, a flag or a setting that was given by its old one."""
    hint(f"nslora-agent: {old} is called {new} now; the old name still works")


def print_table(headers: Sequence[str], rows: Sequence[Row]) -> None:
    """A table; on a terminal cells whose whole text is a key of STYLES are coloured."""
    cells = [["" if value is None else str(value) for value in row] for row in rows]
    if not sys.stdout.isatty():
        widths = [max(len(row[i]) for row in [list(headers), *cells]) for i in range(len(headers))]
        for row in [list(headers), *cells]:
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    from rich import box  # noqa: PLC0415  rich costs 80 ms, and only a terminal needs it
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in headers:
        table.add_column(name, overflow="fold")
    for row in cells:
        table.add_row(*(Text(cell, style=STYLES.get(cell, "")) for cell in row))
    Console().print(table)


def age(seconds: float) -> str:
    """A span of time in its largest unit: 5s, 12m, 3h, 9d."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds / size:.0f}{unit}"
    return f"{max(seconds, 0):.0f}s"


def clock(at: float) -> str:
    """A point in time as this box's wall clock shows it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))


def remote_in_words(remote: dict[str, Any]) -> str:
    """The last known state of the remote LLM, in words."""
    if remote["breaker"] == "closed":
        used = f"{remote['requests_today']} requests and {remote['tokens_today']} tokens that day"
        return f"answered when last asked, {clock(remote['at'])}; {used}"
    until = f"until {clock(remote['retry_at'])}" if remote["retry_at"] else "for now"
    return f"left alone {until} after {remote['failures']} failures in a row: {remote['reason']}"
