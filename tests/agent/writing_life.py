"""All that is ever written to jobs.db, once: `writing_life.py STATE`.

Says on stdout what was done while a write transaction was open and should not have been, and which functions ran. An
audit hook cannot be taken out again, so this is a process of its own.
"""

from __future__ import annotations

import io
import json
import sqlite3
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from agent import api
from agent.contract.settings import Limits, Retention
from agent.data.spool import spool, sweep_orphans
from agent.decide.decision_store import Chosen, DecisionStore, Outcome, Round
from agent.queue.jobs import Job, State
from agent.queue.store import Store
from agent.runner.attempt import Attempt, Stopping
from agent.runner.job_context import JobContext
from agent.runner.retention import prune
from agent.scoring.gate import Verdict
from agent.system.paths import Home
from agent.versions.registry import Registry

QUICK = {"os.rename", "os.symlink", "os.remove", "os.listdir", "os.scandir", "builtins.id", "object.__getattr__"}
"""Done to one name or in memory; a link that is replaced needs them, and finding the versions there are."""
OURS = str(Path(__file__).parents[2] / "agent")

connections: list[sqlite3.Connection] = []
looking: list[str] = []
slow: list[str] = []
ran: set[tuple[str, str]] = set()


def watch(event: str, arguments: tuple[Any, ...]) -> None:
    """Audit hook: whatever is not known to be quick is noted, so that nobody has to list what is slow."""
    if looking:  # these are events of our own
        return
    looking.append(event)
    if event == "sqlite3.connect/handle":
        connections.append(arguments[0])
    elif any(map(in_transaction, connections)) and not is_quick(event, arguments):
        where = [f"{frame.name}:{frame.lineno}" for frame in traceback.extract_stack() if OURS in frame.filename]
        slow.append(f"{event} {arguments[:2]} in {' > '.join(where)}")
    looking.clear()


def in_transaction(connection: sqlite3.Connection) -> bool:
    """Also of one that is closed."""
    try:
        return connection.in_transaction
    except sqlite3.ProgrammingError:
        return False


def is_quick(event: str, arguments: tuple[Any, ...]) -> bool:
    """A manifest of a few kilobytes may be read, and a folder opened: to flush it, which is what makes a link last."""
    if event == "open":
        path = Path(str(arguments[0]))
        return path.is_dir() or (path.name == "manifest.json" and path.stat().st_size < 1 << 16)
    return event in QUICK


def note(frame: FrameType, event: str, _: object) -> None:
    """Profile hook."""
    if event == "call" and not looking:
        looking.append(event)
        if frame.f_code.co_filename.startswith(OURS):
            ran.add((Path(frame.f_code.co_filename).name, frame.f_code.co_name))
        looking.clear()


def live(home: Home, store: Store, registry: Registry) -> None:
    """A box with jobs of every end, versions that come and go, and decisions."""
    registry.reconcile()
    for number in range(5):
        enqueue(home, store, f"data-{number}")
    sweep_orphans(home.spool, store.spools(), older_than=0)
    store.pause("too hot")
    store.resume()
    for _ in range(3):
        work(home, store, registry)
    choose_versions(home, registry)
    end_otherwise(home, store)
    gone = prune(home, store, Retention(jobs=1, checkpoints=0, versions=0))
    assert {path.partition("/")[0] for path in gone} == {"versions", "runs", "spool"}, gone


def enqueue(home: Home, store: Store, name: str) -> None:
    """As the command does."""
    rows = io.BytesIO(b'{"prompt": "a", "completion": "b"}\n' * 3)
    kept = spool(rows, home.spool, name, Limits(), skip_bad=False)
    store.add("f", kept.path.stem, kept.rows, 0, kept.sha256, {}, "base", "numeric")


def claimed(home: Home, store: Store) -> Job:
    """The next job, as the daemon claims it."""
    job = store.claim("boot", 1)
    assert job
    home.run(job.id).mkdir(exist_ok=True)
    return job


def work(home: Home, store: Store, registry: Registry) -> None:
    """One job, as the loop does it."""
    job = claimed(home, store)
    token = str(job.token)
    verdict = dict.fromkeys(Verdict.__dataclass_fields__) | {"promote": True, "reason": "better"}
    with Attempt(home, store, job, Stopping()) as attempt:
        attempt.beat(phase="train")
        store.note_remote({"breaker": "closed"})
        decisions = DecisionStore(store, job.id)
        decisions.choose(token, 1, slowly(Chosen("row", 1, "weights", "why", {}, {})))
        outcome = Outcome("row", "weights", (0.0,), (), 0.1, 0.2, "told")
        decisions.finish(token, Round(1, "numeric", "why", "ended", {}), slowly(outcome))
        about = {"job": job.id, "parent": 0, "verdict": verdict}
        with registry.draft(about) as draft:
            (draft.folder / "f").write_text("x" * 100_000)
        version = draft.number
        JobContext.of(attempt).publisher.promote(version)
    store.finish(job.id, token, State.DONE, "over", version)


def slowly(each: Any) -> Iterator[Any]:
    """Rows that are computed as they are read."""
    Path(__file__).read_bytes()
    yield each


def choose_versions(home: Home, registry: Registry) -> None:
    """By hand, and after kills that cut a promotion in two."""
    api.promote(1, state=home.path)
    api.rollback(state=home.path)
    registry._point(2)
    registry.reconcile()
    registry._point(3)
    registry.rollback()
    for number in (1, 2, 3):
        registry.promote(number)


def end_otherwise(home: Home, store: Store) -> None:
    """What else becomes of jobs."""
    job = claimed(home, store)
    store.park(job.id, str(job.token), "the remote is away", 0.0)
    store.wake(60.0)
    store.requeue(job.id, str(claimed(home, store).token), "stopped")
    store.record_death(job.id, str(claimed(home, store).token), "killed")
    store.cancel(job.id, "by hand")
    store.retry(job.id)
    store.cancel(job.id, "by hand")
    store.cancel(claimed(home, store).id, "by hand")


if __name__ == "__main__":
    sys.addaudithook(watch)
    sys.setprofile(note)
    place = Home(Path(sys.argv[1])).create()
    with Store(place.database) as queue:
        live(place, queue, Registry(place.path, queue))
    sys.setprofile(None)
    print(json.dumps({"slow": slow, "ran": sorted(ran)}))
