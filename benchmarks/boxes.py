"""State folders for the benchmarks, and jobs run in them by the loop's own code; an interrupted run goes on.

Each arm has a box of its own, so that no classifier learns from another arm. The prepared base model is shared, the
remote LLM is its recorded answers (`cache-only`): a request that was not recorded fails the run.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import os
import platform
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from agent.contract.offload_messages import CacheImport
from agent.contract.settings import Decision, Training
from agent.daemon.daemon import boot_id
from agent.data.spool import spool
from agent.queue.jobs import Job, State
from agent.queue.store import Store
from agent.runner.attempt import Attempt, Stopped, Stopping
from agent.runner.job_context import Ended, JobContext
from agent.system.config import DEFAULT_BASE, read_config, write_settings
from agent.system.offload_client import offload_worker
from agent.system.paths import Home
from benchmarks.running import phase

RECORDED_MODEL = "qwen2.5-coder-1.5b-instruct-q4_k_m"
"""The remote LLM whose answers are recorded."""
MANY = 1_000_000
"""Requests that no arm reaches: what an arm may spend is for the arm to say."""


def machine(*more: str) -> dict[str, Any]:
    """The machine and the versions that a figure belongs to, those of the packages `more` too."""
    names = ("torch", "transformers", "peft", "bitsandbytes", "textgrad", *more)
    (model, *_) = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
    ] or [""]
    return {
        "machine": f"{model.partition(': ')[2]}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in names},
    }


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def box(folder: Path, model: Path, answers: Sequence[Path], record: str = "") -> Home:
    """A state folder with a prepared base model and recorded answers, made if it is not there.

    With a URL to `record` from, what is not recorded is asked there.
    """
    home = Home(folder).create()
    prepared = home.model(DEFAULT_BASE)
    if not prepared.exists():
        prepared.symlink_to(model.resolve())
    where = {"mode": "remote", "base_url": record} if record else {"mode": "cache-only"}
    about = {**where, "model": RECORDED_MODEL, "requests_per_job": MANY, "requests_per_day": MANY}
    write_settings(home.config, "offload", {**about, "tokens_per_job": 10**9, "tokens_per_day": 10**9})
    if not home.cache.exists():
        with offload_worker(home, folder / "import.log") as worker:
            for path in answers:
                worker.ask(CacheImport(str(path)))
    return home


def run_job(
    home: Home, data: Path, mode: str, settings: dict[str, Any], work: Callable[[JobContext], Ended]
) -> tuple[Job, str]:
    """Run the box's only job to its end, from where an earlier run left it; returns it and how it ended.

    SIGTERM ends it where it can be taken up again, and raises KeyboardInterrupt, as Ctrl-C does anywhere.
    """
    stopping = Stopping()
    before = signal.signal(signal.SIGTERM, stopping.ask)
    try:
        with Store(home.database, actor="benchmark") as store:
            job = _claimed(home, store, data, mode, settings)
            if job.state is State.DONE:
                return job, str(job.reason)
            with TellingAttempt(home, store, job, stopping) as attempt:
                reason, version = work(JobContext.of(attempt))
            return store.finish(job.id, str(job.token), State.DONE, reason, version), reason
    except Stopped:
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGTERM, before)


class TellingAttempt(Attempt):
    """One that says each phase on the screen too."""

    def phase(self, name: str) -> None:
        """As the job's row and its events say it."""
        phase(name)
        super().phase(name)


def _claimed(home: Home, store: Store, data: Path, mode: str, settings: dict[str, Any]) -> Job:
    jobs = store.list()
    if not jobs:
        _enqueue(home, store, data, mode, settings)
    elif jobs[0].state is State.DONE:
        return jobs[0]
    elif jobs[0].state is State.RUNNING:
        store.record_death(jobs[0].id, str(jobs[0].token), "the benchmark was stopped", counts=False)
    job = store.claim(boot_id(), os.getpid())
    if job is None:
        raise RuntimeError(f"{home.path}: the job is {store.list()[0].state}; delete the folder to start it again")
    home.run(job.id).mkdir(mode=0o700, exist_ok=True)
    return job


def _enqueue(home: Home, store: Store, data: Path, mode: str, settings: dict[str, Any]) -> None:
    with data.open("rb") as source:
        kept = spool(source, home.spool, "benchmark", read_config(home.config).limits, skip_bad=False)
    chosen = {**dataclasses.asdict(Training()), **dataclasses.asdict(Decision()), **settings}
    store.add(
        file=data.name,
        spool=kept.path.stem,
        rows=kept.rows,
        bad_rows=0,
        sha256=kept.sha256,
        settings=chosen,
        base=DEFAULT_BASE,
        mode=mode,
    )
