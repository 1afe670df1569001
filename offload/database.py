"""cache.db: recorded answers, leases on those being asked for, the audit of every call, the breaker.

Only offload workers open it. Every write is one short BEGIN IMMEDIATE transaction, on the disk when it returns.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agent.contract.atomic_io import hold_lock, make_private
from agent.contract.imports import hide_modules
from agent.contract.os_errors import disk_faults

with hide_modules("pandas", "numpy"):  # 86 MB that nothing here needs
    import sqlite_utils

BUSY_TIMEOUT = 10.0
"""Seconds a statement waits for another worker's transaction."""

NAME = Path("cache.db")
"""What the database is called in errors."""

MIGRATIONS = sqlite_utils.Migrations("nslora-offload")


@MIGRATIONS()
def answers(database: sqlite_utils.Database) -> None:
    """Recorded answers: `text` is what TextGrad's step made of `answer`, null until it has, or if it could not.

    `turn` counts uses: what was used least recently must not depend on a clock that may be put back.
    """
    database.execute("""
        CREATE TABLE answers (
            key TEXT PRIMARY KEY,
            replay TEXT NOT NULL,
            endpoint TEXT NOT NULL,
            model TEXT NOT NULL,
            parameters TEXT NOT NULL,
            messages TEXT NOT NULL,
            answer TEXT NOT NULL,
            text TEXT,
            prompt_tokens INTEGER NOT NULL,
            completion_tokens INTEGER NOT NULL,
            created REAL NOT NULL,
            used REAL NOT NULL,
            turn INTEGER NOT NULL,
            hits INTEGER NOT NULL DEFAULT 0,
            bytes INTEGER NOT NULL
        ) STRICT
    """)
    database.execute("CREATE INDEX answers_by_replay ON answers (replay)")
    database.execute("CREATE INDEX answers_by_turn ON answers (turn, bytes)")
    database.execute("""
        CREATE TABLE leases (
            key TEXT PRIMARY KEY,
            owner TEXT NOT NULL,
            taken REAL NOT NULL,
            expires REAL NOT NULL
        ) STRICT
    """)


@MIGRATIONS()
def calls(database: sqlite_utils.Database) -> None:
    """The audit, which is also what the caps are counted by: one row for each HTTP request and each cache hit."""
    database.execute("""
        CREATE TABLE calls (
            id INTEGER PRIMARY KEY,
            at REAL NOT NULL,
            day TEXT NOT NULL,
            job INTEGER NOT NULL,
            example TEXT NOT NULL,
            why TEXT NOT NULL,
            request TEXT NOT NULL,
            outcome TEXT NOT NULL,
            requests INTEGER NOT NULL,
            tokens INTEGER NOT NULL,
            money REAL NOT NULL,
            prompt_tokens INTEGER NOT NULL DEFAULT 0,
            completion_tokens INTEGER NOT NULL DEFAULT 0,
            bytes_out INTEGER NOT NULL DEFAULT 0,
            bytes_in INTEGER NOT NULL DEFAULT 0,
            seconds REAL NOT NULL DEFAULT 0
        ) STRICT
    """)
    database.execute("CREATE INDEX calls_by_day ON calls (day, requests, tokens, money) WHERE requests > 0")
    database.execute("CREATE INDEX calls_by_job ON calls (job, requests, tokens, money) WHERE requests > 0")


@MIGRATIONS()
def breaker(database: sqlite_utils.Database) -> None:
    """One row: how the remote LLM stood last; open from `since` to `until` or, where `trial` is 1, being tried."""
    database.execute("""
        CREATE TABLE breaker (
            id INTEGER PRIMARY KEY CHECK (id = 1),
            failures INTEGER NOT NULL,
            opened INTEGER NOT NULL,
            since REAL,
            until REAL,
            trial INTEGER NOT NULL,
            reason TEXT NOT NULL
        ) STRICT
    """)
    database.execute("INSERT INTO breaker VALUES (1, 0, 0, NULL, NULL, 0, '')")


def open_database(path: Path) -> sqlite_utils.Database:
    """The database at `path`, made or migrated where needed; raises StateError, StorageError or Busy."""
    with disk_faults(path):
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        make_private(path)
        connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None)
        try:
            connection.execute("PRAGMA journal_mode = DELETE")
            # EXTRA also syncs the folder after the journal is deleted: a paid answer must outlive a power cut.
            connection.execute("PRAGMA synchronous = EXTRA")
            database = sqlite_utils.Database(connection, recursive_triggers=False, execute_plugins=False)
            if MIGRATIONS.pending(database):
                lock = path.with_name(f"{path.name}.migrating")
                with hold_lock(lock, f"{path} is being prepared; try again", BUSY_TIMEOUT):
                    MIGRATIONS.apply(database)
        except BaseException:
            connection.close()
            raise
    return database


@contextmanager
def transaction(database: sqlite_utils.Database) -> Iterator[None]:
    """Everything written in the block is on the disk afterwards or, if it raises, nothing is; blocks may nest."""
    connection = database.conn
    if connection.in_transaction:
        yield
        return
    with disk_faults(NAME):
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise


def fetch(database: sqlite_utils.Database, sql: str, parameters: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """All rows of a statement: an open cursor would hold up writers. Raises StateError, StorageError or Busy."""
    with disk_faults(NAME):
        return database.conn.execute(sql, parameters).fetchall()
