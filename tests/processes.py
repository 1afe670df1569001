"""Real processes for the tests: the installed command, the daemon, and what /proc says of them."""

from __future__ import annotations

import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from agent.queue.jobs import ENDED, Job, Move
from agent.queue.store import Store

AGENT = str(Path(sys.executable).with_name("nslora-agent"))
GOOD = '{"prompt": "Which port?", "completion": "Port 4713.", "answer": "4713"}\n'
BAD = '{"prompt": "Which port?"\n'
REPRODUCIBLE = '[training]\ndtype = "float32"\n'
"""Settings of a job that another one is compared with: which format a box probes as the faster one says more about who
else is busy on it, and the other format gives other bits."""
PATIENCE = float(os.environ.get("PATIENCE", "600"))
"""Seconds after which a wait is given up: a net under what hangs, never a bound on speed. What is waited for ends the
wait, however long a busy machine takes; `make test-all`, whose jobs are long, has a wider net."""
T = TypeVar("T")


def agent(*arguments: object, state: Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run one command to its end, its stdin empty unless `input` is given."""
    command = [AGENT, *map(str, arguments), "--state", str(state)]
    empty = {} if {"input", "stdin"} & options.keys() else {"stdin": subprocess.DEVNULL}
    defaults = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "timeout": PATIENCE}
    return subprocess.run(command, check=False, **{**defaults, **empty, **options})


def failed(done: subprocess.CompletedProcess[str], code: int, *words: str) -> str:
    """A failure: its exit code, nothing on stdout, on stderr our words and no traceback; returns stderr."""
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("nslora-agent: ")
    assert (done.returncode, done.stdout) == (code, ""), done.stderr
    for word in words:
        assert word in done.stderr
    return done.stderr


def wait_until(found: Callable[[], T | None], what: str) -> T:
    """The first value of `found()` that is true."""
    deadline = time.monotonic() + PATIENCE
    while True:
        if value := found():
            return value
        assert time.monotonic() < deadline, f"{what}: not within {PATIENCE:g} s"
        time.sleep(0.05)


# ---- /proc ----


def is_alive(pid: int) -> bool:
    """False for a process that is gone or a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _parent(pid: int) -> int | None:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None


def command_line(pid: int) -> str:
    """A process's arguments, separated by blanks; empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().replace("\0", " ")
    except (FileNotFoundError, ProcessLookupError):
        return ""


def descendants(pid: int) -> list[int]:
    """All living processes below one."""
    parents = {int(p.name): _parent(int(p.name)) for p in Path("/proc").iterdir() if p.name.isdecimal()}
    found = [pid]
    for ancestor in found:
        found += [child for child, parent in parents.items() if parent == ancestor]
    return [child for child in found[1:] if is_alive(child)]


def environment(pid: int) -> dict[str, str]:
    """The environment a process was started with."""
    entries = Path(f"/proc/{pid}/environ").read_bytes().decode().split("\0")
    return dict(entry.split("=", 1) for entry in entries if entry)


def resident_mb(pid: int) -> float:
    """Resident memory in MB (10^6 bytes)."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _target(descriptor: Path) -> str | None:
    """The target of a descriptor in /proc, or None: the process may have closed it since it was listed."""
    try:
        return str(descriptor.readlink())
    except FileNotFoundError:
        return None


def internet_sockets(pid: int) -> set[str]:
    """Inodes of the TCP and UDP sockets that a process has open."""
    kinds = ("tcp", "tcp6", "udp", "udp6")
    lines = [line for kind in kinds for line in Path(f"/proc/{pid}/net/{kind}").read_text().splitlines()[1:]]
    ours = {target for descriptor in Path(f"/proc/{pid}/fd").iterdir() if (target := _target(descriptor))}
    return {inode for line in lines if f"socket:[{(inode := line.split()[9])}]" in ours}


# ---- the daemon ----


@dataclass
class Daemon:
    """A running `nslora-agent run`."""

    state: Path
    process: subprocess.Popen[str]
    messages: queue.Queue[str]

    @property
    def loops(self) -> list[int]:
        """The process that works on a job, if there is one."""
        return [pid for pid in descendants(self.process.pid) if "agent.runner.job_process" in command_line(pid)]

    def told(self, until: str) -> list[str]:
        """The next messages to the service manager up to one that starts with `until`."""
        told: list[str] = []
        while not told or not told[-1].startswith(until):
            told.append(self.messages.get(timeout=PATIENCE))
        return told

    def job(self, number: int) -> Job:
        """A job's row."""
        with Store(self.state / "jobs.db") as store:
            return store.get(number)

    def moves(self, number: int) -> tuple[Move, ...]:
        """A job's history."""
        with Store(self.state / "jobs.db") as store:
            return store.moves(number)

    def wait_for(self, number: int, state: str) -> Job:
        """The job's row once it is in a state; fails when that can no longer be."""

        def reached() -> Job | None:
            is_over = self.process.poll() is not None
            job = self.job(number)
            if job.state == state:
                return job
            assert job.state not in ENDED, f"job {number} is {job.state}: {job.reason}"
            assert not is_over, f"the daemon ended: {(self.state / 'daemon.log').read_text()[-300:]}"
            return None

        return wait_until(reached, f"job {number} {state}")

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE)


@contextmanager
def _service_manager(address: str) -> Iterator[queue.Queue[str]]:
    """Listens as systemd does, always: a full queue would hold up the sender."""
    messages: queue.Queue[str] = queue.Queue()

    def listen() -> None:
        while message := manager.recv(4096):
            messages.put(message.decode())

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        listener = threading.Thread(target=listen)
        listener.start()
        try:
            yield messages
        finally:
            manager.shutdown(socket.SHUT_RD)
            listener.join()


@contextmanager
def daemon(state: Path, *arguments: str) -> Iterator[Daemon]:
    """A daemon that has initialised; killed at the end if it still runs, and nothing of it may be left then."""
    address = f"@nslora-test-{os.getpid()}-{time.monotonic_ns()}"
    with (
        _service_manager("\0" + address[1:]) as messages,
        (state / "daemon.log").open("w") as log,
        subprocess.Popen(
            [AGENT, "run", "--state", str(state), *arguments],
            stdout=log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "NOTIFY_SOCKET": address},
            text=True,
        ) as process,
    ):
        try:
            yield Daemon(state, process, messages)
        finally:
            below = descendants(process.pid)
            process.kill()
            process.wait()
            wait_until(lambda: not any(map(is_alive, below)), "everything below the daemon is gone")
