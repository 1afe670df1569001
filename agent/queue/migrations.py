"""The schema of jobs.db as a list of migrations, each a named function that is applied once.

sqlite-utils is imported only where the schema is behind: every other start of a command or of the daemon
costs one `PRAGMA user_version`.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agent.contract.atomic_io import hold_lock
from agent.contract.errors import StateError
from agent.contract.imports import hide_modules

WAIT = 30.0
"""Seconds a first command waits for another one that is making the tables."""


def jobs_and_moves(connection: sqlite3.Connection) -> None:
    """The queue and its history."""
    # AUTOINCREMENT: an id must never come back, because runs/<id> and manifests name jobs by it.
    connection.execute("""
        CREATE TABLE jobs (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            state TEXT NOT NULL,
            file TEXT NOT NULL,
            spool TEXT NOT NULL,
            rows INTEGER NOT NULL,
            bad_rows INTEGER NOT NULL,
            sha256 TEXT NOT NULL,
            settings TEXT NOT NULL,
            base TEXT NOT NULL,
            mode TEXT NOT NULL,
            created REAL NOT NULL,
            updated REAL NOT NULL,
            attempt INTEGER NOT NULL DEFAULT 0,
            token TEXT,
            boot_id TEXT,
            pid INTEGER,
            heartbeat REAL,
            deaths INTEGER NOT NULL DEFAULT 0,
            reason TEXT,
            version INTEGER,
            progress TEXT NOT NULL DEFAULT '{}'
        ) STRICT
    """)
    connection.execute("CREATE INDEX jobs_by_state ON jobs (state, id)")
    connection.execute("""
        CREATE TABLE moves (
            id INTEGER PRIMARY KEY,
            job INTEGER NOT NULL REFERENCES jobs (id),
            at REAL NOT NULL,
            old TEXT,
            new TEXT NOT NULL,
            reason TEXT,
            actor TEXT NOT NULL
        ) STRICT
    """)
    connection.execute("CREATE INDEX moves_by_job ON moves (job, id)")


def promotions(connection: sqlite3.Connection) -> None:
    """The stack of what was active, so that a rollback knows where to go."""
    connection.execute("""
        CREATE TABLE promotions (
            id INTEGER PRIMARY KEY,
            version INTEGER NOT NULL,
            job INTEGER,
            at REAL NOT NULL,
            undone REAL
        ) STRICT
    """)
    connection.execute("CREATE INDEX promotions_standing ON promotions (id) WHERE undone IS NULL")


def parking(connection: sqlite3.Connection) -> None:
    """When a parked job is tried again, and what was last heard of the remote LLM."""
    connection.execute("ALTER TABLE jobs ADD COLUMN wake REAL")
    connection.execute("""
        CREATE TABLE remote (
            id INTEGER PRIMARY KEY CHECK (id = 1),
            at REAL NOT NULL,
            standing TEXT NOT NULL
        ) STRICT
    """)


def decisions(connection: sqlite3.Connection) -> None:
    """Why a job tuned, rewrote or left alone: its rounds, the choices for its examples, and what came of them."""
    connection.execute("""
        CREATE TABLE rounds (
            job INTEGER NOT NULL,
            round INTEGER NOT NULL,
            phase TEXT NOT NULL,
            why TEXT NOT NULL,
            ended TEXT,
            figures TEXT NOT NULL DEFAULT '{}',
            PRIMARY KEY (job, round)
        ) STRICT
    """)
    connection.execute("""
        CREATE TABLE choices (
            job INTEGER NOT NULL,
            example TEXT NOT NULL,
            round INTEGER NOT NULL,
            line INTEGER NOT NULL,
            state TEXT NOT NULL,
            reason TEXT NOT NULL,
            standing TEXT NOT NULL,
            gains TEXT NOT NULL,
            PRIMARY KEY (job, example, round)
        ) STRICT
    """)
    connection.execute("""
        CREATE TABLE outcomes (
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            job INTEGER NOT NULL,
            round INTEGER NOT NULL,
            example TEXT NOT NULL,
            action TEXT NOT NULL,
            features TEXT NOT NULL,
            kinds TEXT NOT NULL,
            expected REAL NOT NULL,
            gain REAL NOT NULL,
            told TEXT NOT NULL,
            UNIQUE (job, round, example, action)
        ) STRICT
    """)


MIGRATIONS: tuple[Callable[[sqlite3.Connection], None], ...] = (jobs_and_moves, promotions, parking, decisions)
"""In the order in which they are applied; a released one is never changed."""
LATEST = len(MIGRATIONS)
"""The `user_version` of a database that has them all."""


def migrate(connection: sqlite3.Connection, path: Path) -> None:
    """Bring the database at `path` to the latest schema; safe for any number of first commands at once.

    Raises StateError for a database of a newer program and Busy if another process migrates for too long.
    """
    if _is_latest(connection, path):
        return
    with hold_lock(path.with_name(f"{path.name}.migrating"), f"{path} is being prepared; try again", WAIT):
        if _is_latest(connection, path):
            return
        # Costs 0.1 s and 12 MB, which only the first command should pay; with pandas and numpy, 0.4 s and 98 MB.
        with hide_modules("pandas", "numpy"):
            import sqlite_utils  # noqa: PLC0415

        steps = sqlite_utils.Migrations("nslora-agent")
        for number, function in enumerate(MIGRATIONS, start=1):
            steps(name=function.__name__)(_with_user_version(function, number))
        steps.apply(sqlite_utils.Database(connection, recursive_triggers=False, execute_plugins=False))


def _is_latest(connection: sqlite3.Connection, path: Path) -> bool:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > LATEST:
        raise StateError(f"{path} was made by a newer nslora-agent (schema {version}, known {LATEST}); upgrade")
    return bool(version == LATEST)


def _with_user_version(function: Callable[[sqlite3.Connection], None], number: int) -> Callable[[Any], None]:
    """The migration together with its `user_version`, which changes in the same transaction."""

    def step(database: Any) -> None:
        function(database.conn)
        database.conn.execute(f"PRAGMA user_version = {number}")

    return step
