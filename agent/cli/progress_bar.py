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
OnEvent = Callable[[Event], None]
"""Called with the events of a worker; a Share moves the bar."""


@contextmanager
def show_progress(what: str, *, as_json: bool) -> Iterator[OnEvent]:
    """Show that `what` is being done while the block runs."""
    if sys.stderr.isatty() and not as_json:
        with _show_bar(what) as on_event:
            yield on_event
        return
    if not as_json:
        hint(what)
    said = time.monotonic()

    def print_share(event: Event) -> None:
        nonlocal said
        if not isinstance(event, Share):
            return
        if as_json:
            hint(json.dumps({"at": round(time.time(), 3), "event": "progress", "what": what, "done": event.done}))
        elif time.monotonic() - said >= EVERY:
            said = time.monotonic()
            hint(f"{what}: {event.done:.0%}")

    yield print_share


@contextmanager
def _show_bar(what: str) -> Iterator[OnEvent]:
    from rich.console import Console  # noqa: PLC0415  rich costs 80 ms, and only a terminal needs it
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None)

        def move(event: Event) -> None:
            if isinstance(event, Share):
                progress.update(task, total=1.0, completed=event.done)

        yield move
    hint(what)
