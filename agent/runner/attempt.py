"""One attempt at a job: its heartbeats, its events, its worker, and how it is told to stop."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from agent.contract import protocol
from agent.contract.atomic_io import hold_lock
from agent.contract.errors import Busy, OutOfMemory, StaleAttempt, WorkerDied
from agent.contract.offload_messages import Remote, Rewritten
from agent.contract.protocol import Checkpointed, Note, Step, Train
from agent.contract.requests import AnswerT, Request
from agent.queue.jobs import Job
from agent.queue.store import Store
from agent.system.events import MOST_BYTES, EventLog
from agent.system.offload_client import offload_worker
from agent.system.paths import Home
from agent.system.sensors import memory_kills
from agent.system.worker_client import Connection, Worker

BEAT_EVERY = 5.0
"""Seconds between heartbeats in the job's row: each is a synchronous write to the disk."""
LOCK_POLL = 1.0
"""Seconds between tries to get a lock that somebody holds."""


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
    """A job while this process works on it: its token, events and workers; a context manager that ends its workers.

    The training worker is started, under the device lock, at the first request for it, and the offload worker at the
    first for that one.
    """

    def __init__(self, home: Home, store: Store, job: Job, stopping: Stopping) -> None:
        if job.token is None:
            raise StaleAttempt(f"job {job.id} is not claimed")
        self.home, self.store, self.job = home, store, job
        self.token: str = job.token
        self.run = home.run(job.id)
        self.events = EventLog(self.run / "events.jsonl")
        self.remote: Remote | None = None
        """How the remote LLM stood when it was last asked."""
        self._stopping = stopping
        self._kept: tuple[int, ...] = ()
        self._trainer: Worker | None = None
        self._offload: Connection | None = None
        self._workers, self._offloading = ExitStack(), ExitStack()
        self._worker_told = False
        self._progress: dict[str, Any] = {}
        self._beaten = 0.0
        self._killed_before = 0

    def __enter__(self) -> Attempt:
        return self

    def __exit__(self, *_: object) -> None:
        self._offloading.close()
        self._workers.close()

    def ask(self, request: Request[AnswerT], steps: list[Step] | None = None) -> AnswerT:
        """Put a request to the training worker, recording its events, steps also in `steps`; Stopped after SIGTERM.

        Training is stopped by the worker itself, which checkpoints first and then answers; everything else is
        broken off, since it is cheap to do again.
        """
        training = isinstance(request, Train)
        worker = self._trainer = self._trainer or self._start_trainer()

        def idle() -> None:
            if self._stopping.asked:
                self._stop_worker(worker, training=training)
            self.beat()

        def record(event: protocol.Event) -> None:
            if steps is not None and isinstance(event, Step):
                steps.append(event)
            self._record(event)

        try:
            return worker.ask(request, record, idle)
        except WorkerDied as fault:
            if memory_kills() > self._killed_before:
                raise OutOfMemory("the training worker was killed because memory ran out") from fault
            raise

    def ask_remote(self, request: Request[Rewritten]) -> Rewritten:
        """Put a request to the offload worker; raises Stopped after SIGTERM, and ConfigError for a bad config.toml."""
        if self._offload is None:
            self._offload = self._offloading.enter_context(offload_worker(self.home, self.run / "offload.log"))
        answer = self._offload.ask(request, self._record, self._break_off)
        if answer.remote != self.remote:  # each note is a synchronous write, and a recorded answer changes nothing
            self.remote = answer.remote
            self.store.note_remote(dataclasses.asdict(answer.remote))
        return answer

    @property
    def remote_usage(self) -> dict[str, Any]:
        """Requests, tokens and money that all attempts at this job took from the remote LLM."""
        names = ("requests", "tokens", "money")
        return {f"rewrite_{name}": getattr(self.remote, f"{name}_job") if self.remote else 0 for name in names}

    def keep(self, descriptor: int) -> None:
        """A lock that the training worker shall hold until it is dead too."""
        self._kept = (*self._kept, descriptor)

    def end_workers(self) -> None:
        """Give their memory back before another kind of worker is started."""
        self.end_offload()
        self._workers.close()
        self._trainer = None

    def end_offload(self) -> None:
        """Give the offload worker's memory back; the training worker keeps its model."""
        self._offloading.close()
        self._offload = None

    def _start_trainer(self) -> Worker:
        device = self._workers.enter_context(self.lock(self.home.device_lock))
        log = self.run / "worker.log"
        self._killed_before = memory_kills()
        return self._workers.enter_context(Worker("quant.worker", log, keep=(*self._kept, device)))

    @contextmanager
    def lock(self, path: Path) -> Iterator[int]:
        """Hold a lock, however long a dying earlier attempt or a `generate` has it; yields its descriptor."""
        with ExitStack() as stack:
            yield self._lock_when_free(stack, path)

    def _lock_when_free(self, stack: ExitStack, path: Path) -> int:
        while not self._stopping.asked:
            try:
                return stack.enter_context(hold_lock(path, "in use"))
            except Busy:  # noqa: PERF203  each turn of this loop sleeps
                self.store.beat(self.job.id, self.token, {"phase": "wait"})
                time.sleep(LOCK_POLL)
        raise Stopped

    def _break_off(self) -> None:
        if self._stopping.asked:
            raise Stopped
        self.beat()

    def phase(self, name: str) -> None:
        """Say what comes next, in the events and in the job's row."""
        if self._stopping.asked:
            raise Stopped
        self.events.add("phase", phase=name)
        self._progress = {**self._progress, "phase": name}
        self._beaten = 0.0
        self.beat()

    def _stop_worker(self, worker: Worker, *, training: bool) -> None:
        if not training:
            raise Stopped
        if not self._worker_told:
            self._worker_told = True
            worker.stop()

    def beat(self, **values: Any) -> None:
        """Heartbeat and progress; raises StaleAttempt once the job was cancelled or taken from us."""
        self._progress = {**self._progress, **values}
        if time.monotonic() - self._beaten >= BEAT_EVERY or not self._beaten:
            self.store.beat(self.job.id, self.token, self._progress)
            self._beaten = time.monotonic()
            self._cut_logs()

    def _cut_logs(self) -> None:
        """Empty a log that a process floods; it goes on at its new end."""
        for path in self.run.glob("*.log"):
            if path.stat().st_size > MOST_BYTES:
                os.truncate(path, 0)
                self.events.add("note", text=f"{path.name} was emptied: it had grown to {MOST_BYTES >> 20} MB")

    def _record(self, event: protocol.Event) -> None:
        if isinstance(event, Step):
            self.events.add("step", **dataclasses.asdict(event))
            shown = ("step", "steps", "loss", "tokens_per_s", "rss_mb", "cuda_mb")
            self._progress = {**self._progress, **{name: getattr(event, name) for name in shown}}
        elif isinstance(event, Note):
            self.events.add("note", text=event.text)
        elif isinstance(event, Checkpointed):
            self.events.add("checkpoint", step=event.step)
