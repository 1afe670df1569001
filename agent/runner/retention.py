"""Delete what is old, so that a box that trains for years does not fill its disk.

Never: the active version, its parent, what a rollback would lead to, the base model, and what an unended job needs. The
rows of the queue and its history stay; so does everything that a kept version was made of.
"""

from __future__ import annotations

from agent.contract.atomic_io import remove_tree
from agent.contract.settings import Retention
from agent.decide.decision_store import DecisionStore
from agent.queue.jobs import ENDED, Job, State
from agent.queue.store import Store
from agent.runner.memory_plan import start_over
from agent.system.paths import Home
from agent.versions.registry import Registry


def prune(home: Home, store: Store, keep: Retention) -> list[str]:
    """Delete what is older than `keep` allows; returns the paths that went, below the state folder."""
    registry = Registry(home.path, store)
    gone = [f"versions/{number}" for number in registry.prune(keep.versions)]
    makers = {version.about.get("job") for version in registry.versions()}
    ended = [job for job in store.list(ENDED) if job.id not in makers]
    for job in ended[: -keep.jobs or None]:
        gone += _forget(home, store, job)
    unfinished = [job for job in ended if job.state is not State.DONE]
    for job in unfinished[: -keep.checkpoints or None]:
        gone += _without_checkpoints(home, job)
    return gone


def _forget(home: Home, store: Store, job: Job) -> list[str]:
    """Delete a job's data, logs and decisions."""
    paths = [home.run(job.id), *home.spool.glob(f"{job.spool}.*")]
    there = [path for path in paths if path.exists()]
    if there:
        DecisionStore(store, job.id).forget()
    for path in there:
        remove_tree(path)
    return [str(path.relative_to(home.path)) for path in there]


def _without_checkpoints(home: Home, job: Job) -> list[str]:
    """Delete what a retry would have gone on from; it starts again then."""
    paths = [path for path in home.run(job.id).glob("attempt-*") if path.is_dir()]
    start_over(home.run(job.id))
    return [str(path.relative_to(home.path)) for path in paths]
