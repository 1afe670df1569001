"""A `Remote` over a real database and, where it asks, a real server; and processes that have one each."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import sqlite_utils
from checkout import ROOT
from processes import PATIENCE

from agent.contract.settings import Offload
from offload.budget import Subject
from offload.cache import Cache, Question
from offload.commands import _client
from offload.database import open_database
from offload.remote import Cost, Remote

SUBJECT = Subject(1, "example-1", ("starts_with",))
SETTINGS = Offload(
    model="asked-model",
    attempts=1,
    connect_timeout=300.0,
    read_timeout=PATIENCE,
    total_timeout=PATIENCE,
    max_tokens=16,
)


@dataclass
class Clock:
    """A clock that stands still until it is moved."""

    now: float = 1_700_000_000.0

    def __call__(self) -> float:
        """Unix time in seconds."""
        return self.now


@contextmanager
def opened(path: Path) -> Iterator[sqlite_utils.Database]:
    """The database in the folder `path`, closed at the end."""
    database = open_database(path / "cache.db")
    try:
        yield database
    finally:
        database.close()


@contextmanager
def remote_at(path: Path, url: str = "", *, clock: Clock | None = None, **changes: Any) -> Iterator[Remote]:
    """A remote whose endpoint is `url`, as the worker makes it."""
    settings = replace(SETTINGS, base_url=url, **changes)
    with opened(path) as database:
        more = {"clock": clock} if clock else {}
        remote = Remote(database, settings, lambda on_try: _client(settings, on_try), **more)
        yield remote
        if remote._client:
            remote._client.close()


def said(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def ask(remote: Remote, text: str, cost: Cost | None = None) -> str:
    """The answer to a question of one message."""
    return remote.ask(SUBJECT, said(text), cost or Cost()).answer


def asked(text: str, endpoint: str = "http://127.0.0.1:1/v1") -> Question:
    """The same question as the cache's key has it."""
    return Question(endpoint, SETTINGS.model, {"max_tokens": 16, "temperature": 0.0}, said(text))


def cache_of(database: sqlite_utils.Database, limit: int = 1_000_000, *, any_endpoint: bool = False) -> Cache:
    return Cache(database, limit, any_endpoint=any_endpoint)


def rows(path: Path, sql: str, *parameters: object) -> list[Any]:
    """What a query finds, by a connection of its own."""
    with opened(path) as database:
        return list(database.query(sql, parameters))


def outcomes(path: Path) -> list[str]:
    """The outcomes in the audit, oldest first."""
    return [row["outcome"] for row in rows(path, "SELECT outcome FROM calls ORDER BY id")]


# ---- other processes ----

PROLOGUE = """
import json, os, random, signal, sys, time
from pathlib import Path
from agent.contract.errors import AgentError, BudgetSpent
from agent.contract.settings import Offload
from offload import remote as remotes
from offload.budget import Subject
from offload.commands import _client
from offload.database import open_database
path, settings = Path(sys.argv[1]) / "cache.db", Offload(**json.loads(sys.argv[2]))

def new_remote():
    return remotes.Remote(open_database(path), settings, lambda on_try: _client(settings, on_try))

def ask(remote, text, job=1):
    messages = [{"role": "user", "content": text}]
    return remote.ask(Subject(job, "example-1", ("starts_with",)), messages, remotes.Cost()).answer
"""
"""What every script starts with; a script is code, not a function, because a fork of pytest would copy its threads."""


def start(path: Path, script: str, url: str = "", **changes: Any) -> subprocess.Popen[str]:
    """Run a script in a process of its own, over the database in the folder `path`."""
    settings = json.dumps(dataclasses.asdict(replace(SETTINGS, base_url=url, **changes)))
    command = [sys.executable, "-c", PROLOGUE + script, str(path), settings]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finished(process: subprocess.Popen[str]) -> list[str]:
    """The lines it printed; it must end well."""
    out, errors = process.communicate(timeout=PATIENCE)
    assert (process.returncode, errors) == (0, "")
    return out.splitlines()
