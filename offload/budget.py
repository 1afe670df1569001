"""Caps on requests, tokens and money: reserved before a request, settled after it, counted in the audit's own rows.

A process that dies between the two leaves its reservation standing: the request may have been paid for, so it
counts in full. That is what makes a cap a cap.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from agent.contract.errors import BudgetSpent
from agent.contract.settings import Offload
from offload.database import fetch, transaction

if TYPE_CHECKING:
    import sqlite_utils

RESERVED = "reserved"
"""The outcome of a request that is under way, or whose process died."""
DAY = 86_400.0
"""Seconds."""
TEMPLATE_TOKENS = 64
"""What a chat template may add to a request, in tokens."""
LOG_FIELDS = (
    "id", "at", "job", "example", "why", "request", "outcome", "requests", "prompt_tokens", "completion_tokens",
    "tokens", "money", "bytes_out", "bytes_in", "seconds",
)  # fmt: skip
"""Columns of the audit that people are shown, which are all but the day."""


class JobBudgetSpent(BudgetSpent):
    """A cap of this job is reached, or the request is larger than a cap as a whole: waiting does not help."""


class DayBudgetSpent(BudgetSpent):
    """A cap of the day is reached: tomorrow there is more."""


@dataclass(frozen=True)
class Subject:
    """The purpose of a request: the job (0: none), the example's id, and why it is flagged (constraint ids)."""

    job: int
    example: str
    why: tuple[str, ...]


@dataclass(frozen=True)
class Spent:
    """Sums over a day or a job."""

    requests: int
    tokens: int
    money: float


class Budget:
    """The caps of `settings` over the rows of `database`; days are UTC days of `clock`."""

    def __init__(
        self, database: sqlite_utils.Database, settings: Offload, clock: Callable[[], float] = time.time
    ) -> None:
        self._database, self._settings, self._clock = database, settings, clock

    def reserve(self, subject: Subject, request: str, messages: list[dict[str, str]]) -> int:
        """Put a request's largest possible cost aside; returns the row's id. Raises Job- or DayBudgetSpent.

        A byte-level tokenizer makes at most one token of each byte, so the bytes bound the prompt's tokens.
        """
        caps = self._settings
        sent = sum(len(message["content"].encode()) for message in messages) + TEMPLATE_TOKENS
        most = Spent(1, sent + caps.max_tokens, self.cost(sent, caps.max_tokens))
        with transaction(self._database):
            now = self._clock()  # once: a request must not be checked on one day and counted on the next
            # The job's caps first: a job that has spent them must not wait for the next day.
            if subject.job:
                per_job = Spent(caps.requests_per_job, caps.tokens_per_job, caps.money_per_job)
                _refuse(self.job(subject.job), most, per_job, "job", JobBudgetSpent)
            per_day = Spent(caps.requests_per_day, caps.tokens_per_day, caps.money_per_day)
            _refuse(self._sum("day", _day(now)), most, per_day, "day", DayBudgetSpent)
            return self._insert(subject, request, RESERVED, most, now)

    def settle(self, row: int, outcome: str, figures: dict[str, Any], *, billed: bool) -> float:
        """Replace a reservation by what the request did cost; returns the money.

        `figures` are columns of the audit. Where the request may have been billed and its token counts are not
        known (None), the reservation stands.
        """
        prompt, completion = figures.get("prompt_tokens"), figures.get("completion_tokens")
        changes = {**figures, "prompt_tokens": prompt or 0, "completion_tokens": completion or 0, "outcome": outcome}
        if not billed:
            changes |= {"tokens": 0, "money": 0.0}
        elif prompt is not None and completion is not None:
            changes |= {"tokens": prompt + completion, "money": self.cost(prompt, completion)}
        with transaction(self._database):
            self._database["calls"].update(row, changes)
            ((money,),) = fetch(self._database, "SELECT money FROM calls WHERE id = ?", (row,))
        return float(money)

    def note_hit(self, subject: Subject, request: str) -> None:
        """A row in the audit for an answer that cost nothing."""
        with transaction(self._database):
            self._insert(subject, request, "cached", Spent(0, 0, 0.0), self._clock())

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Money, by the price settings."""
        return (prompt_tokens * self._settings.price_in + completion_tokens * self._settings.price_out) / 1e6

    def today(self) -> Spent:
        """The spend of this day, reservations included."""
        return self._sum("day", _day(self._clock()))

    def job(self, job: int) -> Spent:
        """The spend of a job, reservations included."""
        return self._sum("job", job)

    def next_day(self) -> float:
        """When the day's caps start again, in unix time."""
        return (self._clock() // DAY + 1) * DAY

    def log(self, last: int) -> list[dict[str, Any]]:
        """The newest rows of the audit, oldest first."""
        found = fetch(self._database, f"SELECT {', '.join(LOG_FIELDS)} FROM calls ORDER BY id DESC LIMIT ?", (last,))  # noqa: S608
        rows = [dict(zip(LOG_FIELDS, row, strict=True)) for row in reversed(found)]
        return [{**row, "why": json.loads(row["why"])} for row in rows]

    def _sum(self, column: str, value: object) -> Spent:
        sql = "SELECT coalesce(sum(requests), 0), coalesce(sum(tokens), 0), coalesce(sum(money), 0.0) FROM calls"
        # Hits cost nothing and are many; the indices leave them out.
        (row,) = fetch(self._database, f"{sql} WHERE {column} = ? AND requests > 0", (value,))
        return Spent(*row)

    def _insert(self, subject: Subject, request: str, outcome: str, spent: Spent, now: float) -> int:
        row = {
            "at": now,
            "day": _day(now),
            "job": subject.job,
            "example": hash_id(subject.example),
            "why": json.dumps(subject.why),
            "request": request,
            "outcome": outcome,
            "requests": spent.requests,
            "tokens": spent.tokens,
            "money": spent.money,
        }
        return int(self._database["calls"].insert(row).last_pk)


def hash_id(name: str) -> str:
    """An example's id as the audit has it: ids may be personal too."""
    return hashlib.sha256(name.encode()).hexdigest()[:12]


def _day(now: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(now))


def _refuse(spent: Spent, most: Spent, cap: Spent, what: str, error: type[BudgetSpent]) -> None:
    for name in ("requests", "tokens", "money"):
        used, more, limit = (getattr(value, name) for value in (spent, most, cap))
        if used + more > limit:
            raise (JobBudgetSpent if more > limit else error)(
                f"the {what}'s cap of {limit:.9g} {name} is reached ({used:.9g} used, the next request may take "
                f"{more:.9g}); raise {name}_per_{what} in config.toml"
            )
