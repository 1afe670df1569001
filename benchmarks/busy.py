"""Training beside busy processes, the last arm of `benchmarks.latency`: ours and Trainer, alone and beside n loops.

What is left of the cores beside n processes that never wait: with c cores, t threads and t + n > c a scheduler that
shares by threads gives the trainer c·t/(t + n) cores. Linux shares by session or control group where it tells these
apart (autogroup, systemd), so what is left is measured as well: t loops take the trainer's place, in a session of their
own as a worker is, and the CPU time that they get is what was left to it. Speeds are compared with that.
"""

from __future__ import annotations

import dataclasses
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from agent.contract.protocol import Load
from agent.system.worker_client import how_it_ended
from benchmarks.contenders import Case, messages, peer, settings, train, watched
from benchmarks.peers import WARM_UP
from benchmarks.running import Part, Session, clean, phase

LOOPS = """
import os, sys
from agent.contract.worker_server import die_with_parent
die_with_parent(int(sys.argv[1]))
for _ in range(int(sys.argv[2]) - 1):
    parent = os.getpid()
    if not os.fork():
        die_with_parent(parent)
        break
while True: pass
"""
"""A process that never waits, and children of it that do not either; all die with whoever started it."""
SETTLED, WATCHED = 1.0, 6.0
"""Seconds that loops get to start, and that their CPU time is then watched for."""
SEQUENCE, STEPS = 128, WARM_UP + 4
MOST_SECONDS = 150.0
"""After which a peer is ended: a step whose threads spin may take minutes."""
SECONDS = {"ours": 10, "trainer": 20, "share": 10}
"""Seconds of a part on two idle cores; beside n processes up to (t + n) / c times that."""
Figures = dict[str, Any]


def left_by_count(cores: int, threads: int, busy: int) -> float:
    """The share of what t threads get alone that is left to them beside n busy processes, sharing by threads."""
    return min(1.0, cores / (threads + busy)) if threads + busy > cores else 1.0


@contextmanager
def loops(count: int, *, session: bool = False) -> Iterator[int]:
    """So many busy processes; yields the first one's id. Killed at the end, and by the kernel if we die before."""
    if not count:
        yield 0
        return
    command = [sys.executable, "-c", LOOPS, str(os.getpid()), str(count)]
    with subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=session) as first:
        try:
            time.sleep(SETTLED)
            if first.poll() is not None:
                raise RuntimeError(f"the busy processes {how_it_ended(first.returncode)}")
            yield first.pid
        finally:
            first.kill()


def left_as_measured(threads: int, busy: int) -> float:
    """The share of t cores that t loops in a session of their own get beside n others."""
    with loops(busy), loops(threads, session=True) as pid:
        before, began = _cpu_seconds(pid), time.monotonic()
        time.sleep(WATCHED)
        return (_cpu_seconds(pid) - before) / (time.monotonic() - began) / threads


def _cpu_seconds(session: int) -> float:
    """CPU time of all processes of a session so far."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:  # gone meanwhile
            continue
        if int(fields[3]) == session:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def rate_of_peer(step_s: list[float], seconds: float = MOST_SECONDS) -> Figures:
    """Tokens a second by the times of the steps that ended; an upper bound where too few did in that time."""
    if counted := step_s[WARM_UP:]:
        return {"tokens_per_s": round(SEQUENCE / statistics.median(counted), 2)}
    return {"tokens_per_s": round(SEQUENCE / max(seconds - sum(step_s), *step_s, 1e-9), 2), "at_most": True}


def speed(what: Case, who: str, busy: int, folder: Path) -> Figures:
    """Tokens a second of training steps with one thread for each core, beside n busy processes."""
    short, log = dataclasses.replace(what, sequence=SEQUENCE, steps=STEPS), folder / "log"
    clean(folder)
    with mock.patch.dict(os.environ, OMP_NUM_THREADS=str(cores())), loops(busy):
        if who == "trainer":
            run = peer(short, "trainer", what.dtype, {}, log, seconds=MOST_SECONDS)
            return {"fault": run.fault} if run.fault else rate_of_peer(run.figures["step_s"])
        with watched(log) as (worker, watch):
            worker.ask(Load(str(what.prepared), None, what.device, what.dtype))
            watch.phase("step")
            steps: list[tuple[float, Any]] = []
            train(worker, messages(what.data, folder), folder, settings(short, 0), steps)
    return {"tokens_per_s": round(statistics.median(step.tokens_per_s for _, step in steps[WARM_UP:]), 2)}


def cores() -> int:
    """Cores that this process may use: the threads of whoever trains."""
    return len(os.sched_getaffinity(0))


def parts(counts: list[int], ours: Figures) -> list[Part]:
    """Every part of this arm with its seconds; `ours` is what our figures depend on."""
    found = []
    for count in (0, *counts):
        slower = 1 / left_by_count(cores(), cores(), count)
        if count:
            found.append(Part(name("share", count), SECONDS["share"]))
        for who, question in (("ours", ours), ("trainer", {})):
            found.append(Part(name(who, count), min(SECONDS[who] * slower, 200), question))
    return found


def name(who: str, count: int) -> str:
    """The name of a part."""
    return f"busy: {who}, {f'beside {count}' if count else 'alone'}"


def measure(session: Session, what: Case, folder: Path, counts: list[int], ours: Figures) -> Figures:
    """Everyone alone and beside each number of busy processes, a row for each; `ours` is what our figures depend on."""
    found: Figures = {"cores": cores(), "shares": {}, "ours": {}, "trainer": {}}
    print(f"\n{'training steps of ' + str(SEQUENCE) + ' tokens':<34}{'tokens/s':>10}{'of alone':>10}{'left':>8}"
          f"{'by count':>10}{'of left':>9}", flush=True)  # fmt: skip
    for count in (0, *counts):
        share = {"left": 1.0, "by_count": 1.0}
        if count:
            share = session.measure(name("share", count), lambda count=count: shares(count))  # type: ignore[misc]
            found["shares"][str(count)] = share
        for who, question in (("ours", ours), ("trainer", {})):
            work = lambda who=who, count=count: speed(what, who, count, folder / f"{who}-{count}")  # noqa: E731
            told = session.measure(name(who, count), work, **question)
            row = found[who][str(count)] = compared(told, found[who].get("0", told), share)
            print(line(name(who, count), row, share), flush=True)
    return found


def shares(count: int) -> Figures:
    """The share of the cores that is left beside so many busy processes."""
    phase("measuring what is left")
    left, by_count = left_as_measured(cores(), count), left_by_count(cores(), cores(), count)
    return {"left": round(left, 3), "by_count": round(by_count, 3)}


def compared(told: Figures, alone: Figures, share: Figures) -> Figures:
    """A speed with its share of the speed alone, and that as a share of what was left."""
    if told.get("fault") or alone.get("fault") or share.get("fault"):
        return told
    ratio = told["tokens_per_s"] / alone["tokens_per_s"]
    return {**told, "of_alone": round(ratio, 3), "of_share": round(ratio / share["left"], 3)}


def line(title: str, row: Figures, share: Figures) -> str:
    """A row of the table."""
    if "of_alone" not in row:
        return f"{title:<34}{row.get('tokens_per_s', '-'):>10}  {row.get('fault') or 'nothing to compare with'}"
    rate = f"{'≤ ' if row.get('at_most') else ''}{row['tokens_per_s']}"
    shown = f"{row['of_alone']:>10.3f}{share['left']:>8.3f}{share['by_count']:>10.3f}{row['of_share']:>9.2f}"
    return f"{title:<34}{rate:>10}{shown}"
