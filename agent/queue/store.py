"""All SQL on jobs.db: the queue, the history of its moves, and the stack of promotions.

Every write is one short BEGIN IMMEDIATE transaction, flushed to the disk before it returns; every read
fetches all rows and closes. Every write on behalf of a running attempt goes through `Store.attempt`, which
checks the attempt's token in the same transaction.

sqlite3's own errors leave this file as StorageError, StateError or Busy (`disk_faults`).
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agent.contract.atomic_io import make_private
from agent.contract.errors import NotFound, StaleAttempt, StateError
from agent.contract.os_errors import disk_faults
from agent.queue.jobs import Job, Move, State, after_death, check_move, check_retry, to_json
from agent.queue.migrations import migrate

BUSY_TIMEOUT = 10.0
"""Seconds a statement waits for another process's transaction."""
OLDEST_SQLITE = (3, 37)
"""The first SQLite with STRICT tables (and RETURNING, since 3.35)."""

Jobs = list[Job]
Rows = list[dict[str, Any]]
"""Aliases, because inside `Store` the name `list` means its method."""


@dataclass(frozen=True)
class Promotion:
    """One entry of the stack of what was active; `job` is None if a person promoted it by hand."""

    id: int
    version: int
    job: int | None
    at: float


def _as_dict(cursor: sqlite3.Cursor, row: tuple[Any, ...]) -> dict[str, Any]:
    return {column[0]: value for column, value in zip(cursor.description, row, strict=True)}


def _connect(path: Path) -> sqlite3.Connection:
    if sqlite3.sqlite_version_info < OLDEST_SQLITE:
        oldest = ".".join(map(str, OLDEST_SQLITE))
        raise StateError(f"this Python's SQLite is {sqlite3.sqlite_version}; use a Python with {oldest} or newer")
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    make_private(path)
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode = DELETE")
        # EXTRA also syncs the folder after the journal is deleted; with FULL a power cut may take the last commit back.
        connection.execute("PRAGMA synchronous = EXTRA")
        migrate(connection, path)
    except BaseException:
        connection.close()
        raise
    connection.row_factory = _as_dict
    return connection


class Store:
    """The database at `path`, made if it is not there; close it or use it as a context manager.

    `actor` is who its moves are put down to. One store belongs to one thread; times are those of `clock`.
    """

    def __init__(self, path: Path, *, actor: str = "cli", clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._actor = actor
        self._clock = clock
        with disk_faults(path):
            self._connection = _connect(path)

    def __enter__(self) -> Store:  # typing.Self came with Python 3.11
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the database; the store cannot be used afterwards."""
        self._connection.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Everything written in the block is there afterwards or, if it raises, nothing is; blocks may nest."""
        if self._connection.in_transaction:
            yield
            return
        with disk_faults(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            with disk_faults(self.path):
                self._connection.execute("COMMIT")
        except BaseException:
            # SQLite has already rolled back by itself after some faults of the disk.
            if self._connection.in_transaction:
                with disk_faults(self.path):
                    self._connection.execute("ROLLBACK")
            raise

    def execute(self, sql: str, parameters: tuple[Any, ...] | dict[str, Any] = ()) -> Rows:
        """Run one statement; returns all its rows, as dictionaries. Also for `agent.decide.decision_store`."""
        with disk_faults(self.path):
            return self._connection.execute(sql, parameters).fetchall()

    # ---- the queue ----

    def add(  # noqa: PLR0913  # each is a column that only the caller knows
        self,
        file: str,
        spool: str,
        rows: int,
        bad_rows: int,
        sha256: str,
        settings: dict[str, Any],
        base: str,
        mode: str,
    ) -> Job:
        """Put a job into the queue; its training data must already be in the spool."""
        now = self._clock()
        values = (file, spool, rows, bad_rows, sha256, to_json(settings), base, mode, State.QUEUED, now, now)
        with self.transaction():
            (row,) = self.execute(
                "INSERT INTO jobs (file, spool, rows, bad_rows, sha256, settings, base, mode, state, created, updated)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING *",
                values,
            )
            job = Job.from_row(row)
            self._remember(job, None)
        return job

    def claim(self, boot_id: str, pid: int) -> Job | None:
        """Start an attempt on the oldest queued job, or return None if none waits."""
        with self.transaction():
            rows = self.execute("SELECT * FROM jobs WHERE state = ? ORDER BY id LIMIT 1", (State.QUEUED,))
            if not rows:
                return None
            job = Job.from_row(rows[0])
            owner = {"token": secrets.token_hex(16), "boot_id": boot_id, "pid": pid, "heartbeat": self._clock()}
            return self._move(job, State.RUNNING, None, attempt=job.attempt + 1, progress={}, **owner)

    def cancel(self, job_id: int, reason: str) -> Job:
        """End a job; a running attempt learns of it by StaleAttempt. Raises IllegalMove for an ended one."""
        with self.transaction():
            return self._move(self.get(job_id), State.CANCELLED, reason)

    def retry(self, job_id: int) -> Job:
        """Put a job that has ended or is parked back into the queue, its deaths forgotten. Raises IllegalMove."""
        with self.transaction():
            job = self.get(job_id)
            check_retry(job_id, job.state)
            return self._move(job, State.QUEUED, "retried", deaths=0)

    # ---- writes of a running attempt ----

    @contextmanager
    def attempt(self, job_id: int, token: str) -> Iterator[Job]:
        """A transaction in which the attempt is provably the current one; keep the block short.

        Raises StaleAttempt if the job is not running or `token` is another attempt's.
        """
        with self.transaction():
            job = self.get(job_id)
            if job.state is not State.RUNNING or job.token != token:
                raise StaleAttempt(f"job {job_id} is {job.state} (attempt {job.attempt}); this attempt changes nothing")
            yield job

    def beat(self, job_id: int, token: str, progress: dict[str, Any] | None = None) -> None:
        """Say that the attempt lives, and how far it is. Raises StaleAttempt."""
        with self.attempt(job_id, token) as job:
            self._save(replace(job, heartbeat=self._clock(), progress=job.progress if progress is None else progress))

    def finish(self, job_id: int, token: str, state: State, reason: str | None, version: int | None = None) -> Job:
        """End the attempt in `state`, naming the version it published. Raises StaleAttempt."""
        with self.attempt(job_id, token) as job:
            return self._move(job, state, reason, version=version)

    def requeue(self, job_id: int, token: str, reason: str) -> Job:
        """Put the job back because its attempt was stopped in good order: no death. Raises StaleAttempt."""
        with self.attempt(job_id, token) as job:
            return self._move(job, State.QUEUED, reason)

    def park(self, job_id: int, token: str, reason: str, wake: float) -> Job:
        """Put the job aside until `wake` (unix seconds): all that is left needs the remote LLM. Raises StaleAttempt."""
        with self.attempt(job_id, token) as job:
            return self._move(job, State.PARKED, reason, wake=wake)

    def wake(self, longest: float) -> Jobs:
        """Queue the parked jobs whose time has come; returns them.

        A wake-up that lies more than `longest` seconds ahead was set by another clock, and has come too.
        """
        now = self._clock()
        sql = "SELECT * FROM jobs WHERE state = ? AND (wake <= ? OR wake > ?) ORDER BY id"
        due = self.execute(sql, (State.PARKED, now, now + longest))
        if not due:
            return []
        with self.transaction():
            jobs = [self.get(row["id"]) for row in due]
            return [self._move(j, State.QUEUED, "the remote may answer again") for j in jobs if j.state is State.PARKED]

    def pause(self, reason: str) -> Jobs:
        """Keep the next queued job waiting for the box's sake; returns it, none if one waits so already."""
        if not self.list([State.QUEUED], limit=1) or self.list([State.PAUSED], limit=1):
            return []
        with self.transaction():
            rows = self.execute("SELECT * FROM jobs WHERE state = ? ORDER BY id LIMIT 1", (State.QUEUED,))
            return [self._move(Job.from_row(row), State.PAUSED, reason) for row in rows]

    def resume(self) -> Jobs:
        """Queue the jobs that waited for the box's sake; returns them."""
        if not self.list([State.PAUSED], limit=1):
            return []
        with self.transaction():
            return [self._move(job, State.QUEUED, "the box has room again") for job in self.list([State.PAUSED])]

    def record_death(self, job_id: int, token: str, reason: str, *, counts: bool = True) -> Job:
        """Put the job back because its process died, or give it up at the third death. Raises StaleAttempt.

        `counts=False` is for deaths that were not the job's doing, such as a power cut.
        """
        with self.attempt(job_id, token) as job:
            state, deaths, stored = after_death(job.deaths, reason, counts=counts)
            return self._move(job, state, stored, deaths=deaths)

    def _move(self, job: Job, new: State, reason: str | None, **changes: Any) -> Job:
        """The one way from a state to another: checked, saved and remembered in the caller's transaction."""
        check_move(job.id, job.state, new)
        nobody = {"token": None, "boot_id": None, "pid": None, "heartbeat": None, "wake": None}
        moved = self._save(
            replace(job, **{**nobody, **changes, "state": new, "reason": reason, "updated": self._clock()})
        )
        self._remember(moved, job.state)
        return moved

    def _save(self, job: Job) -> Job:
        (row,) = self.execute(
            "UPDATE jobs SET state = :state, updated = :updated, attempt = :attempt, token = :token,"
            " boot_id = :boot_id, pid = :pid, heartbeat = :heartbeat, deaths = :deaths, reason = :reason,"
            " version = :version, wake = :wake, progress = :progress WHERE id = :id RETURNING *",
            job.to_row(),
        )
        return Job.from_row(row)

    def _remember(self, job: Job, old: State | None) -> None:
        self.execute(
            "INSERT INTO moves (job, at, old, new, reason, actor) VALUES (?, ?, ?, ?, ?, ?)",
            (job.id, job.updated, old, job.state, job.reason, self._actor),
        )

    # ---- reading the queue ----

    def get(self, job_id: int) -> Job:
        """One job. Raises NotFound."""
        rows = self.execute("SELECT * FROM jobs WHERE id = ?", (job_id,))
        if not rows:
            raise NotFound(f"there is no job {job_id}; see nslora-agent ls")
        return Job.from_row(rows[0])

    def list(self, states: Iterable[State] | None = None, limit: int | None = None) -> Jobs:
        """The newest `limit` jobs (or all) that are in one of `states` (or in any), newest last."""
        wanted = () if states is None else tuple(states)
        where = "" if states is None else f"WHERE state IN ({', '.join('?' * len(wanted))})"
        sql = f"SELECT * FROM jobs {where} ORDER BY id DESC LIMIT ?"  # noqa: S608  # only question marks go in
        rows = self.execute(sql, (*wanted, -1 if limit is None else limit))
        return [Job.from_row(row) for row in reversed(rows)]

    def orphans(self) -> Jobs:
        """Every running job: to a daemon that starts, holding the only daemon lock, each has lost its process."""
        return self.list([State.RUNNING])

    def moves(self, job_id: int) -> tuple[Move, ...]:
        """The history of a job, oldest first. Raises NotFound."""
        self.get(job_id)
        rows = self.execute("SELECT job, at, old, new, reason, actor FROM moves WHERE job = ? ORDER BY id", (job_id,))
        return tuple(
            Move(**{**row, "old": State(row["old"]) if row["old"] else None, "new": State(row["new"])}) for row in rows
        )

    def counts(self) -> dict[State, int]:
        """The number of jobs in each state, zeros included."""
        rows = self.execute("SELECT state, count(*) AS jobs FROM jobs GROUP BY 1")
        found = {row["state"]: row["jobs"] for row in rows}
        return {state: found.get(state, 0) for state in State}

    def spools(self) -> set[str]:
        """The names in spool/ that some job needs; any other file there belongs to nobody."""
        return {row["spool"] for row in self.execute("SELECT spool FROM jobs")}

    def journal_mode(self) -> str:
        """SQLite's journal mode, for doctor."""
        (row,) = self.execute("PRAGMA journal_mode")
        return str(row["journal_mode"])

    # ---- the remote LLM ----

    def note_remote(self, standing: dict[str, Any]) -> None:
        """Keep what an offload worker said of the remote LLM, for `ls` and `doctor`."""
        with self.transaction():
            self.execute("INSERT OR REPLACE INTO remote VALUES (1, ?, ?)", (self._clock(), to_json(standing)))

    def remote(self) -> dict[str, Any] | None:
        """The last known state of the remote LLM, with `at` in unix seconds; None if there is none."""
        rows = self.execute("SELECT at, standing FROM remote")
        return {"at": rows[0]["at"], **json.loads(rows[0]["standing"])} if rows else None

    # ---- promotions, for the registry ----

    def push_promotion(self, version: int, job: int | None) -> None:
        """Put what became active on top of the stack."""
        with self.transaction():
            self.execute("INSERT INTO promotions (version, job, at) VALUES (?, ?, ?)", (version, job, self._clock()))

    def promotion_stack(self) -> tuple[Promotion, ...]:
        """The promotions that were not undone, oldest first: the last one is active."""
        rows = self.execute("SELECT id, version, job, at FROM promotions WHERE undone IS NULL ORDER BY id")
        return tuple(Promotion(**row) for row in rows)

    def was_promoted(self, version: int) -> bool:
        """True if the version ever was active, also if it was rolled back since."""
        return bool(self.execute("SELECT id FROM promotions WHERE version = ? LIMIT 1", (version,)))

    def pop_promotion(self) -> Promotion | None:
        """Mark the top of the stack as undone and return it, or None where the stack is empty."""
        with self.transaction():
            stack = self.promotion_stack()
            if not stack:
                return None
            self.execute("UPDATE promotions SET undone = ? WHERE id = ?", (self._clock(), stack[-1].id))
            return stack[-1]

    def forget_promotions(self, version: int) -> None:
        """Mark every promotion of a version as undone: nothing leads back to it any more."""
        with self.transaction():
            sql = "UPDATE promotions SET undone = ? WHERE version = ? AND undone IS NULL"
            self.execute(sql, (self._clock(), version))

    def last_version(self) -> int:
        """The highest version number that any row names, 0 if none: such a number is never given out again."""
        (row,) = self.execute(
            "SELECT max(coalesce((SELECT max(version) FROM promotions), 0),"
            " coalesce((SELECT max(version) FROM jobs), 0)) AS version"
        )
        return int(row["version"])


def newest_jobs(path: Path, limit: int) -> list[tuple[int, State, str]]:
    """Number, state and file of the newest jobs, for completion in a shell: nothing is waited for, made or changed."""
    uri = f"{path.absolute().as_uri()}?mode=ro"
    with disk_faults(path), closing(sqlite3.connect(uri, uri=True, timeout=0.1)) as connection:
        rows = connection.execute("SELECT id, state, file FROM jobs ORDER BY id DESC LIMIT ?", (limit,)).fetchall()
    return [(number, State(state), file) for number, state, file in rows]


def open_existing(path: Path) -> Store:
    """The database of a state folder that is in use; a mistyped --state must not make a new one."""
    if not path.exists():
        raise StateError(f"{path.parent} has no queue: run nslora-agent init, or give another --state DIR")
    return Store(path)
