"""Kills a process of the agent at one of its writes, lets the rest go on, and looks at what is left.

A whole job's life on a tiny model: the daemon claims it, the loop works, the worker trains, a version is published and
promoted. A point is the Nth system call of one kind by one process; strace kills it as it enters the call.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from needs import needs
from processes import PATIENCE, command_line, descendants, is_alive

from agent.contract.atomic_io import TEMPORARY, folder_fault
from agent.queue.jobs import State
from agent.queue.store import Store
from agent.system.paths import Home
from agent.versions.registry import Registry

HERE = Path(__file__).parent
DAEMON, LOOP, WORKER = "agent.cli.main", "agent.runner.job_process", "quant.worker"
PROCESSES = (DAEMON, LOOP, WORKER)
CALLS = (
    "write", "pwrite64", "ftruncate", "fsync", "fdatasync", "rename", "renameat", "renameat2", "unlink", "unlinkat",
    "rmdir", "mkdir", "mkdirat", "symlink", "symlinkat",
)  # fmt: skip
"""What changes the disk, or tells another process something."""
NONE = "-"
EVERY_CALL = ["-y", "-e", "trace=" + ",".join(f"?{call}" for call in CALLS)]
"""strace's options for a trace of them all; a "?" forgives a call that this architecture does not have."""


@dataclass(frozen=True)
class Point:
    """The Nth call of one kind by one process; `what` is the kind of file that it changes."""

    process: str
    call: str
    number: int
    what: str = ""

    def __str__(self) -> str:
        return f"{self.process}, {self.call} number {self.number}"


@dataclass(frozen=True)
class Outcome:
    """What a job came to: everything that must be as if nothing had happened."""

    state: str
    reason: str
    versions: int
    adapter: str
    active: int
    promotions: tuple[int, ...]
    steps: int


class Harness:
    """`template` is a state folder with one queued job; each run works on a copy of it in `work`."""

    def __init__(self, template: Path, work: Path, mutation: str = NONE) -> None:
        self.template, self.work, self.mutation = template, work, mutation
        self.strace = needs("strace", "strace")
        self._runs = 0

    def fresh(self) -> Path:
        """A copy of the template, with a wrapper of its own."""
        self._runs += 1
        folder = self.work / str(self._runs)
        shutil.copytree(self.template, folder / "state", symlinks=True)
        wrapper = folder / "python"
        wrapper.write_text(f"#!{sys.executable}\n" + (HERE / "wrapper.py").read_text())
        wrapper.chmod(0o755)
        return folder

    def plan(self, folder: Path, processes: Sequence[str], options: list[str], *, once: bool) -> None:
        """Say which processes are to be traced, and how."""
        about = {
            "processes": processes,
            "options": options,
            "once": once,
            "python": sys.executable,
            "driver": str(HERE / "driver.py"),
            "strace": self.strace,
            "mutation": self.mutation,
        }
        (folder / "plan.json").write_text(json.dumps(about))

    def start(self, folder: Path) -> subprocess.Popen[bytes]:
        """The daemon, until its queue is empty."""
        command = [folder / "python", "-I", "-m", DAEMON, "run", "--drain", "--state", folder / "state"]
        with (folder / "daemon.log").open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log)

    def finish(self, folder: Path) -> None:
        """Run, again where the daemon itself was killed, until nothing is left to do; nobody may survive it."""
        for _ in range(3):
            with self.start(folder) as daemon:
                below: set[int] = set()
                deadline = time.monotonic() + PATIENCE
                while daemon.poll() is None and time.monotonic() < deadline:
                    below.update(descendants(daemon.pid))
                    time.sleep(0.1)
                if daemon.poll() is None:
                    daemon.kill()
                    raise AssertionError("the daemon did not come to an end")
            _wait_for_the_end(below)
            if daemon.returncode == 0:
                return
        raise AssertionError(f"the daemon ended with {daemon.returncode}: {(folder / 'daemon.log').read_text()[-300:]}")

    # ---- points ----

    def points(self) -> list[Point]:
        """Every point of a job that nobody disturbs."""
        folder = self.fresh()
        self.plan(folder, PROCESSES, EVERY_CALL, once=False)
        self.finish(folder)
        logs = {log.name.removeprefix("strace.").rpartition(".")[0]: log for log in folder.glob("strace.*")}
        return [point for process in PROCESSES for point in points_in(logs[process].read_text(), process, str(folder))]

    def disturb(self, point: Point, how: str) -> Path:
        """Run a job in which a call meets what strace injects; returns the run's folder, the job having ended."""
        folder = self.fresh()
        inject = f"inject={point.call}:{how}:when={point.number}"
        self.plan(folder, [point.process], ["-e", f"trace={point.call}", "-e", inject], once=True)
        self.finish(folder)
        return folder

    def kill(self, point: Point) -> Path:
        """Run a job in which a process is killed at a point."""
        return self.disturb(point, "signal=SIGKILL")


def points_in(log: str, process: str, below: str) -> list[Point]:
    """Every point in a trace, in order; `below` is the folder whose name says nothing of a file's kind."""
    counts: Counter[str] = Counter()
    found = []
    for match in re.finditer(r"^(\w+)\((.*)", log, re.MULTILINE):
        call, given = match[1], match[2]
        counts[call] += 1
        # A call on a descriptor shows its path first, and maybe data in quotes; the others have their paths in quotes.
        opened = re.match(r"\d+<([^>]*)>", given)
        paths = [opened[1]] if opened else re.findall(r"\"(/[^\"]*)\"", given)
        kinds = [re.sub(r"[0-9a-f]{8,}|\d+", "N", path.replace(below, "")) for path in paths]
        found.append(Point(process, call, counts[call], " ".join(kinds)))
    return found


def one_of_each(points: Sequence[Point], seed: int = 0) -> list[Point]:
    """For each process, call and kind of file one of its points.

    A write that is cut off is noticed, or not, by what reads the file afterwards; so where a bug shows at one of a
    kind, it mostly shows at the others.
    """
    kinds: dict[tuple[str, str, str], list[Point]] = {}
    for point in points:
        kinds.setdefault((point.process, point.call, point.what), []).append(point)
    draw = random.Random(seed)
    return [draw.choice(each) for each in kinds.values()]


def _wait_for_the_end(pids: set[int]) -> None:
    deadline = time.monotonic() + PATIENCE
    while left := [pid for pid in pids if is_alive(pid)]:
        assert time.monotonic() < deadline, f"orphans: {[command_line(pid) for pid in left]}"
        time.sleep(0.02)


# ---- what is left ----


def outcome(folder: Path) -> Outcome:
    """What a run's job came to; raises AssertionError for what must never be, whatever was killed."""
    home = Home(folder / "state")
    for database in (home.database,):
        with sqlite3.connect(database) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    with Store(home.database) as store:
        jobs = store.list()
        assert [job.id for job in jobs] == [1], "an acknowledged job is lost, or there is one more"
        registry = Registry(home.path, store)
        if jobs[0].state is not State.DONE:
            registry.reconcile()  # as the next daemon does when it starts
        versions = registry.versions()
        assert all(version.whole for version in versions), "half a version can be seen"
        assert all(folder_fault(home.versions / str(version.number)) is None for version in versions)
        stack = tuple(promotion.version for promotion in store.promotion_stack())
        assert registry.active() == (stack[-1] if stack else 0), "link and rows disagree"
        made = [version for version in versions if version.number]
        steps = made[-1].about["figures"]["steps"] if made else 0
        adapter = _digest(home.versions / str(made[-1].number)) if made else ""
    job = jobs[0]
    # A job that can still be retried keeps its folder as it is; the next attempt sweeps it.
    kept = home.models if job.state is State.DONE else home.runs
    left = [path for path in home.path.rglob(f"{TEMPORARY}*") if kept not in path.parents]
    assert not left, f"half-written: {left}"
    return Outcome(State(job.state).value, str(job.reason), len(made), adapter, registry.active(), stack, steps)


def _digest(version: Path) -> str:
    files = json.loads((version / "manifest.json").read_text())["files"]
    return str(files["adapter_model.safetensors"]["sha256"])


# ---- order of writes ----


def unflushed(log: str, below: str) -> Iterator[str]:
    """Renames in a trace (strace -f -y) of something below a folder that was not flushed, before or after.

    A file must be flushed after its last write and before it is renamed; the folder in which it gets its name after
    that, before the process that did it goes on to say so, which is: at some time.
    """
    dirty: set[str] = set()
    waiting: dict[str, str] = {}
    for line in log.splitlines():
        call = re.search(r"(?:^|\s)(\w+)\((.*)", line)
        if call is None or " = -1 " in line:
            continue
        name, rest = call[1], call[2]
        path = re.match(r"\d+<([^>]*)>", rest)
        if name in {"write", "pwrite64", "ftruncate"} and path and path[1].startswith(below):
            dirty.add(path[1])
        elif name in {"fsync", "fdatasync"} and path:
            dirty.discard(path[1])
            waiting = {target: folder for target, folder in waiting.items() if folder != path[1]}
        elif name.startswith("rename"):
            old, new = re.findall(r'"([^"]*)"', rest)[:2]
            if new.startswith(below):
                yield from (f"{each} was renamed before it was flushed" for each in dirty if _is_in(each, old))
                waiting[new] = str(Path(new).parent)
    yield from (f"{folder} was not flushed after {target} got its name" for target, folder in waiting.items())


def _is_in(path: str, tree: str) -> bool:
    return path == tree or path.startswith(f"{tree}/")
