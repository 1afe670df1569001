"""A run's events: one JSON object a line, appended by the job's loop, read by `logs`."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

MOST_BYTES = 16 << 20
"""Size from which on a run's events are told without steps."""
EVERY = 10
"""From half that size on, one step in so many is kept."""
PHASES = {
    "plan": "planning memory",
    "load": "loading the model",
    "before": "measuring held-out rows before",
    "train": "training",
    "after": "measuring held-out rows after",
    "after with prompt": "measuring held-out rows with a system prompt",
    "probe": "asking the model every training row",
    "publish": "publishing the version",
    "rewrite": "rewriting flagged examples",
    "wait": "waiting for the device",
}
"""What a job's phases are called for people."""
TEXTS = {
    "split": "{train} rows to train on, {held_out} held out",
    "plan": "at most {most:.0f} MB, to {peak}; {free_mb:.0f} MB are free{lowered}",
    "loaded": "model loaded: version {version}, {architecture} on {device} in {dtype}, {seconds:.1f} s",
    "step": "step {step}/{steps}  loss {loss:.4f}  grad {grad_norm:.3f}  lr {learning_rate:.1e}  "
    "{tokens_per_s:.0f} tokens/s  {rss_mb:.0f} MB",
    "checkpoint": "checkpoint at step {step}",
    "resume": "going on from {checkpoint}",
    "trained": "trained {step} steps, {tokens} tokens in {seconds:.0f} s, peak {peak_rss_mb:.0f} MB",
    "evaluated": "{phase}: held-out {means}",
    "rewrite": "{id}: {state}{why_not}",
    "round": "-- round {round}, {phase}: {why} ({states})",
    "window": "window: {measured}, {reason}",
    "round over": "round {round} over, {ended}: {gained:+.2f} reward on {examples} examples, "
    "mean {reward:.3f}; {steps} steps, {requests_here} requests",
    "prompt": "the system prompt changes the mean reward by {gain:+.3f} and {kept}",
    "parked": "parked: {reason}",
    "verdict": "verdict: {reason}",
    "promoted": "version {version} is active",
    "note": "note: {text}",
    "ended": "{state}: {reason}",
}
"""What events are called for people, with their values and those of `_parts`."""


class EventLog:
    """The writer. A power cut may leave the last line torn; it is closed off when the log is opened again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        if path.exists() and not path.read_bytes().endswith(b"\n"):
            self._append(b"\n")

    def add(self, event: str, **values: Any) -> None:
        """Append one event with the time it happened; of steps only some, once there are very many."""
        if event == "step":
            size = self._path.stat().st_size if self._path.exists() else 0
            if size > MOST_BYTES or (size > MOST_BYTES // 2 and values["step"] % EVERY > 0):
                return
        record = {"at": round(time.time(), 3), "event": event, **values}
        self._append(json.dumps(record, allow_nan=False).encode() + b"\n")

    def _append(self, line: bytes) -> None:
        with self._path.open("ab") as stream:
            stream.write(line)


def read_events(path: Path, offset: int = 0) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield (event, offset after it) for each whole line from byte `offset`; torn lines are passed over."""
    if not path.exists():
        return
    with path.open("rb") as stream:
        stream.seek(offset)
        while (line := stream.readline()).endswith(b"\n"):
            try:
                event = json.loads(line)
            except ValueError:
                continue
            yield event, stream.tell()


def in_words(event: dict[str, Any]) -> str:
    """One event as a line for people, without its time."""
    if event.get("event") == "phase":
        return f"-- {PHASES.get(event.get('phase', ''), event.get('phase'))}"
    try:
        return TEXTS[event["event"]].format(**{**event, **_parts(event)})
    except (KeyError, ValueError, TypeError, AttributeError):
        return json.dumps(event)


def _parts(event: dict[str, Any]) -> dict[str, Any]:
    """The values that the texts use beside an event's own."""
    means = ", ".join(f"{name} {event[name]}" for name in ("content", "style", "loss") if event.get(name) is not None)
    why_not = f" ({'; '.join(event['reasons'])})" if event.get("reasons") else ""
    parts = {"means": means, "why_not": why_not, "kept": "is kept" if event.get("pays") else "is left out"}
    if event["event"] == "plan":
        most, peak = max((event[f"{phase}_mb"], phase) for phase in ("load", "train", "generate", "save"))
        lowered = f": {event['changed']}" if event["changed"] else ""
        return {"most": most, "peak": peak, "lowered": lowered}
    if event["event"] == "round":
        parts["states"] = ", ".join(f"{count} {state}" for state, count in event["states"].items())
    if event["event"] == "window":
        numeric = "loss {level:.4f} ± {noise:.4f}, grad {gradient:.3f}"
        symbolic = "{requests} requests, {gained:+.2f} reward"
        parts["measured"] = (numeric if "level" in event else symbolic).format(**event)
    return parts


def progress_in_words(done: dict[str, Any]) -> str:
    """Where a running job is, in a few words, from its progress."""
    in_round = "round" in done and done.get("phase") in {"train", "probe", "rewrite"}
    phase = PHASES.get(str(done.get("phase")), "starting")
    words = (f"round {done['round']}: " if in_round else "") + phase
    if done.get("phase") == "rewrite" and "flagged" in done:
        return f"{words}, {done['done']}/{done['flagged']}"
    if done.get("phase") == "train" and "step" in done:
        speed = f"{done['tokens_per_s']:.0f} tokens/s"
        return f"{words}, step {done['step']}/{done['steps']}  loss {done['loss']:.3f}  {speed}"
    return words
