"""A job, the states it can be in, and the one table of legal moves between them. Pure: no SQL, no clock."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from enum import Enum
from typing import Any

from agent.contract.errors import IllegalMove

MODES = ("neurosymbolic", "numeric", "symbolic", "alternate")
"""What a job can do, the default first."""
MAX_DEATHS = 3
"""Process deaths after which a job is taken for the cause and no longer started by itself."""


class State(str, Enum):
    """Where a job stands."""

    QUEUED = "queued"
    """Waits for its turn; the oldest queued job is claimed first."""
    RUNNING = "running"
    """An attempt works on it and holds its token."""
    PAUSED = "paused"
    """Held by the governor because the box needs its memory or its power for something else; queued again by itself."""
    PARKED = "parked"
    """Everything that is left needs the remote LLM, which cannot be reached."""
    DONE = "done"
    """Finished; its version was published, promoted or not."""
    FAILED = "failed"
    """Ended with an error that the same attempt would meet again."""
    CANCELLED = "cancelled"
    """Ended because a person said so."""
    DEAD = "dead"
    """Its process died so often that the job itself is taken for the cause."""

    def __str__(self) -> str:
        return self.value


MOVES: dict[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.RUNNING, State.PAUSED, State.CANCELLED}),
    State.RUNNING: frozenset(State) - {State.RUNNING, State.PAUSED},
    State.PAUSED: frozenset({State.QUEUED, State.CANCELLED}),
    State.PARKED: frozenset({State.QUEUED, State.CANCELLED}),
    State.DONE: frozenset(),
    State.FAILED: frozenset({State.QUEUED}),
    State.CANCELLED: frozenset({State.QUEUED}),
    State.DEAD: frozenset({State.QUEUED}),
}

ENDED = (State.DONE, State.FAILED, State.CANCELLED, State.DEAD)
"""States in which nothing is left to do."""
RETRIABLE = frozenset(s for s in State if State.QUEUED in MOVES[s]) - {State.RUNNING, State.PAUSED}
"""States that a person can end with a retry; a running job has an attempt, a paused one goes on by itself."""

_VERBS = {
    State.QUEUED: "queued again",
    State.RUNNING: "started",
    State.PAUSED: "paused",
    State.PARKED: "parked",
    State.DONE: "finished",
    State.FAILED: "failed",
    State.CANCELLED: "cancelled",
    State.DEAD: "given up",
}


@dataclass(frozen=True)
class Job:
    """One row of the queue. Times are unix seconds; `token` to `heartbeat` belong to the running attempt."""

    id: int
    state: State
    file: str
    """The name people gave, for display."""
    spool: str
    """The name of the job's own copy below spool/."""
    rows: int
    bad_rows: int
    sha256: str
    settings: dict[str, Any]
    """The Training and Decision settings as resolved when the job was enqueued."""
    base: str
    mode: str
    created: float
    updated: float
    """When the state last changed."""
    attempt: int
    """How often it was claimed."""
    token: str | None
    boot_id: str | None
    pid: int | None
    heartbeat: float | None
    deaths: int
    reason: str | None
    """Why it is in this state; every earlier reason is in its moves."""
    version: int | None
    """The version it published."""
    wake: float | None
    """When a parked job is queued again by itself."""
    progress: dict[str, Any]
    """What the current or last attempt reported: phase, step, steps, loss, tokens_per_s and the like."""

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Job:
        """The job in one row of the table jobs, given as its columns by name."""
        parsed = {name: json.loads(row[name]) for name in ("settings", "progress")}
        return cls(**{**row, **parsed, "state": State(row["state"])})

    def to_row(self) -> dict[str, Any]:
        """The values of the table's columns, by name."""
        values = dataclasses.asdict(self)
        return {**values, "settings": to_json(self.settings), "progress": to_json(self.progress)}


@dataclass(frozen=True)
class Move:
    """One entry of a job's history; `old` is None for the move into the queue, `at` is in unix seconds."""

    job: int
    at: float
    old: State | None
    new: State
    reason: str | None
    actor: str


def to_json(value: Any) -> str:
    """The text in which a value is stored; numbers that are not finite raise ValueError."""
    return json.dumps(value, sort_keys=True, allow_nan=False)


def check_move(job_id: int, old: State, new: State) -> None:
    """Raise IllegalMove, saying from where the move is possible, unless the table has it."""
    if new not in MOVES[old]:
        raise _illegal_move(job_id, old, frozenset(s for s in State if new in MOVES[s]), _VERBS[new])


def check_retry(job_id: int, old: State) -> None:
    """Raise IllegalMove unless a person may put the job back into the queue."""
    if old not in RETRIABLE:
        raise _illegal_move(job_id, old, RETRIABLE, "retried")


def _illegal_move(job_id: int, old: State, possible: frozenset[State], verb: str) -> IllegalMove:
    *others, last = [str(state) for state in State if state in possible]
    names = f"{', '.join(others)} or {last}" if others else last
    return IllegalMove(f"job {job_id} is {old}; only {names} jobs can be {verb}")


def after_death(deaths: int, reason: str, *, counts: bool) -> tuple[State, int, str]:
    """Where a job goes whose process died: its new state, its new number of deaths and the reason to store."""
    deaths += counts
    if deaths < MAX_DEATHS:
        return State.QUEUED, deaths, reason
    return State.DEAD, deaths, f"{deaths} process deaths, the last: {reason}"


def describe(job: Job) -> dict[str, Any]:
    """A job's progress for JSON lines."""
    return {
        "job": job.id,
        "state": State(job.state).value,
        "reason": job.reason,
        "version": job.version,
        **job.progress,
    }
