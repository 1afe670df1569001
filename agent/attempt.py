"""One attempt at a job: its heartbeats, its events, its worker, and how it is told to stop."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from agent import protocol
from agent.errors import StaleAttempt
from agent.events import EventLog
from agent.home import Home
from agent.jobs import Job
from agent.protocol import Answer, Checkpointed, Note, Request, Step, Train
from agent.store import Store
from agent.workers import Worker

BEAT_EVERY = 5.0
"""Seconds between heartbeats in the job's row: each is a synchronous write to the disk."""


class Stopped(Exception):
    """SIGTERM came; what was reached is on the disk."""


class Stopping:
    """Set by SIGTERM: come to an end where the job can be taken up again.

    A plain flag, because a signal handler must not wait for a lock that the code it interrupts may hold.
    """

    def __init__(self) -> None:
        self.asked = False

    def ask(self, *_: object) -> None:
        """Signal handler."""
        self.asked = True


class Attempt:
    """What the stages of a job share while this process works on it."""

    def __init__(self, home: Home, store: Store, job: Job, worker: Worker, stopping: Stopping) -> None:
        if job.token is None:
            raise StaleAttempt(f"job {job.id} is not claimed")
        self.home, self.store, self.job, self.worker = home, store, job, worker
        self.token: str = job.token
        self.run = home.run(job.id)
        self.events = EventLog(self.run / "events.jsonl")
        self._stopping = stopping
        self._worker_told = False
        self._progress: dict[str, Any] = {}
        self._beaten = 0.0

    def ask(self, request: Request) -> Answer:
        """Put a request to the worker, recording its events; raises Stopped after SIGTERM.

        Training is stopped by the worker itself, which checkpoints first and then answers; everything else is
        broken off, since it is cheap to do again.
        """
        training = isinstance(request, Train)

        def idle() -> None:
            if self._stopping.asked:
                self._stop_worker(training=training)
            self._beat()

        return self.worker.ask(request, self._record, idle)

    def phase(self, name: str) -> None:
        """Say what comes next, in the events and in the job's row."""
        if self._stopping.asked:
            raise Stopped
        self.events.add("phase", phase=name)
        self._progress = {**self._progress, "phase": name}
        self._beaten = 0.0
        self._beat()

    def _stop_worker(self, *, training: bool) -> None:
        if not training:
            raise Stopped
        if not self._worker_told:
            self._worker_told = True
            self.worker.stop()

    def _beat(self) -> None:
        """Heartbeat and progress; raises StaleAttempt once the job was cancelled or taken from us."""
        if time.monotonic() - self._beaten >= BEAT_EVERY or not self._beaten:
            self.store.beat(self.job.id, self.token, self._progress)
            self._beaten = time.monotonic()

    def _record(self, event: protocol.Event) -> None:
        if isinstance(event, Step):
            self.events.add("step", **dataclasses.asdict(event))
            shown = ("step", "steps", "loss", "tokens_per_s", "rss_mb")
            self._progress = {**self._progress, **{name: getattr(event, name) for name in shown}}
        elif isinstance(event, Note):
            self.events.add("note", text=event.text)
        elif isinstance(event, Checkpointed):
            self.events.add("checkpoint", step=event.step)
