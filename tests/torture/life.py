"""A job's life in the queue and the registry, without a model: `life.py STATE MUTATION`, again after each kill.

Says on stdout what it has acknowledged, as `enqueue` and `promote` do. `forked` is the same for who starts it a
thousand times: in a process that has imported everything already.
"""

from __future__ import annotations

import ctypes
import io
import os
import sys
import uuid
from multiprocessing.connection import Connection
from pathlib import Path

from driver import plant

from agent.contract.settings import Limits
from agent.data.spool import spool, sweep_orphans
from agent.queue.jobs import Job, State
from agent.queue.store import Store
from agent.system.paths import Home
from agent.versions.registry import Registry

PR_SET_PTRACER = 0x59616D61
"""Lets who is not our parent trace us, where Yama would not."""
ROWS = b'{"prompt": "a", "completion": "b"}\n' * 3
WANTED = 2
"""Jobs in the end, each with a version of its own."""


def say(text: str) -> None:
    """Tell the world, which will rely on it."""
    print(text, flush=True)


def enqueue(home: Home, store: Store) -> None:
    """As the command does."""
    name = f"data-{len(store.list())}"
    for left in home.spool.glob(f"{name}.jsonl"):  # a name of our own, which an enqueue that was killed has used
        left.unlink()
    kept = spool(io.BytesIO(ROWS), home.spool, name, Limits(), skip_bad=False)
    told = uuid.uuid4().hex  # that of another life, or of none, would not do
    say(f"job {store.add(told, kept.path.stem, kept.rows, 0, kept.sha256, {}, 'base', 'numeric').id} is {told}")


def work(store: Store, registry: Registry, job: Job) -> None:
    """As the loop does."""
    token = str(job.token)
    store.beat(job.id, token, {"phase": "train"})
    made = registry.find_by_job(job.id) or publish(registry, job)
    if not store.was_promoted(made):
        registry.promote(made, job.id, token)
    say(f"version {made}")
    store.finish(job.id, token, State.DONE, "over", made)


def publish(registry: Registry, job: Job) -> int:
    """A version with an adapter."""
    with registry.draft({"job": job.id}) as draft:
        (draft.folder / "adapter_model.safetensors").write_bytes(b"x" * 100_000)
    return draft.number


def forked(state: str, mutation: str, outputs: tuple[str, str], ready: Connection) -> None:
    """Live once `ready` has something; stdout and stderr go into two files."""
    for number, path in enumerate(outputs, 1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    ctypes.CDLL(None).prctl(PR_SET_PTRACER, ctypes.c_ulong(-1), 0, 0, 0)
    ready.recv()
    live(state, mutation)


def live(state: str, mutation: str) -> None:
    """Whatever is left to do."""
    home = Home(Path(state)).create()
    plant(mutation)
    with Store(home.database) as store:
        registry = Registry(home.path, store)
        registry.reconcile()
        sweep_orphans(home.spool, store.spools(), older_than=0)
        for orphan in store.orphans():
            store.record_death(orphan.id, str(orphan.token), "killed")
        while len(store.list()) < WANTED:
            enqueue(home, store)
        while (job := store.claim("boot", 1)) is not None:
            work(store, registry, job)
        if registry.active() == WANTED:
            registry.rollback()
            say("rolled back")


if __name__ == "__main__":
    live(*sys.argv[1:])
