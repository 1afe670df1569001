"""The circuit breaker: after five failed calls in a row the remote LLM is left alone for a while.

Its state is a row of cache.db, so that a restart does not forget it and every worker obeys the same one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import sqlite_utils

from offload.database import transaction

FAILURES = 5
"""Failed calls in a row that open the breaker."""
FIRST_PAUSE = 30.0
"""Seconds it stays open the first time; twice as long each time a trial call fails."""
LONGEST_PAUSE = 1800.0
"""Seconds."""
TRIAL = 300.0
"""Seconds that a trial call may take before another process may try."""

CLOSED, OPEN, HALF_OPEN = "closed", "open", "half-open"


@dataclass(frozen=True)
class Standing:
    """How the remote stands: failures in a row, how often in a row it was opened, until when (unix time), and why."""

    failures: int
    opened: int
    until: float | None
    reason: str

    def state(self, now: float) -> str:
        """`closed`, `open` or `half-open`: the pause is over and one trial call decides."""
        if self.until is None:
            return CLOSED
        return OPEN if now < self.until else HALF_OPEN


def after_failure(standing: Standing, now: float, reason: str, pause: float = 0.0) -> Standing:
    """What a failed call makes of it; `pause` is how long the remote itself asked to be left alone, in seconds."""
    failures = standing.failures + 1
    if failures < FAILURES and standing.until is None and not pause:
        return Standing(failures, 0, None, reason)
    backoff = min(FIRST_PAUSE * 2**standing.opened, LONGEST_PAUSE)
    return Standing(failures, min(standing.opened + 1, 16), now + max(backoff, pause), reason)


class Breaker:
    """The one row in `database`."""

    def __init__(self, database: sqlite_utils.Database, clock: Callable[[], float] = time.time) -> None:
        self._database, self._clock = database, clock

    def standing(self) -> Standing:
        """The row; a pause longer than any we set means that the clock was put back, and is over."""
        (row,) = self._database.execute("SELECT failures, opened, until, reason FROM breaker").fetchall()
        standing = Standing(*row)
        if standing.until is not None and standing.until - self._clock() > 86_400.0:
            return Standing(standing.failures, standing.opened, self._clock(), standing.reason)
        return standing

    def allow(self) -> bool:
        """Whether a call may be made now; for a trial call, every other process waits."""
        with transaction(self._database):
            standing, now = self.standing(), self._clock()
            state = standing.state(now)
            if state == HALF_OPEN:
                self._save(Standing(standing.failures, standing.opened, now + TRIAL, standing.reason))
        return state != OPEN

    def failed(self, reason: str, pause: float = 0.0) -> None:
        """A call failed."""
        with transaction(self._database):
            self._save(after_failure(self.standing(), self._clock(), reason, pause))

    def succeeded(self) -> None:
        """A call was answered."""
        with transaction(self._database):
            self._save(Standing(0, 0, None, ""))

    def abandoned(self) -> None:
        """A call was not made after all: if it was to be the trial, another may be."""
        with transaction(self._database):
            standing = self.standing()
            if standing.until is not None:
                self._save(Standing(standing.failures, standing.opened, self._clock(), standing.reason))

    def _save(self, standing: Standing) -> None:
        self._database.execute(
            "UPDATE breaker SET failures = ?, opened = ?, until = ?, reason = ?",
            (standing.failures, standing.opened, standing.until, standing.reason),
        )
