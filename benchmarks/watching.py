"""A process watched from outside, phase by phase: anonymous, proportional and resident memory, and its control group's.

Resident memory counts clean pages of mapped files, which cost nothing that the system cannot take back; anonymous
memory hides them. So both are told, and proportional memory (shared pages divided by who shares them).
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmarks import running

MIB = 2**20
EVERY = 0.02
"""Seconds between two looks at /proc/PID/status."""
ROLLUP_EVERY = 40
"""Looks between two at smaps_rollup, which takes the kernel longer."""
V1, V2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


class Group:
    """A control group of its own for a process, v1 or v2; without the right to make one, nothing is measured."""

    def __init__(self, limit: int = 0) -> None:
        """`limit` is in bytes, 0 for none; with a limit PermissionError or OSError is raised where none can be set."""
        self.folder: Path | None = None
        is_v1 = (V1 / "memory.limit_in_bytes").exists()
        self._peak = "memory.max_usage_in_bytes" if is_v1 else "memory.peak"
        own = _own_group("memory" if is_v1 else "")
        folder = (V1 if is_v1 else V2) / own / f"nslora-benchmark-{os.getpid()}-{time.monotonic_ns()}"
        try:
            folder.mkdir()
            self.folder = folder
            if limit:
                (folder / ("memory.limit_in_bytes" if is_v1 else "memory.max")).write_text(str(limit))
                swap = folder / ("memory.swappiness" if is_v1 else "memory.swap.max")
                if swap.exists():
                    swap.write_text("0")
        except OSError:
            if limit:
                raise

    def add(self, pid: int) -> None:
        """Move a process into the group."""
        if self.folder:
            (self.folder / "cgroup.procs").write_text(str(pid))

    def peak(self) -> float | None:
        """The most memory that was charged to the group since the last call, in MiB."""
        if self.folder is None or not (self.folder / self._peak).exists():
            return None
        found = int((self.folder / self._peak).read_text()) / MIB
        with suppress(OSError):
            (self.folder / self._peak).write_text("0")
        return round(found, 1)

    def close(self) -> None:
        """Remove the group, whose process is dead."""
        for _ in range(100):
            if self.folder is None:
                return
            with suppress(OSError):
                self.folder.rmdir()
                return
            time.sleep(0.05)


def _own_group(controller: str) -> str:
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, names, path = line.split(":", 2)
        if controller in names.split(","):
            return path.lstrip("/")
    return ""


class Watch:
    """Samples a process until it is closed; `phase` begins a new set of highest values."""

    def __init__(self, pid: int, group: Group) -> None:
        self.pid, self.group = pid, group
        self.phases: dict[str, dict[str, float | None]] = {}
        self._name, self._began = "", 0.0
        self._highest: dict[str, float] = {}
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def phase(self, name: str) -> None:
        """End the phase before, begin another, and say so."""
        self._end()
        running.phase(name)
        with self._lock:
            self._name, self._began, self._highest = name, time.monotonic(), {}
            with suppress(OSError):
                Path(f"/proc/{self.pid}/clear_refs").write_text("5")
        self.group.peak()

    def close(self) -> dict[str, dict[str, float | None]]:
        """End the last phase; returns what each took, in MiB and seconds."""
        self._end()
        self._over.set()
        self._thread.join()
        return self.phases

    def _end(self) -> None:
        if not self._name:
            return
        self._look(rollup=True)
        with self._lock:
            found: dict[str, float | None] = {key: round(value, 1) for key, value in self._highest.items()}
            found["cgroup"] = self.group.peak()
            found["seconds"] = round(time.monotonic() - self._began, 3)
            self.phases[self._name] = found

    def _sample(self) -> None:
        looks = 0
        while not self._over.wait(EVERY):
            looks += 1
            self._look(rollup=looks % ROLLUP_EVERY == 0)

    def _look(self, *, rollup: bool) -> None:
        # Read under the lock, or what the phase before took would count for the next one.
        with self._lock, suppress(OSError, ValueError):
            found = _fields(Path(f"/proc/{self.pid}/status"), {"RssAnon": "anonymous", "VmHWM": "resident"})
            if rollup:
                found |= _fields(Path(f"/proc/{self.pid}/smaps_rollup"), {"Pss": "proportional"})
            for key, value in found.items():
                self._highest[key] = max(self._highest.get(key, 0.0), value)


def anonymous(pid: int) -> float:
    """Anonymous memory of a process now, in MiB."""
    return _fields(Path(f"/proc/{pid}/status"), {"RssAnon": "anonymous"})["anonymous"]


def _fields(path: Path, wanted: dict[str, str]) -> dict[str, float]:
    """Some fields of a file of /proc in MiB, by the names they shall have."""
    parts = (line.partition(":") for line in path.read_text().splitlines())
    return {wanted[name]: int(rest.split()[0]) / 1024 for name, _, rest in parts if name in wanted}


@contextmanager
def started(command: Sequence[str], environment: dict[str, str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A peer, its stderr in a file; killed if it is not over when we are.

    In a session of its own: Ctrl-C is ours to act on, and what is killed by it is no contender that failed.
    """
    pipe = subprocess.PIPE
    with log.open("a") as stderr:
        process = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=stderr, env=environment, start_new_session=True
        )
    with process:
        try:
            yield process
            process.wait()
        finally:
            process.kill()
