"""Starting the offload worker: by ourselves, or through the unit that systemd runs for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agent.contract.offload_messages import Open
from agent.system.config import read_config
from agent.system.paths import Home
from agent.system.worker_client import Connection, SocketWorker, Worker

GRACE = 5.0
"""Seconds that the worker gets to release the lease on an answer that it is asking for."""


@contextmanager
def offload_worker(home: Home, log: Path) -> Iterator[Connection]:
    """A worker that is open for this box's cache and settings. Raises ConfigError, WorkerDied, or as `Open` fails."""
    settings = read_config(home.config).offload
    worker = SocketWorker(settings.socket) if settings.socket else Worker("offload.worker", log, grace=GRACE)
    with worker:
        worker.ask(Open(str(home.cache), settings))
        yield worker
