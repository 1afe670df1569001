"""`watch`: the box, or one job, as it goes; on a terminal a screen, elsewhere a line every few seconds."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from agent.cli.run_history import RunHistory
from agent.queue.jobs import ENDED, Job, State, describe
from agent.queue.store import open_existing
from agent.system import sensors
from agent.system.events import progress_in_words
from agent.system.output import print_json, say
from agent.system.paths import Home

if TYPE_CHECKING:
    from agent.cli.screen import View

EVERY, EVERY_LINE = 1.0, 5.0
"""Seconds between pictures on a terminal, and between lines elsewhere."""
LISTED = 8
"""Jobs in the queue's panel."""


def watch(arguments: argparse.Namespace, home: Home) -> int:
    """Until the job ends, `q` or Ctrl-C; the box is watched until then."""
    if arguments.json or not sys.stdout.isatty():
        return _print_lines(arguments, home)
    return _show_screen(arguments, home)


def _foremost(jobs: list[Job]) -> Job | None:
    """The job that runs, else the first that waits, else the newest."""
    order = (State.RUNNING, State.PAUSED, State.PARKED, State.QUEUED)
    found = [job for state in order for job in jobs if job.state is state] or list(reversed(jobs))
    return found[0] if found else None


def _print_lines(arguments: argparse.Namespace, home: Home) -> int:
    """One line whenever something has changed; without a job, for every job."""
    said = ""
    while True:
        with open_existing(home.database) as store:
            job = store.get(arguments.job) if arguments.job is not None else _foremost(store.list())
        if job is not None:
            text = progress_in_words(job.progress) if job.state is State.RUNNING else f"{job.state}: {job.reason or ''}"
            if arguments.json:
                print_json({"at": time.time(), **describe(job)})
            elif text != said:
                say(f"{time.strftime('%H:%M:%S')} job {job.id} {text}")
            said = text
            if job.state in ENDED and arguments.job is not None:
                return 0
        time.sleep(EVERY_LINE)


def _show_screen(arguments: argparse.Namespace, home: Home) -> int:
    from rich.console import Console  # noqa: PLC0415  rich costs 80 ms, and only a terminal needs it
    from rich.live import Live  # noqa: PLC0415

    from agent.cli import screen  # noqa: PLC0415

    console = Console()
    histories: dict[int, RunHistory] = {}
    whole = arguments.job is None
    with _keyboard() as wait_for_key, Live(console=console, screen=whole, auto_refresh=False) as live:
        while True:
            seen = view(home, arguments.job, histories)
            width = console.width
            live.update(screen.box(seen, width) if whole else screen.one(seen, width), refresh=True)
            ended = seen.job is not None and seen.job.state in ENDED
            if wait_for_key("q", EVERY) or (ended and not whole):
                return 0


def view(home: Home, number: int | None, histories: dict[int, RunHistory]) -> View:
    """The present view of a job, or of the one that matters most; pass the same `histories` each time."""
    from agent.cli.screen import View  # noqa: PLC0415

    with open_existing(home.database) as store:
        jobs, remote = store.list(limit=LISTED), store.remote()
        job = store.get(number) if number is not None else _foremost(jobs)
    events = None
    if job is not None:
        events = histories.setdefault(job.id, RunHistory(home.run(job.id) / "events.jsonl")).refresh()
    free = shutil.disk_usage(home.path).free
    return View(jobs, events, job, sensors.read(), sensors.free_memory() / 1e6, free, remote, time.time())


@contextmanager
def _keyboard() -> Iterator[Any]:
    """A function that waits for a key on the terminal, which shows none meanwhile; False without a keyboard."""
    import select  # noqa: PLC0415
    import termios  # noqa: PLC0415
    import tty  # noqa: PLC0415

    if not sys.stdin.isatty():
        yield lambda _, seconds: time.sleep(seconds)
        return
    before = termios.tcgetattr(sys.stdin)

    def wait_for_key(key: str, seconds: float) -> bool:
        return bool(select.select([sys.stdin], [], [], seconds)[0]) and sys.stdin.read(1) == key

    try:
        tty.setcbreak(sys.stdin)
        yield wait_for_key
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)
