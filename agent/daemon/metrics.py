"""Metrics for the textfile folder of Prometheus's node exporter: one file, replaced as a whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from agent.queue.jobs import Job, State

EVERY = 15.0
"""Seconds between two versions of the file."""
Sample = tuple[str, dict[str, str], float]
"""Name, labels, value."""
MEANINGS = {
    "nslora_jobs": "Jobs by state.",
    "nslora_job_step": "Optimizer step of the running job.",
    "nslora_job_steps": "Optimizer steps the running job has planned.",
    "nslora_job_loss": "Loss of the running job's last step, nats per token.",
    "nslora_job_tokens_per_second": "Speed of the running job's last step.",
    "nslora_job_memory_bytes": "Resident memory of the training worker.",
    "nslora_job_heartbeat_timestamp_seconds": "When the running job was last heard of.",
    "nslora_paused": "1 while the governor lets no job run.",
    "nslora_active_version": "The active version, 0 for the base model.",
    "nslora_remote_requests_today": "Requests to the remote LLM on the day it was last asked (UTC).",
    "nslora_remote_tokens_today": "Tokens of the remote LLM on that day.",
    "nslora_remote_open": "1 while the remote LLM is left alone after failures.",
    "nslora_updated_timestamp_seconds": "When this file was written.",
}
"""What each metric says; all are gauges."""


def samples(
    counts: dict[State, int],
    running: Job | None,
    remote: dict[str, Any] | None,
    *,
    paused: bool,
    active: int | None,
    now: float,
) -> Iterator[Sample]:
    """Everything there is to tell of a box at one moment."""
    for state, count in counts.items():
        yield "nslora_jobs", {"state": state.value}, count
    if running:
        labels, progress = {"job": str(running.id), "mode": running.mode}, running.progress
        names = {"step": "step", "steps": "steps", "loss": "loss", "tokens_per_s": "tokens_per_second"}
        for field, name in names.items():
            if field in progress:
                yield f"nslora_job_{name}", labels, progress[field]
        if "rss_mb" in progress:
            yield "nslora_job_memory_bytes", labels, progress["rss_mb"] * 1e6
        if running.heartbeat is not None:
            yield "nslora_job_heartbeat_timestamp_seconds", labels, round(running.heartbeat, 3)
    yield "nslora_paused", {}, paused
    if active is not None:
        yield "nslora_active_version", {}, active
    if remote:
        yield "nslora_remote_requests_today", {}, remote["requests_today"]
        yield "nslora_remote_tokens_today", {}, remote["tokens_today"]
        yield "nslora_remote_open", {}, remote["breaker"] != "closed"
    yield "nslora_updated_timestamp_seconds", {}, round(now, 3)


def exposition(samples: Iterator[Sample]) -> str:
    """Samples in Prometheus's text format, each metric with its meaning once."""
    lines, last = [], ""
    for name, labels, value in samples:
        if name != last:
            lines += [f"# HELP {name} {MEANINGS[name]}", f"# TYPE {name} gauge"]
            last = name
        pairs = ",".join(f'{key}="{_escape(text)}"' for key, text in labels.items())
        shown = f"{{{pairs}}}" if pairs else ""
        lines.append(f"{name}{shown} {_number(value)}")
    return "\n".join(lines) + "\n"


def _number(value: float) -> str:
    """The shortest text that reads back as the same number: a timestamp in six digits would be hours off."""
    return str(int(value)) if isinstance(value, int) else repr(value).removesuffix(".0")


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def write(path: Path, text: str) -> None:
    """Replace the file in one rename; not flushed, for it is old in a quarter of a minute. Raises OSError."""
    temporary = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        temporary.write_text(text)
        temporary.chmod(0o644)
        temporary.rename(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink()
        raise
