"""The queue and the registry under any order of what people, daemons and attempts do, in several processes."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from processes import PATIENCE

from agent.queue.jobs import MAX_DEATHS, MOVES, State
from agent.queue.store import Store

ACTOR = Path(__file__).with_name("queue_actor.py")
ACTORS = 3
WHO = st.integers(0, ACTORS - 1)
PICK = st.integers(0, 1_000_000)


class Process:
    """One actor."""

    def __init__(self) -> None:
        pipe = subprocess.PIPE
        self._process = subprocess.Popen([sys.executable, str(ACTOR)], stdin=pipe, stdout=pipe, text=True)

    def ask(self, *call: object) -> dict[str, Any]:
        """The answer to one call."""
        assert self._process.stdin
        assert self._process.stdout
        self._process.stdin.write(json.dumps(call) + "\n")
        self._process.stdin.flush()
        return dict(json.loads(self._process.stdout.readline()))

    def end(self) -> None:
        """Close its stdin and wait."""
        self._process.communicate()


class Queue(RuleBasedStateMachine):
    """The model: each job's state, token, attempts and deaths; the stack of what is active."""

    processes: ClassVar[list[Process]]

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.jobs: dict[int, list[Any]] = {}
        self.stale: list[tuple[int, str]] = []
        self.stack, self.versions = [0], [0]

    def teardown(self) -> None:
        """Delete the state folder."""
        self.folder.cleanup()

    def ask(self, who: int, name: str, *arguments: object) -> Any:
        """What an actor answers: ok or error."""
        return self.processes[who].ask(self.folder.name, name, *arguments)

    def done(self, who: int, name: str, *arguments: object) -> Any:
        """What an actor answers to what must work."""
        answer = self.ask(who, name, *arguments)
        assert "ok" in answer, (name, arguments, answer)
        return answer["ok"]

    def picked(self, pick: int, *states: State) -> int | None:
        """Some job in one of these states."""
        found = [job for job, told in self.jobs.items() if State(told[0]) in states]
        return found[pick % len(found)] if found else None

    def moved(self, job: int, state: str, **more: Any) -> None:
        """Move a job of the model; its token is stale from now on."""
        _, token, attempt, deaths = self.jobs[job]
        if token:
            self.stale.append((job, token))
        self.jobs[job] = [state, more.get("token"), more.get("attempt", attempt), more.get("deaths", deaths)]

    @rule(who=WHO)
    def add(self, who: int) -> None:
        """Every job gets a number of its own."""
        job = self.done(who, "add")
        assert job not in self.jobs
        self.jobs[job] = ["queued", None, 0, 0]

    @rule(who=WHO)
    def claim(self, who: int) -> None:
        """The oldest queued job, and no other; none where none waits."""
        claimed = self.done(who, "claim")
        waiting = [job for job, told in self.jobs.items() if told[0] == "queued"]
        assert (claimed and claimed[0]) == (min(waiting) if waiting else None)
        if claimed:
            job, token, attempt = claimed
            assert attempt == self.jobs[job][2] + 1
            assert token not in {old for _, old in self.stale}
            self.moved(job, "running", token=token, attempt=attempt)

    @rule(
        who=WHO,
        pick=PICK,
        how=st.sampled_from(["beat", "requeue", "park", "done", "failed", "died", "power cut"]),
    )
    def end(self, who: int, pick: int, how: str) -> None:
        """What the attempt that holds the token writes, happens."""
        job = self.picked(pick, State.RUNNING)
        if job is None:
            return
        token, deaths = self.jobs[job][1], self.jobs[job][3]
        if how == "beat":
            self.done(who, "beat", job, token)
        elif how in {"requeue", "park"}:
            self.done(who, how, job, token)
            self.moved(job, "queued" if how == "requeue" else "parked")
        elif how in {"died", "power cut"}:
            counts = how == "died"
            state = self.done(who, "died", job, token, counts)
            assert state == ("dead" if deaths + counts >= MAX_DEATHS else "queued")
            self.moved(job, state, deaths=deaths + counts)
        else:
            self.done(who, "finish", job, token, how)
            self.moved(job, how)

    @rule(who=WHO, pick=PICK, how=st.sampled_from(["beat", "requeue", "park", "died", "finish"]))
    def write_stale(self, who: int, pick: int, how: str) -> None:
        """What an attempt writes that is no longer the current one, changes nothing."""
        if not self.stale:
            return
        job, token = self.stale[pick % len(self.stale)]
        more = {"died": (True,), "finish": ("done",)}.get(how, ())
        assert self.ask(who, how, job, token, *more) == {"error": "StaleAttempt"}

    @rule(who=WHO, pick=PICK)
    def cancel(self, who: int, pick: int) -> None:
        """Whatever has not ended; what has, stays as it is."""
        job = self.picked(pick, *State)
        if job is None:
            return
        answer = self.ask(who, "cancel", job)
        if State.CANCELLED in MOVES[State(self.jobs[job][0])]:
            assert "ok" in answer
            self.moved(job, "cancelled")
        else:
            assert answer == {"error": "IllegalMove"}

    @rule(who=WHO, pick=PICK)
    def retry(self, who: int, pick: int) -> None:
        """What ended without success, or is parked."""
        job = self.picked(pick, *State)
        if job is None:
            return
        answer = self.ask(who, "retry", job)
        if self.jobs[job][0] in {"failed", "cancelled", "dead", "parked"}:
            assert "ok" in answer
            self.moved(job, "queued", deaths=0)
        else:
            assert answer == {"error": "IllegalMove"}

    @rule(who=WHO, how=st.sampled_from(["pause", "resume", "wake"]))
    def hold(self, who: int, how: str) -> None:
        """The governor holds at most one job, and lets all go; parked jobs wake."""
        by_state = {
            state: sorted(job for job, told in self.jobs.items() if told[0] == state)
            for state in ("queued", "paused", "parked")
        }
        wanted = {
            "pause": [] if by_state["paused"] else by_state["queued"][:1],
            "resume": by_state["paused"],
            "wake": by_state["parked"],
        }
        moved = self.done(who, how)
        assert moved == wanted[how]
        for job in moved:
            self.moved(job, "paused" if how == "pause" else "queued")

    @rule(who=WHO, pick=PICK)
    def publish_and_promote(self, who: int, pick: int) -> None:
        """A new version, or one that is there, becomes active; the active one again changes nothing."""
        version = self.versions[pick % len(self.versions)]
        if pick % 3 == 0:
            version = self.done(who, "publish", 1)
            assert version == max(self.versions) + 1
            self.versions.append(version)
        self.done(who, "promote", version, 1)
        if self.stack[-1] != version:
            self.stack.append(version)

    @rule(who=WHO)
    def roll_back(self, who: int) -> None:
        """One step each time, down to the base model."""
        answer = self.ask(who, "rollback")
        if len(self.stack) == 1:
            assert answer == {"error": "NotFound"}
        else:
            self.stack.pop()
            assert answer == {"ok": self.stack[-1]}

    @invariant()
    def everybody_sees_the_same(self) -> None:
        """Nothing is lost, nothing is doubled, and each history is a path of legal moves that ends in the state."""
        seen = self.done(len(self.jobs) % ACTORS, "seen")
        assert {int(job): told for job, told in seen["jobs"].items()} == self.jobs
        assert sum(seen["counts"].values()) == len(self.jobs)
        assert seen["active"] == self.stack[-1]
        assert all(seen["whole"])
        for job, moves in seen["moves"].items():
            assert moves[0] == [None, "queued"]
            assert all(before[1] == after[0] for before, after in itertools.pairwise(moves))
            assert all(State(new) in MOVES[State(old)] for old, new in moves[1:])
            assert moves[-1][1] == self.jobs[int(job)][0]


@pytest.fixture(scope="module")
def processes() -> Iterator[list[Process]]:
    made = [Process() for _ in range(ACTORS)]
    yield made
    for process in made:
        process.end()


@pytest.mark.process
def test_any_order_of_events_keeps_the_queue_whole(processes: list[Process]) -> None:
    """Three processes, any of which may do anything at any time."""
    Queue.processes = processes
    run_state_machine_as_test(Queue, settings=settings(max_examples=25, stateful_step_count=40, deadline=None))


@pytest.mark.slow
def test_ten_thousand_waiting_jobs_cost_no_work(tmp_path: Path) -> None:
    """A list of the newest and a claim take SQLite as many steps as among a hundred; to count takes a few a job."""
    steps = {count: _steps_beside(tmp_path / str(count), count) for count in (100, 10_000)}
    assert steps[10_000]["list"] < 1.5 * steps[100]["list"]
    assert steps[10_000]["claim"] < 1.5 * steps[100]["claim"]
    assert steps[10_000]["counts"] < 15 * 10_000


def _steps_beside(folder: Path, waiting: int) -> dict[str, int]:
    """Instructions of SQLite's virtual machine that each action takes beside so many waiting jobs."""
    found: dict[str, int] = {}
    with Store(folder / "jobs.db") as store:
        with store.transaction():
            for _ in range(waiting):
                store.add("f", "s", 1, 0, "", {}, "base", "numeric")
        actions = {
            "list": lambda: store.list(limit=50),
            "claim": lambda: store.claim("boot", 1),
            "counts": store.counts,
        }
        for name, action in actions.items():
            ticks = itertools.count()
            store._connection.set_progress_handler(lambda ticks=ticks: next(ticks) < 0, 1)
            action()
            store._connection.set_progress_handler(None, 0)
            found[name] = next(ticks)
    return found


ENQUEUE = """
import io, sys, uuid
from pathlib import Path
from agent.system.paths import Home
from agent.contract.settings import Limits
from agent.data.spool import spool
from agent.queue.store import Store
home = Home(Path(sys.argv[1]))
sys.stdin.readline()
for number in range(int(sys.argv[2])):
    row = b'{"prompt": "a", "completion": "b"}\\n'
    kept = spool(io.BytesIO(row), home.spool, uuid.uuid4().hex, Limits(), skip_bad=False)
    with Store(home.database) as store:
        print(store.add("f", kept.path.stem, kept.rows, 0, kept.sha256, {}, "base", "numeric").id, flush=True)
"""


@pytest.mark.process
def test_two_hundred_enqueues_at_once_lose_none(tmp_path: Path) -> None:
    """Twenty processes that start together, ten files each: each job has a number and its data."""
    (tmp_path / "spool").mkdir()
    command = [sys.executable, "-c", ENQUEUE, str(tmp_path), "10"]
    pipe = subprocess.PIPE
    started = [subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) for _ in range(20)]
    for process in started:
        assert process.stdin
        process.stdin.write("go\n")
        process.stdin.flush()
    told = [process.communicate(timeout=PATIENCE) for process in started]
    assert [errors for _, errors in told if errors] == []
    numbers = [int(line) for out, _ in told for line in out.split()]
    with Store(tmp_path / "jobs.db") as store:
        jobs = store.list()
    assert sorted(numbers) == [job.id for job in jobs] == list(range(1, 201))
    assert all((tmp_path / "spool" / f"{job.spool}.jsonl").exists() for job in jobs)
