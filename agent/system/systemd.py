"""Messages to systemd without a dependency: sd_notify(3), and journal entries.

Those are sent as systemd's "native journal protocol" has them, so that `journalctl NSLORA_JOB=3` finds a job's.
"""

from __future__ import annotations

import os
import socket

JOURNAL = "/run/systemd/journal/socket"
INFO, WARNING = 6, 4
"""Priorities of syslog."""
PATIENCE = 2.0
"""Seconds to wait for room in the service manager's queue; a full one must not hold up the daemon."""


def notify(state: str) -> bool:
    """Send `state` (such as "READY=1") to the service manager.

    Returns whether it was told: False outside of systemd, and False where its socket has gone or is full, because
    a daemon must not stop over a message that nobody reads.
    """
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    return _send("\0" + address[1:] if address.startswith("@") else address, state)


def journal(message: str, priority: int, **fields: object) -> bool:
    """Write an entry with fields of its own (names in capitals) where stdout is the journal; False elsewhere."""
    if "JOURNAL_STREAM" not in os.environ:
        return False
    entry = {"MESSAGE": message, "PRIORITY": priority, "SYSLOG_IDENTIFIER": "nslora-agent", **fields}
    return _send(JOURNAL, "".join(f"{name}={' '.join(str(value).split())}\n" for name, value in entry.items()))


def _send(address: str, text: str) -> bool:
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as connection:
            connection.settimeout(PATIENCE)
            connection.connect(address)
            connection.sendall(text.encode())
    except OSError:
        return False
    return True
