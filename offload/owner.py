"""Who holds a lease: a name for a process that tells later whether that process is still there."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def process_name() -> str:
    """A name for this process that no other has: boot, process id, start time, and a random part."""
    return f"{BOOT_ID.read_text().strip()} {os.getpid()} {_start_time(os.getpid())} {secrets.token_hex(8)}"


def is_gone(owner: str) -> bool:
    """True if the process of that name is known to be gone; False where that cannot be told."""
    try:
        boot, pid, started, _ = owner.split(" ")
        return boot != BOOT_ID.read_text().strip() or _start_time(int(pid)) != started
    except ValueError:
        return False


def _start_time(pid: int) -> str | None:
    """When a process was started, in clock ticks since the boot; None if there is none with that number."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    state, *fields = stat.rpartition(")")[2].split()
    # A zombie asks for nothing any more; the start time is field 22 of proc(5), the state field 3.
    return None if state in {"Z", "X"} else fields[18]
