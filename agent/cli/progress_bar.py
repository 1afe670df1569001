"""Progress of a command that takes a while: a bar on a terminal, a line every few seconds off it, JSON lines on demand.

All of it on stderr, so that stdout holds the result alone.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from agent.contract.protocol import Event, Share
from agent.system.output import hint

EVERY = 5.0
"""Seconds between lines off a terminal."""
Told = Callable[[Event], None]
"""Takes the events of a worker; a Share moves the bar."""


@contextmanager
def working(what: str, *, as_json: bool) -> Iterator[Told]:
    """Show that `what` is being done while the block runs."""
    if as_json:
        yield _in_json(what)
    elif sys.stderr.isatty():
        with _bar(what) as told:
            yield told
    else:
        hint(what)
        yield _in_lines(what)


def _in_json(what: str) -> Told:
    def told(event: Event) -> None:
        if isinstance(event, Share):
            line = {"at": round(time.time(), 3), "event": "progress", "what": what, "done": event.done}
            hint(json.dumps(line))

    return told


def _in_lines(what: str) -> Told:
    said = [time.monotonic()]

    def told(event: Event) -> None:
        if isinstance(event, Share) and time.monotonic() - said[0] >= EVERY:
            said[0] = time.monotonic()
            hint(f"{what}: {event.done:.0%}")

    return told


@contextmanager
def _bar(what: str) -> Iterator[Told]:
    from rich.console import Console  # noqa: PLC0415  rich costs 80 ms, and only a terminal needs it
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None)

        def told(event: Event) -> None:
            if isinstance(event, Share):
                progress.update(task, total=1.0, completed=event.done)

        yield told
    hint(what)
