"""`nslora-agent doctor`: can this box train? Every check runs the real thing and says what to do."""

from __future__ import annotations

import os
import shutil
import sqlite3
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from agent.contract.atomic_io import folder_fault
from agent.contract.errors import AgentError
from agent.contract.protocol import Check
from agent.queue.store import Store
from agent.system import sensors
from agent.system.config import Config
from agent.system.output import remote_in_words
from agent.system.paths import Home
from agent.system.worker_client import Worker

OK, WARNING, FAILURE = "ok", "warning", "failure"

NEEDED_MEMORY = 2.1e9
"""Bytes that training the default base model takes at its peak, measured on a CPU in float32."""
HOT = 85.0
"""Degrees Celsius that leave no room for training."""
NEEDED_DISK = 1e9
"""Bytes for a base model, a version and two checkpoints."""


@dataclass(frozen=True)
class Finding:
    """One check: its status, what was seen, and what to do about it (empty if nothing)."""

    check: str
    status: str
    seen: str
    advice: str = ""


def examine(home: Home, config: Config) -> list[Finding]:
    """All findings; training can run if none is a failure."""
    state = [_state(home), _sqlite(home)]
    python = Finding("python", OK, f"{sys.version.split()[0]} at {sys.executable}")
    board = Finding("board", OK, sensors.board() or "no device tree (not a Jetson)")
    box = [_memory(), _disk(home), board, _temperature()]
    return [python, *state, *box, *_four_bit(config), _base(home, config), _remote(home, config)]


def _state(home: Home) -> Finding:
    try:
        with tempfile.NamedTemporaryFile(dir=home.create().path) as probe:
            os.fsync(probe.fileno())
    except (OSError, AgentError) as fault:
        return Finding("state folder", FAILURE, str(fault), "make it writable or choose another with --state DIR")
    return Finding("state folder", OK, f"{home.path} can be written")


def _sqlite(home: Home) -> Finding:
    try:
        with Store(home.database) as store:
            journal = store.journal_mode()
    except AgentError as fault:
        return Finding("sqlite", FAILURE, str(fault), "restore jobs.db from a backup or move it away")
    seen = f"SQLite {sqlite3.sqlite_version}, journal {journal}"
    if journal != "delete":
        return Finding(
            "sqlite", WARNING, seen, "the rollback journal is expected: stop the daemon and run doctor again"
        )
    return Finding("sqlite", OK, seen)


def _memory() -> Finding:
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    free, total = (int(fields[name].split()[0]) * 1024 for name in ("MemAvailable", "MemTotal"))
    seen = f"{free / 1e9:.1f} GB available of {total / 1e9:.1f} GB"
    if free < NEEDED_MEMORY:
        return Finding("memory", WARNING, seen, "stop other programs, or lower sequence_length and micro_batch")
    return Finding("memory", OK, seen)


def _disk(home: Home) -> Finding:
    there = next(folder for folder in (home.path, *home.path.parents) if folder.is_dir())
    free = shutil.disk_usage(there).free
    seen = f"{free / 1e9:.1f} GB free in {home.path}"
    status, advice = (OK, "") if free >= NEEDED_DISK else (WARNING, "free at least 1 GB or move the state folder")
    return Finding("disk", status, seen, advice)


def _four_bit(config: Config) -> list[Finding]:
    """Quantise, multiply and differentiate in 4 bits, in the worker's own process as training does."""
    with tempfile.TemporaryDirectory() as folder, Worker("quant.worker", Path(folder) / "log") as worker:
        try:
            answer = worker.ask(Check(config.training.device))
        except AgentError as fault:
            return [Finding("4-bit training", FAILURE, str(fault), "run `make install` again; see docs/deployment.md")]
    libraries = ", ".join(f"{name} {number}" for name, number in answer.versions.items())
    advice = "" if answer.ok else "bitsandbytes does not work with this device: reinstall it, or set device to cpu"
    training = f"{answer.detail}; computes in {answer.dtype}"
    if answer.confined:
        network = Finding("network", OK, "closed to the training worker")
    else:
        seen = "open to the training worker: this kernel has no seccomp filters"
        network = Finding(
            "network", WARNING, seen, "run it as the systemd service, which closes it: docs/deployment.md"
        )
    return [
        Finding("libraries", OK, libraries),
        Finding("4-bit training", OK if answer.ok else FAILURE, training, advice),
        network,
    ]


def _base(home: Home, config: Config) -> Finding:
    folder = home.model(config.base)
    if not folder.exists():
        return Finding("base model", FAILURE, f"{config.base} is not prepared", "run `nslora-agent init`")
    fault = folder_fault(folder)
    if fault:
        return Finding("base model", FAILURE, fault, "run `nslora-agent init --again`")
    size = sum(p.stat().st_size for p in folder.iterdir())
    return Finding("base model", OK, f"{config.base}, {size / 1e6:.0f} MB, every file as it was prepared")


def _remote(home: Home, config: Config) -> Finding:
    """The last known state of the remote LLM; nothing is sent here."""
    offload = config.offload
    if offload.mode == "cache-only":
        return Finding("remote LLM", OK, "recorded answers only (mode cache-only)")
    if not offload.base_url:
        return Finding("remote LLM", OK, "none is set, nothing is sent")
    try:
        with Store(home.database) as store:
            remote = store.remote()
    except AgentError as fault:
        return Finding("remote LLM", WARNING, str(fault))
    if remote is None:
        return Finding("remote LLM", OK, f"{offload.base_url}, not asked yet", "try it: nslora-agent offload test")
    status, advice = (OK, "") if remote["breaker"] == "closed" else (WARNING, "try it: nslora-agent offload test")
    return Finding("remote LLM", status, f"{offload.base_url} {remote_in_words(remote)}", advice)


def _temperature() -> Finding:
    zones = list(sensors.zones())
    if not zones:
        return Finding("temperature", OK, "no thermal zones on this machine")
    hottest = max(zones, key=lambda zone: zone.celsius)
    seen = f"{hottest.celsius:.0f} °C at {hottest.name}, the hottest of {len(zones)} zones"
    if hottest.celsius < HOT:
        return Finding("temperature", OK, seen)
    return Finding("temperature", WARNING, seen, "cool the box before training")
