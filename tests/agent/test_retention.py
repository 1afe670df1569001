"""What is deleted by age, and what never is."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from agent.contract.errors import NotFound
from agent.contract.settings import Retention
from agent.decide.decision_store import DecisionStore, Round
from agent.queue.jobs import State
from agent.queue.store import Store
from agent.runner.attempt import Attempt, Stopping
from agent.runner.retention import prune
from agent.system import events
from agent.system.events import EventLog, read_events
from agent.system.paths import Home
from agent.versions.registry import Registry

NOTHING = Retention(jobs=1, checkpoints=0, versions=0)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(tmp_path / "state").create()


@pytest.fixture
def store(home: Home) -> Store:
    return Store(home.database)


@pytest.fixture
def registry(home: Home, store: Store) -> Registry:
    return Registry(home.path, store)


Ended = Callable[..., int]


@pytest.fixture
def ended(home: Home, store: Store) -> Ended:
    """Makes a job that has ended, with everything that it leaves."""

    def make(state: State = State.DONE, version: int | None = None) -> int:
        job = store.add("f", f"name-{len(store.list())}", 1, 0, "", {}, "base", "numeric")
        claimed = store.claim("boot", 1)
        assert claimed
        run = home.run(job.id)
        checkpoint = run / "attempt-1/checkpoints/step-1"
        checkpoint.mkdir(parents=True)
        for path in (run / "progress.json", checkpoint / "adapter", home.spool / f"{job.spool}.jsonl"):
            path.write_text("x")
        (home.spool / f"{job.spool}.bad.jsonl").write_text("x")
        decisions = DecisionStore(store, job.id)
        decisions.finish(str(claimed.token), Round(1, "numeric", "why", "ended", {}), ())
        store.finish(job.id, str(claimed.token), state, "over", version)
        return job.id

    return make


def made(registry: Registry, parent: int, job: int | None = None) -> int:
    with registry.draft({"job": job, "parent": parent}) as draft:
        (draft.folder / "f").write_text("x")
    return draft.number


def test_ended_jobs_lose_their_files_oldest_first(home: Home, store: Store, ended: Ended) -> None:
    """Their rows stay; the newest keep everything."""
    for _ in range(3):
        ended()
    gone = prune(home, store, Retention(jobs=2))
    assert set(gone) == {"runs/1", "spool/name-0.bad.jsonl", "spool/name-0.jsonl"}
    assert [path.name for path in sorted(home.runs.iterdir())] == ["2", "3"]
    assert len(store.list()) == 3
    assert [len(DecisionStore(store, job).rounds()) for job in (1, 2, 3)] == [0, 1, 1]
    assert prune(home, store, Retention(jobs=2)) == []


def test_a_job_that_is_not_over_loses_nothing(home: Home, store: Store, ended: Ended) -> None:
    """Queued, running, paused or parked, whatever its age."""
    waiting = store.add("f", "waiting", 1, 0, "", {}, "base", "numeric")
    (home.spool / "waiting.jsonl").write_text("x")
    with store.transaction():
        store.execute("UPDATE jobs SET state = 'paused' WHERE id = ?", (waiting.id,))
    for _ in range(3):
        ended()
    prune(home, store, NOTHING)
    assert (home.spool / "waiting.jsonl").exists()


def test_only_the_newest_unfinished_jobs_keep_their_checkpoints(home: Home, store: Store, ended: Ended) -> None:
    """Those that a person may still retry; data and logs stay."""
    for state in (State.FAILED, State.DEAD, State.CANCELLED):
        ended(state)
    prune(home, store, Retention(checkpoints=1))
    assert [(home.run(job) / "attempt-1").exists() for job in (1, 2, 3)] == [False, False, True]
    assert [(home.run(job) / "progress.json").exists() for job in (1, 2, 3)] == [False, False, True]
    assert len(list(home.spool.iterdir())) == 6


def test_versions_in_use_are_never_deleted(home: Home, store: Store, registry: Registry) -> None:
    """The base model, the active version, its parent, and what a rollback leads to."""
    for parent in (0, 0, 0, 3, 0):
        made(registry, parent)
    registry.promote(2)
    registry.promote(4)
    prune(home, store, NOTHING)
    assert [version.number for version in registry.versions()] == [0, 2, 3, 4]
    assert registry.rollback() == 2
    prune(home, store, NOTHING)
    assert [version.number for version in registry.versions()] == [0, 2]


def test_a_rollback_passes_over_versions_that_are_gone(home: Home, store: Store, registry: Registry) -> None:
    """One step back is always possible; what lay before it may be gone."""
    for _ in range(4):
        registry.promote(made(registry, 0))
    prune(home, store, NOTHING)
    assert [version.number for version in registry.versions()] == [0, 3, 4]
    assert registry.rollback() == 3
    assert registry.rollback() == 0
    with pytest.raises(NotFound):
        registry.rollback()


def test_what_a_kept_version_was_made_of_stays(home: Home, store: Store, registry: Registry, ended: Ended) -> None:
    """The gate measures the next versions on held-out rows of the job that made the active one."""
    registry.promote(made(registry, 0, job=1))
    ended(version=1)
    for _ in range(3):
        ended()
    prune(home, store, NOTHING)
    assert [path.name for path in sorted(home.runs.iterdir())] == ["1", "4"]


def test_a_broken_link_deletes_no_version(home: Home, store: Store, registry: Registry) -> None:
    """Nobody knows what is in use then."""
    registry.promote(made(registry, 0))
    made(registry, 0)
    (home.path / "active").unlink()
    (home.path / "active").symlink_to("versions/77")
    assert prune(home, store, NOTHING) == []


def test_the_newest_versions_are_kept(home: Home, store: Store, registry: Registry) -> None:
    """Numbers are never given out again."""
    for _ in range(5):
        made(registry, 0)
    assert prune(home, store, Retention(versions=2)) == ["versions/1", "versions/2", "versions/3"]
    registry.promote(made(registry, 0))
    assert prune(home, store, NOTHING) == ["versions/4", "versions/5"]
    assert made(registry, 0) == 7


# ---- logs ----


def test_a_very_long_run_keeps_fewer_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And everything else that happened."""
    monkeypatch.setattr(events, "MOST_BYTES", 4000)
    log = EventLog(tmp_path / "events.jsonl")
    for step in range(1, 2000):
        log.add("step", step=step)
    log.add("ended", reason="over")
    told = [event for event, _ in read_events(tmp_path / "events.jsonl")]
    steps = [event["step"] for event in told if event["event"] == "step"]
    assert told[-1]["event"] == "ended"
    first = next(step for step, after in itertools.pairwise(steps) if after != step + 1)
    assert set(steps[first:]) == set(range(steps[first], steps[-1] + 1, 10))
    assert (tmp_path / "events.jsonl").stat().st_size < 4200


def test_a_flooded_log_is_emptied(home: Home, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever writes to it goes on at its new end."""
    store.add("f", "name", 1, 0, "", {}, "base", "numeric")
    job = store.claim("boot", 1)
    assert job
    home.run(job.id).mkdir()
    monkeypatch.setattr("agent.runner.attempt.MOST_BYTES", 1000)
    log = home.run(job.id) / "worker.log"
    with log.open("ab", buffering=0) as stream, Attempt(home, store, job, Stopping()) as attempt:
        stream.write(b"x" * 1001)
        attempt.beat()
        assert log.read_bytes() == b""
        stream.write(b"last words\n")
    assert log.read_bytes() == b"last words\n"
    (note,) = (event for event, _ in read_events(home.run(job.id) / "events.jsonl"))
    assert note["text"].startswith("worker.log was emptied")
