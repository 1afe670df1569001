"""The daemon: claims jobs one after the other, supervises the process that works on them, tells systemd.

It holds no model and no data, so it stays small; everything heavy happens in `agent.runner.job_process`
and below, and is gone when a job ends.
"""

from __future__ import annotations

import math
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agent.contract.atomic_io import hold_lock, sweep_temporaries
from agent.contract.errors import AgentError, Busy, StaleAttempt, StateError
from agent.contract.os_errors import os_fault
from agent.daemon import metrics
from agent.daemon.throttle import Throttle
from agent.daemon.throttle_rules import Hold
from agent.data.spool import sweep_orphans
from agent.queue.jobs import Job, State
from agent.queue.store import Store
from agent.system import systemd
from agent.system.config import read_config
from agent.system.output import hint
from agent.system.paths import Home
from agent.system.worker_client import how_it_ended, last_words, start_module
from agent.versions.registry import Registry

POLL = 1.0
"""Seconds between looks at the queue."""
FROZEN = 60.0
"""Seconds without a heartbeat until the processes of a job are killed (they beat every 5)."""
STOP_TIMEOUT = 75
"""Seconds a job gets to checkpoint after SIGTERM; the unit's TimeoutStopSec is longer."""
LONGEST_PARKED = 26 * 3600.0
"""Seconds a job is put aside at most: until the day's budget starts again."""
SENSE_EVERY = 5.0
"""Seconds between looks at the box's sensors."""
PROGRESS_EVERY = 5.0
"""Seconds between reports of a running job."""

ENDED_BY_ITSELF = (State.DONE, State.FAILED)
"""States that a job's own process sets; it may still be clearing its folder then."""

Report = Callable[[str, Job], None]
"""Called with what happened ("started", "progress", "ended", ...) and the job's row."""


@dataclass
class Running:
    """The job being worked on and its process."""

    job: Job
    token: str
    process: subprocess.Popen[bytes]
    log: Path
    heartbeat: float | None
    heard: float
    reported: float
    killed_because: str = ""


class Daemon:
    """`initialize`, then `tick(now)` as often as wanted, then `shutdown`; `now` is a monotonic clock in seconds.

    `throttle` says what holds training back; `textfile` is where metrics go, if anywhere.
    """

    def __init__(
        self,
        home: Home,
        store: Store,
        report: Report,
        throttle: Callable[[float], Hold | None],
        textfile: Path | None = None,
    ) -> None:
        self._home, self._store, self._report, self._throttle = home, store, report, throttle
        self._textfile, self._written = textfile, -math.inf
        self._running: Running | None = None
        self._hold: Hold | None = None
        self._sensed = -math.inf
        self._status = ""

    @property
    def idle(self) -> bool:
        """True where no job's process is alive and none waits for the box to have room."""
        return self._running is None and not (self._hold and self._store.list([State.PAUSED], limit=1))

    def initialize(self) -> None:
        """Put right what a crash or power cut left: orphaned jobs, half-written files, the promotion rows."""
        Registry(self._home.path, self._store).reconcile()
        sweep_orphans(self._home.spool, self._store.spools())
        try:
            with hold_lock(self._home.models_lock, "init"):
                sweep_temporaries(self._home.models)
        except Busy:  # an `init` is at work, and what lies there is its own
            pass
        for job in self._store.orphans():
            # A reboot or power cut is not the job's fault and counts no death.
            same_boot = job.boot_id == boot_id()
            reason = "the daemon died" if same_boot else "the box restarted"
            self._report("taken back", self._store.record_death(job.id, str(job.token), reason, counts=same_boot))
        self._store.resume()
        systemd.notify("READY=1")

    def tick(self, now: float) -> None:
        """Reap, watch and claim once; returns quickly."""
        systemd.notify("WATCHDOG=1")
        # First, and whatever else fails: a frozen job may be what locks the database for everybody.
        if self._running:
            self._watch(self._running, now)
        if now - self._sensed >= SENSE_EVERY:
            self._sensed = now
            self._hold = self._throttle(now)
            if self._hold is None:
                for job in self._store.resume():
                    self._report("resumed", job)
            elif self._running:  # it checkpoints, and waits until the box has room
                self._running.process.terminate()
        if not self._running:
            self._claim(now)
        running = self._running
        status = f"job {running.job.id}: {running.job.file}" if running else "idle"
        status = f"paused: {self._hold.reason}" if self._hold else status
        if status != self._status:
            systemd.notify(f"STATUS={status}")
            self._status = status
        if self._textfile and now - self._written >= metrics.EVERY:
            self._written = now
            self._write_metrics(self._textfile)

    def shutdown(self) -> None:
        """Let the running job checkpoint and go back into the queue; however it ends, that counts as no death."""
        systemd.notify("STOPPING=1")
        if self._running is None:
            return
        running = self._running
        running.process.terminate()
        for _ in range(STOP_TIMEOUT):
            systemd.notify("WATCHDOG=1")
            try:
                running.process.wait(1.0)
                break
            except subprocess.TimeoutExpired:
                continue
        else:
            running.process.kill()
        self._reap(running, counts=False)

    def _claim(self, now: float) -> None:
        """Start the next job, or, while training is held back, have it wait."""
        if self._hold:
            for paused in self._store.pause(self._hold.reason):
                self._report("paused", paused)
            return
        for parked in self._store.wake(LONGEST_PARKED):
            self._report("woken", parked)
        job = self._store.claim(boot_id(), os.getpid())
        if job is None:
            return
        run = self._home.run(job.id)
        run.mkdir(mode=0o700, exist_ok=True)
        log = run / "loop.log"
        arguments = [str(self._home.path), str(job.id), str(job.token), str(os.getpid())]
        process = start_module("agent.runner.job_process", *arguments, log=log, pipes=False)
        self._running = Running(job, str(job.token), process, log, job.heartbeat, now, now)
        self._report("started", job)

    def _watch(self, running: Running, now: float) -> None:
        """Reap the job's process if it has ended; kill it if it is frozen, or its job cancelled."""
        if running.process.poll() is not None:
            self._reap(running)
            return
        try:
            job = self._store.get(running.job.id)
        except Busy:
            _kill_if_frozen(running, now)
            raise
        if job.token != running.token and job.state not in ENDED_BY_ITSELF:
            _kill(running, "was cancelled")
        elif job.heartbeat != running.heartbeat:
            running.heartbeat, running.heard = job.heartbeat, now
        else:
            _kill_if_frozen(running, now)
        if now - running.reported >= PROGRESS_EVERY:
            running.reported = now
            self._report("progress", job)

    def _reap(self, running: Running, *, counts: bool = True) -> None:
        """Note how the process ended; one that did not finish its job has died."""
        status = running.process.wait()
        job = self._store.get(running.job.id)
        died = job.token == running.token
        if died:
            ended = running.killed_because or f"{how_it_ended(status)}{last_words(running.log)}"
            reason = f"the job's process {ended}"
            try:
                job = self._store.record_death(job.id, running.token, reason, counts=counts)
            except StaleAttempt:  # it was cancelled meanwhile
                job = self._store.get(job.id)
        self._running = None
        self._report("ended", job)
        if died:  # it may have been about to publish a version
            Registry(self._home.path, self._store).reconcile()

    def _write_metrics(self, path: Path) -> None:
        running = self._store.get(self._running.job.id) if self._running else None
        try:
            active = Registry(self._home.path, self._store).active()
        except StateError:  # a link that leads nowhere: `versions` tells
            active = None
        samples = metrics.samples(
            self._store.counts(),
            running,
            self._store.remote(),
            paused=self._hold is not None,
            active=active,
            now=time.time(),
        )
        try:
            metrics.write(path, metrics.exposition(samples))
        except OSError as fault:
            self._textfile = None
            hint(f"nslora-agent: no metrics are written any more: {os_fault(path, fault)}")


def _kill_if_frozen(running: Running, now: float) -> None:
    if now - running.heard > FROZEN:
        _kill(running, f"gave no heartbeat for {FROZEN:.0f} s and was killed")


def _kill(running: Running, because: str) -> None:
    running.killed_because = because
    running.process.kill()


def boot_id() -> str:
    """Changes with every boot of the machine."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def serve(home: Home, store: Store, report: Report, *, drain: bool) -> None:
    """Run until SIGTERM or SIGINT, or, with `drain`, until the queue is empty."""
    stopping: list[int] = []
    wake, waker = os.pipe()
    for end in (wake, waker):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda caught, _: stopping.append(caught))
    signal.signal(signal.SIGCHLD, lambda *_: None)
    textfile = read_config(home.config).metrics.textfile
    daemon = Daemon(home, store, report, Throttle(home.config), Path(textfile) if textfile else None)
    daemon.initialize()
    while not stopping:
        try:
            daemon.tick(time.monotonic())
        except AgentError as fault:  # a full disk or a locked database is said and tried again, not died of
            if not fault.retryable:
                raise
            hint(f"nslora-agent: {fault}; trying again")
        else:
            if drain and daemon.idle:
                break
        if select.select([wake], [], [], POLL)[0]:
            os.read(wake, 4096)
    daemon.shutdown()
