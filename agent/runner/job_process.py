"""One job, as a process: runs the stages of its mode and records how it ended.

Run by the daemon as `python -I -m agent.runner.job_process STATE JOB TOKEN PARENT_PID`; torch-free, the model lives
in the worker it starts. SIGTERM checkpoints and puts the job back into the queue.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

from agent.contract.atomic_io import remove_tree
from agent.contract.errors import AgentError, OutOfMemory, StaleAttempt, WorkerDied
from agent.contract.os_errors import os_fault
from agent.contract.settings import Training, part_of
from agent.contract.worker_server import die_with_parent
from agent.queue.jobs import Job, State
from agent.queue.store import Store
from agent.runner import neurosymbolic_job, numeric_job, symbolic_job
from agent.runner.attempt import Attempt, Stopped, Stopping
from agent.runner.job_context import Ended, JobContext
from agent.runner.learning import alternating_learning, monitored_learning
from agent.runner.memory_plan import fall_back
from agent.runner.parking import Parked
from agent.runner.retention import prune
from agent.runner.symbolic_job import REWRITES
from agent.system.config import read_config
from agent.system.events import EventLog
from agent.system.paths import REMADE, Home

MODES: dict[str, Callable[[JobContext], Ended]] = {
    "neurosymbolic": lambda job: neurosymbolic_job.run(monitored_learning(job)),
    "numeric": numeric_job.run,
    "symbolic": symbolic_job.run,
    "alternate": lambda job: neurosymbolic_job.run(alternating_learning(job)),
}
"""What each mode of a job runs."""
KEPT = {"events.jsonl", "worker.log", "offload.log", "loop.log", "lock", REMADE, REWRITES}
"""What stays of a run when it is done; everything else can be made again or is in the version."""
NICENESS = 10
"""Training yields the processor to whatever else the box does, `nslora-agent ls` included."""


def run_job(home: Home, store: Store, job: Job, stopping: Stopping) -> int:
    """Work on a claimed job and record how it ended; returns the process's exit code.

    0: the job reached an end that is in its row (also failed). WorkerDied's code: a process died, the daemon
    decides on another attempt. StaleAttempt's code: the job is no longer ours, nothing was changed.
    """
    token = str(job.token)
    try:
        with Attempt(home, store, job, stopping) as attempt, attempt.lock(home.run(job.id) / "lock") as lock:
            attempt.keep(lock)
            return _finish(attempt)
    except Stopped:
        store.requeue(job.id, token, "stopped in good order; goes on from its last checkpoint")
        return 0
    except Parked as pause:
        EventLog(home.run(job.id) / "events.jsonl").add("parked", reason=str(pause), wake=pause.wake)
        store.park(job.id, token, str(pause), pause.wake)
        return 0
    except OutOfMemory as fault:
        return _retry_with_less_memory(home, store, job, fault)
    except (WorkerDied, StaleAttempt) as fault:
        print(fault, file=sys.stderr)  # noqa: T201  the daemon reads the last line of our log
        return fault.exit_code
    except (AgentError, OSError) as fault:
        return _fail(home, store, job, fault)


def _retry_with_less_memory(home: Home, store: Store, job: Job, fault: OutOfMemory) -> int:
    """Queue the job again, one rung lower, or let it fail where there is none left."""
    try:
        changed = fall_back(home.run(job.id), part_of(Training, job.settings), fault)
    except OutOfMemory as last:
        return _fail(home, store, job, last)
    store.requeue(job.id, str(job.token), f"{fault}; goes on with {changed}")
    return 0


def _fail(home: Home, store: Store, job: Job, fault: AgentError | OSError) -> int:
    reason = str(fault if isinstance(fault, AgentError) else os_fault(home.run(job.id), fault))
    EventLog(home.run(job.id) / "events.jsonl").add("ended", state=State.FAILED, reason=reason)
    store.finish(job.id, str(job.token), State.FAILED, reason)
    return 0


def _finish(attempt: Attempt) -> int:
    reason, version = MODES[attempt.job.mode](JobContext.of(attempt))
    # Before the state changes, because `logs -f` reads to the end of the events once the job has ended.
    attempt.events.add("ended", state=State.DONE, reason=reason)
    attempt.store.finish(attempt.job.id, attempt.token, State.DONE, reason, version)
    for path in attempt.run.iterdir():
        if path.name not in KEPT:
            remove_tree(path)
    return 0


def main() -> int:
    """Entry point of the process."""
    state, job, token, parent = sys.argv[1:]
    stopping = Stopping()
    signal.signal(signal.SIGTERM, stopping.ask)
    die_with_parent(int(parent))
    os.nice(NICENESS)
    home = Home(Path(state))
    try:
        with Store(home.database, actor="loop") as store:
            code = run_job(home, store, dataclasses.replace(store.get(int(job)), token=token), stopping)
            prune(home, store, read_config(home.config).retention)
            return code
    except AgentError as fault:
        print(fault, file=sys.stderr)  # noqa: T201  as above
        return fault.exit_code


if __name__ == "__main__":
    sys.exit(main())
