import contextlib
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import PATIENCE

from agent.contract.errors import AgentError, Busy, IllegalMove, NotFound, StaleAttempt, StateError, StorageError
from agent.queue.jobs import Job, State
from agent.queue.migrations import LATEST, jobs_and_moves
from agent.queue.store import Store

ROOT = Path(__file__).parents[2]
NOW = 1_700_000_000.0


class Clock:
    """Stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = NOW

    def time(self) -> float:
        """The time in unix seconds."""
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state" / "jobs.db"


@pytest.fixture
def store(path: Path, clock: Clock) -> Iterator[Store]:
    with Store(path, actor="test", clock=clock.time) as opened:
        yield opened


def add(store: Store, name: str = "tickets.jsonl", settings: dict[str, Any] | None = None) -> Job:
    return store.add(name, f"{name}.spooled", 90, 2, "ab" * 32, settings or {"rank": 8}, "smollm", "numeric")


def claim(store: Store) -> tuple[int, str]:
    """Claim the oldest job; its id and token."""
    job = store.claim("boot-1", 4711)
    assert job is not None
    assert job.token is not None
    return job.id, job.token


def child(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-W", "error", "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def output(process: subprocess.Popen[str]) -> str:
    text, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    return text


# ---- one process ----


def test_a_new_job_is_queued_as_given(store: Store) -> None:
    """Everything the caller knew comes back, from `add` and from `get`."""
    job = add(store)
    assert store.get(job.id) == job
    assert (job.state, job.file, job.spool, job.rows, job.bad_rows) == (
        State.QUEUED,
        "tickets.jsonl",
        "tickets.jsonl.spooled",
        90,
        2,
    )
    assert (job.settings, job.base, job.mode, job.sha256) == ({"rank": 8}, "smollm", "numeric", "ab" * 32)
    assert (job.created, job.updated, job.attempt, job.deaths, job.progress) == (NOW, NOW, 0, 0, {})


def test_the_oldest_job_is_claimed_first(store: Store) -> None:
    """Claims go by age; with none waiting there is nothing to claim."""
    first, second = add(store), add(store)
    assert claim(store)[0] == first.id
    assert claim(store)[0] == second.id
    assert store.claim("boot-1", 4711) is None


def test_a_claim_names_its_owner(store: Store, clock: Clock) -> None:
    """A running job carries attempt, token, boot, pid and a heartbeat of now."""
    add(store)
    clock.now += 5
    job = store.claim("boot-1", 4711)
    assert job is not None
    assert (job.state, job.attempt, job.boot_id, job.pid, job.heartbeat) == (
        State.RUNNING,
        1,
        "boot-1",
        4711,
        NOW + 5,
    )
    assert job.token
    assert len(job.token) >= 32


def test_every_attempt_has_a_token_of_its_own(store: Store) -> None:
    """A second attempt of the same job is numbered 2 and cannot be taken for the first."""
    add(store)
    job_id, first = claim(store)
    store.requeue(job_id, first, "stopped")
    assert claim(store) != (job_id, first)
    assert store.get(job_id).attempt == 2


def test_a_beat_reports_progress(store: Store, clock: Clock) -> None:
    """A heartbeat moves on; progress changes only if some is given."""
    add(store)
    job_id, token = claim(store)
    clock.now += 30
    store.beat(job_id, token, {"phase": "train", "step": 3})
    store.beat(job_id, token, None)
    job = store.get(job_id)
    assert (job.heartbeat, job.progress) == (NOW + 30, {"phase": "train", "step": 3})


def test_finishing_keeps_version_and_reason_and_lets_go(store: Store) -> None:
    """A job that is done names its version and why, and belongs to no attempt any more."""
    add(store)
    job_id, token = claim(store)
    store.finish(job_id, token, State.DONE, "promoted", version=7)
    job = store.get(job_id)
    assert (job.state, job.version, job.reason) == (State.DONE, 7, "promoted")
    assert (job.token, job.pid, job.boot_id, job.heartbeat) == (None, None, None, None)


def test_a_graceful_stop_is_no_death(store: Store) -> None:
    """However often a job is put back in good order, it never counts as a death."""
    add(store)
    for _ in range(4):
        job = store.requeue(*claim(store), "the daemon was stopped")
    assert (job.state, job.deaths, job.reason) == (State.QUEUED, 0, "the daemon was stopped")


def test_three_deaths_give_a_job_up_and_every_reason_is_kept(store: Store) -> None:
    """The third death ends the job; its reason names the last, its history all of them."""
    job = add(store)
    for signal_number in (6, 9, 11):
        job = store.record_death(*claim(store), f"killed by signal {signal_number}")
    assert (job.state, job.deaths) == (State.DEAD, 3)
    assert job.reason == "3 process deaths, the last: killed by signal 11"
    assert store.claim("boot-1", 4711) is None
    reasons = [move.reason for move in store.moves(job.id) if move.old is State.RUNNING]
    assert reasons == ["killed by signal 6", "killed by signal 9", job.reason]


def test_power_cuts_do_not_count(store: Store) -> None:
    """Deaths that were not the job's doing put it back for ever."""
    add(store)
    for _ in range(4):
        job = store.record_death(*claim(store), "the box was restarted", counts=False)
    assert (job.state, job.deaths) == (State.QUEUED, 0)


def test_a_retry_forgets_the_deaths(store: Store) -> None:
    """A job that was given up starts again with three lives."""
    job = add(store)
    for _ in range(3):
        store.record_death(*claim(store), "killed")
    job = store.retry(job.id)
    assert (job.state, job.deaths) == (State.QUEUED, 0)


def test_retrying_what_has_an_attempt_is_refused(store: Store) -> None:
    """A running job keeps its attempt although the table lets it be queued."""
    add(store)
    job_id, token = claim(store)
    with pytest.raises(IllegalMove, match="is running; only parked, failed"):
        store.retry(job_id)
    store.beat(job_id, token, None)


def test_an_illegal_move_changes_nothing(store: Store) -> None:
    """A job that is done can be neither cancelled nor retried, and its history does not grow."""
    job = add(store)
    store.finish(*claim(store), State.DONE, "promoted", version=1)
    before = store.get(job.id), store.moves(job.id)
    for forbidden in (lambda: store.cancel(job.id, "no"), lambda: store.retry(job.id)):
        with pytest.raises(IllegalMove, match="job 1 is done"):
            forbidden()
    assert (store.get(job.id), store.moves(job.id)) == before


def test_a_parked_job_is_queued_again_when_its_time_has_come(store: Store, clock: Clock) -> None:
    """Not before, and without a death; its attempt's token is gone meanwhile."""
    add(store)
    number, token = claim(store)
    parked = store.park(number, token, "the remote is down", clock.now + 60)
    assert (parked.state, parked.wake, parked.token, parked.deaths) == (State.PARKED, clock.now + 60, None, 0)
    assert store.wake(3600) == []
    assert store.claim("boot", 1) is None
    clock.now += 60
    (woken,) = store.wake(3600)
    assert (woken.id, woken.state, woken.wake) == (number, State.QUEUED, None)
    assert store.wake(3600) == []


def test_a_parked_job_does_not_sleep_for_ever_when_the_clock_was_wrong(store: Store, clock: Clock) -> None:
    """A time further off than any pause was set by a clock that ran ahead."""
    add(store)
    store.park(*claim(store), "the remote is down", clock.now + 10**8)
    assert [job.state for job in store.wake(3600)] == [State.QUEUED]


def test_a_stale_attempt_parks_nothing(store: Store) -> None:
    """As with every other write of an attempt."""
    add(store)
    number, token = claim(store)
    store.cancel(number, "because")
    with pytest.raises(StaleAttempt):
        store.park(number, token, "down", NOW)


def test_what_was_heard_of_the_remote_is_kept_until_the_next_word(store: Store, clock: Clock) -> None:
    """For `ls` and `doctor`, which ask nobody."""
    assert store.remote() is None
    store.note_remote({"breaker": "open"})
    clock.now += 5
    store.note_remote({"breaker": "closed"})
    assert store.remote() == {"at": clock.now, "breaker": "closed"}


def test_the_history_tells_every_move(store: Store, clock: Clock) -> None:
    """Each move is remembered with its time, reason and actor, oldest first."""
    job = add(store)
    clock.now += 1
    store.requeue(*claim(store), "stopped")
    clock.now += 1
    store.cancel(job.id, "not needed")
    assert [(m.at - NOW, m.old, m.new, m.reason, m.actor) for m in store.moves(job.id)] == [
        (0, None, State.QUEUED, None, "test"),
        (1, State.QUEUED, State.RUNNING, None, "test"),
        (1, State.RUNNING, State.QUEUED, "stopped", "test"),
        (2, State.QUEUED, State.CANCELLED, "not needed", "test"),
    ]


def test_listing_shows_the_newest_last(store: Store) -> None:
    """A limit keeps the newest jobs, states select, and an empty selection is empty."""
    jobs = [add(store) for _ in range(4)]
    store.cancel(jobs[1].id, "no")
    assert [job.id for job in store.list()] == [1, 2, 3, 4]
    assert [job.id for job in store.list(limit=2)] == [3, 4]
    assert [job.id for job in store.list([State.CANCELLED])] == [2]
    assert [job.id for job in store.list([State.QUEUED, State.CANCELLED], limit=3)] == [2, 3, 4]
    assert store.list([]) == []


def test_counts_spools_and_orphans(store: Store) -> None:
    """Counts hold every state, spools every job's copy, orphans exactly the running rows."""
    add(store, "a.jsonl")
    add(store, "b.jsonl")
    job_id, _ = claim(store)
    assert store.counts() == {state: int(state in {State.QUEUED, State.RUNNING}) for state in State}
    assert store.spools() == {"a.jsonl.spooled", "b.jsonl.spooled"}
    assert [job.id for job in store.orphans()] == [job_id]


def test_an_unknown_job_points_to_the_list(store: Store) -> None:
    """Whatever is asked about a job that does not exist, the message says where to look."""
    for ask in (store.get, store.moves, store.retry, lambda job: store.cancel(job, "no")):
        with pytest.raises(NotFound, match="there is no job 9; see nslora-agent ls"):
            ask(9)


def test_the_promotion_stack_undoes_from_the_top(store: Store) -> None:
    """What was undone leaves the stack; its number still counts as given out."""
    store.push_promotion(1, 11)
    store.push_promotion(2, None)
    assert [(p.version, p.job) for p in store.promotion_stack()] == [(1, 11), (2, None)]
    popped = [store.pop_promotion(), store.pop_promotion(), store.pop_promotion()]
    assert [p.version if p else None for p in popped] == [2, 1, None]
    assert store.promotion_stack() == ()
    assert store.last_version() == 2


STALE: dict[str, Callable[[Store, int, str], object]] = {
    "beat": lambda store, job, token: store.beat(job, token, {"step": 99}),
    "finish": lambda store, job, token: store.finish(job, token, State.DONE, "late", version=5),
    "requeue": lambda store, job, token: store.requeue(job, token, "late"),
    "record_death": lambda store, job, token: store.record_death(job, token, "late"),
    "attempt": lambda store, job, token: contextlib.ExitStack().enter_context(store.attempt(job, token)),
}


@pytest.mark.parametrize("method", STALE)
@pytest.mark.parametrize("end", ["reclaimed", "cancelled"])
def test_a_stale_attempt_changes_nothing(store: Store, method: str, end: str) -> None:
    """The token of an attempt that was replaced or cancelled opens no method, and no row differs afterwards."""
    add(store)
    job_id, old = claim(store)
    if end == "reclaimed":
        store.requeue(job_id, old, "stopped")
        claim(store)
    else:
        store.cancel(job_id, "no")
    before = store.get(job_id), store.moves(job_id)
    with pytest.raises(StaleAttempt, match="job 1 is"):
        STALE[method](store, job_id, old)
    assert (store.get(job_id), store.moves(job_id)) == before


def test_an_attempt_writes_all_or_nothing(store: Store) -> None:
    """Promotion and end of a job stand or fall together."""
    add(store)
    job_id, token = claim(store)

    def fail_halfway() -> None:
        with store.attempt(job_id, token):
            store.push_promotion(1, job_id)
            store.finish(job_id, token, State.DONE, "promoted", version=1)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()
    assert (store.promotion_stack(), store.get(job_id).state) == ((), State.RUNNING)
    with store.attempt(job_id, token) as job:
        assert job.id == job_id
        store.push_promotion(1, job_id)
        store.finish(job_id, token, State.DONE, "promoted", version=1)
    assert (len(store.promotion_stack()), store.get(job_id).state) == (1, State.DONE)


def test_nobody_can_cancel_while_an_attempt_holds_its_transaction(store: Store, path: Path) -> None:
    """Inside `attempt` the job cannot change under its feet: others wait."""
    add(store)
    job_id, token = claim(store)
    with Store(path) as other, store.attempt(job_id, token):
        other._connection.execute("PRAGMA busy_timeout = 50")
        with pytest.raises(Busy):
            other.cancel(job_id, "no")
    assert store.get(job_id).state is State.RUNNING


def test_claim_and_ls_use_their_indices(store: Store) -> None:
    """No statement of claim, heartbeat, `ls` or history sorts, or reads the whole queue to find a few rows."""
    statements: list[str] = []
    add(store)
    store._connection.set_trace_callback(statements.append)
    store.beat(*claim(store), {"step": 1})
    store.list([State.QUEUED])
    store.list(limit=20)
    store.moves(1)
    store.counts()
    store._connection.set_trace_callback(None)
    queries = [sql for sql in statements if sql.startswith(("SELECT", "UPDATE"))]
    plan = {
        sql: " / ".join(row["detail"] for row in store._connection.execute(f"EXPLAIN QUERY PLAN {sql}"))
        for sql in queries
    }
    assert len(plan) >= 7
    for sql, detail in plan.items():
        assert "TEMP B-TREE" not in detail, sql
        newest_first = "ORDER BY id DESC LIMIT 20" in sql
        assert newest_first or "INDEX" in detail or "INTEGER PRIMARY KEY" in detail, (sql, detail)
    assert any("SEARCH jobs USING INDEX jobs_by_state (state=?)" in detail for detail in plan.values())
    assert any("SEARCH moves USING INDEX moves_by_job (job=?)" in detail for detail in plan.values())


# ---- the file itself ----


def test_only_the_owner_can_read_the_queue(path: Path) -> None:
    """Even without any umask, the database is 0600 and its folder 0700."""
    umask = os.umask(0)
    try:
        Store(path).close()
    finally:
        os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_commits_are_flushed(store: Store) -> None:
    """The journal is a rollback journal; every commit waits for the disk, the folder's entry included (EXTRA)."""
    pragmas = [next(iter(store._connection.execute(f"PRAGMA {p}").fetchone().values())) for p in PRAGMAS]
    assert pragmas == list(PRAGMAS.values())


PRAGMAS = {"journal_mode": "delete", "synchronous": 3, "busy_timeout": 10_000}


def test_an_old_database_is_migrated_without_loss(path: Path, store: Store) -> None:
    """A queue of the first schema gets the later tables and keeps its jobs."""
    job = add(store)
    for table in ("promotions", "remote", "rounds", "choices", "outcomes"):
        store._connection.execute(f"DROP TABLE {table}")
    store._connection.execute("ALTER TABLE jobs DROP COLUMN wake")
    store._connection.execute("DELETE FROM _sqlite_migrations WHERE name <> ?", (jobs_and_moves.__name__,))
    store._connection.execute("PRAGMA user_version = 1")
    with Store(path) as migrated:
        assert migrated.get(job.id) == job
        migrated.push_promotion(1, job.id)
        assert migrated._connection.execute("PRAGMA user_version").fetchone() == {"user_version": LATEST}


def test_a_newer_database_is_left_alone(path: Path, store: Store) -> None:
    """A queue made by a newer program is not touched, and the message says to upgrade."""
    store._connection.execute(f"PRAGMA user_version = {LATEST + 1}")
    with pytest.raises(StateError, match=r"made by a newer nslora-agent .*upgrade"):
        Store(path)


OPEN = """
import sys
from pathlib import Path
from agent.queue.store import Store
with Store(Path(sys.argv[1])) as store:
    store.list()
print("sqlite_utils" in sys.modules)
"""


@pytest.mark.process
def test_only_the_first_command_imports_sqlite_utils(path: Path) -> None:
    """The one that makes the tables pays for the import, later ones do not."""
    assert output(child(OPEN, path)) == "True\n"
    assert output(child(OPEN, path)) == "False\n"


def test_an_old_sqlite_is_told_apart_from_a_damaged_queue(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python whose SQLite lacks what the queue needs is named as the cause, before any file is made."""
    monkeypatch.setattr("agent.queue.store.OLDEST_SQLITE", (99, 1))
    with pytest.raises(StateError, match=r"SQLite is .*use a Python with 99\.1 or newer"):
        Store(path)
    assert not path.parent.exists()


# ---- faults of the disk ----


def test_a_full_disk_is_one_clear_line_and_loses_nothing(store: Store) -> None:
    """When SQLite finds no room the job is refused as StorageError, and the queue stays as it was."""
    add(store)
    store._connection.execute("PRAGMA max_page_count = 1")
    with pytest.raises(StorageError, match=r"full.*free some space") as caught:
        add(store, settings={"padding": "x" * 100_000})
    assert "\n" not in str(caught.value)
    assert caught.value.retryable
    assert store.counts()[State.QUEUED] == 1


@pytest.mark.process
def test_a_failing_disk_is_a_storage_error(store: Store, path: Path) -> None:
    """A write that the system refuses is told as StorageError, and the queue can be read afterwards."""
    add(store)
    code = """
import resource, sys
from pathlib import Path
from agent.contract.errors import StorageError
from agent.queue.store import Store
with Store(Path(sys.argv[1])) as store:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        store.add("f", "s", 1, 0, "", {"padding": "x" * 500_000}, "b", "numeric")
    except StorageError as fault:
        print(fault)
"""
    assert "disk I/O error" in output(child(code, path))
    assert store.counts()[State.QUEUED] == 1


def test_a_read_only_database_is_a_state_error(store: Store) -> None:
    """A queue that cannot be written points to owner and mode."""
    store._connection.execute("PRAGMA query_only = 1")
    with pytest.raises(StateError, match=r"readonly.*check owner and mode"):
        add(store)


def test_a_locked_database_is_busy(store: Store, path: Path) -> None:
    """Another program that keeps the queue for itself makes the call retryable."""
    store._connection.execute("PRAGMA busy_timeout = 50")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        for ask in (lambda: add(store), store.list):
            with pytest.raises(Busy, match="in use by another program"):
                ask()


def as_text(path: Path) -> None:
    path.write_text("this is no database\n" * 100)


def as_folder(path: Path) -> None:
    path.mkdir()


def with_torn_pages(path: Path) -> None:
    with Store(path) as store:
        add(store)
    data = path.read_bytes()
    path.write_bytes(data[:4096] + b"\xff" * (len(data) - 4096))


@pytest.mark.parametrize("spoil", [as_text, as_folder, with_torn_pages])
def test_a_spoiled_database_is_one_clear_line(path: Path, spoil: Callable[[Path], None]) -> None:
    """Whatever lies in the queue's place, the fault names the file and says what to do, in one line."""
    path.parent.mkdir()
    spoil(path)
    with pytest.raises(AgentError, match=r"jobs\.db.*; (check|move)") as caught, Store(path) as store:
        add(store)
    assert isinstance(caught.value, StateError | StorageError)
    assert "\n" not in str(caught.value)


def test_a_folder_that_cannot_be_made_is_a_state_error(tmp_path: Path) -> None:
    """A file where the state folder should be is named."""
    (tmp_path / "state").write_text("")
    with pytest.raises(StateError, match="state"):
        Store(tmp_path / "state" / "jobs.db")


# ---- several processes ----

CLAIM_ALL = """
import os, sys
from pathlib import Path
from agent.queue.store import Store
with Store(Path(sys.argv[1])) as store:
    print("ready", flush=True)
    sys.stdin.read(1)
    while job := store.claim("boot", os.getpid()):
        print(job.id, job.token)
"""


@pytest.mark.process
def test_four_processes_never_claim_the_same_job(store: Store, path: Path) -> None:
    """Forty jobs, four claimants started together: each job is claimed once, with a token of its own."""
    for _ in range(40):
        add(store)
    gate_out, gate_in = os.pipe()
    command = [sys.executable, "-c", CLAIM_ALL, str(path)]
    claimants = [
        subprocess.Popen(command, cwd=ROOT, stdin=gate_out, stdout=subprocess.PIPE, text=True) for _ in range(4)
    ]
    for process in claimants:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    os.close(gate_in)
    claimed = [line.split() for process in claimants for line in output(process).splitlines()]
    os.close(gate_out)
    assert sorted(int(job) for job, _ in claimed) == list(range(1, 41))
    assert len({token for _, token in claimed}) == 40
    assert {job.attempt for job in store.list()} == {1}


ADD_TEN = """
import sys, threading
from pathlib import Path
from agent.queue.store import Store
def add(name):
    with Store(Path(sys.argv[1])) as store:
        store.add(name, name, 1, 0, "", {}, "base", "numeric")
threads = [threading.Thread(target=add, args=(f"{sys.argv[2]}-{n}",)) for n in range(10)]
for thread in threads: thread.start()
for thread in threads: thread.join()
"""


@pytest.mark.process
def test_fifty_adds_at_once_lose_none_even_on_the_first_command(path: Path) -> None:
    """Five processes with ten connections each race to make the tables and to add: all fifty jobs are there."""
    for process in [child(ADD_TEN, path, n) for n in range(5)]:
        output(process)
    with Store(path) as store:
        assert Counter(job.file for job in store.list()) == Counter(f"{p}-{n}" for p in range(5) for n in range(10))
        applied = store._connection.execute("SELECT name FROM _sqlite_migrations").fetchall()
        assert len(applied) == LATEST


HALF_WRITTEN = """
import sys, time
from pathlib import Path
from agent.queue.store import Store
store = Store(Path(sys.argv[1]))
with store.transaction():
    store._connection.execute("PRAGMA cache_size = 2")
    for n in range(50):
        store.add(str(n), str(n), 1, 0, "", {"padding": "x" * 20_000}, "base", "numeric")
    print("written", flush=True)
    time.sleep(60)
"""


@pytest.mark.process
def test_a_kill_in_the_middle_of_a_transaction_leaves_the_old_queue(store: Store, path: Path) -> None:
    """SIGKILL after half of a transaction reached the file: the next reader finds what was there before."""
    job = add(store)
    size = path.stat().st_size
    process = child(HALF_WRITTEN, path)
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    assert path.stat().st_size > size, "the transaction must have reached the file for this test to mean anything"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=PATIENCE)
    with Store(path) as reopened:
        assert reopened.list() == [job]
        assert reopened._connection.execute("PRAGMA integrity_check").fetchall() == [{"integrity_check": "ok"}]
        assert add(reopened).state is State.QUEUED


def test_a_reader_never_blocks_a_writer_for_long(store: Store, path: Path) -> None:
    """Readers that list all the time, as `ls --watch` does, leave a writer room for all its commits."""
    done = threading.Event()

    def read() -> None:
        with Store(path) as reader:
            while not done.is_set():
                reader.list()

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    try:
        for _ in range(20):
            add(store)
    finally:
        done.set()
        for reader in readers:
            reader.join()
    assert store.counts()[State.QUEUED] == 20
