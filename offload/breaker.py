"""The circuit breaker: after five failed calls in a row the remote LLM is left alone for a while.

Its state is a row of cache.db, so that a restart does not forget it and every worker obeys the same one. A pause and a
trial hold from when they began, so that a clock that was put back ends them instead of drawing them out.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from offload.database import fetch, transaction

if TYPE_CHECKING:
    import sqlite_utils

FAILURES = 5
"""Failed calls in a row that open the breaker."""
FIRST_PAUSE = 30.0
"""Seconds it stays open the first time; twice as long each time a trial call fails."""
LONGEST_PAUSE = 1800.0
"""Seconds, where the remote itself asks for no longer one."""
LONGEST_ASKED = 86_400.0
"""Seconds that the remote is left alone because it asks for it: quotas are renewed daily at the latest."""
TRIAL = 300.0
"""Seconds that one try of a trial call may take before another process may make one."""

CLOSED, OPEN, HALF_OPEN = "closed", "open", "half-open"


@dataclass(frozen=True)
class Standing:
    """The breaker's state: failures in a row, openings in a row, from when until when, and why.

    Times are unix seconds, None while it is closed. With `trial` they are those of a trial call that is under way.
    """

    failures: int = 0
    opened: int = 0
    since: float | None = None
    until: float | None = None
    trial: bool = False
    reason: str = ""

    def holds(self, now: float) -> bool:
        """True if the pause or the trial is not over."""
        return self.since is not None and self.until is not None and self.since <= now < self.until

    def state(self, now: float) -> str:
        """`closed`, `open` or `half-open`: the pause is over and one trial call decides."""
        if self.until is None:
            return CLOSED
        return OPEN if self.holds(now) and not self.trial else HALF_OPEN


def after_failure(standing: Standing, now: float, reason: str, pause: float = 0.0) -> Standing:
    """The state after a failed call; `pause` is the wait that the remote itself asked for, in seconds."""
    failures, state = standing.failures + 1, standing.state(now)
    asked = now + min(pause, LONGEST_ASKED)
    if state == OPEN:
        # The call began before the breaker opened: of those, many fail together and say the same once more.
        return replace(standing, failures=failures, since=now, until=max(standing.until or now, asked), reason=reason)
    if state == CLOSED and failures < FAILURES:
        since, until = (now, asked) if pause else (None, None)
        return Standing(failures=failures, since=since, until=until, reason=reason)
    backoff = min(FIRST_PAUSE * 2**standing.opened, LONGEST_PAUSE)
    return Standing(failures, min(standing.opened + 1, 16), now, max(now + backoff, asked), reason=reason)


class Breaker:
    """The one row in `database`; `trial` is how many seconds one try of a trial call may take."""

    def __init__(
        self, database: sqlite_utils.Database, clock: Callable[[], float] = time.time, trial: float = TRIAL
    ) -> None:
        self._database, self._clock, self._trial = database, clock, trial
        self._tried: float | None = None
        """Since when the trial call that is under way is ours."""

    def read(self) -> Standing:
        """The row."""
        ((failures, opened, since, until, trial, reason),) = fetch(
            self._database, "SELECT failures, opened, since, until, trial, reason FROM breaker"
        )
        return Standing(failures, opened, since, until, bool(trial), reason)

    def allow(self) -> bool:
        """True if a call may be made now; for a trial call, every other process waits."""
        with transaction(self._database):
            standing, now = self.read(), self._clock()
            if standing.state(now) == CLOSED:
                return True
            if standing.holds(now):
                return False
            self._save(replace(standing, since=now, until=now + self._trial, trial=True))
        self._tried = now
        return True

    def renew(self) -> None:
        """The call goes on with one more try: if it is the trial, the others wait for that one too."""
        self._change_ours(self._trial, trial=True)

    def record_failure(self, reason: str, pause: float = 0.0) -> None:
        """A call failed; `reason` is shown to people and must hold nothing of a request or an answer."""
        with transaction(self._database):
            self._save(after_failure(self.read(), self._clock(), reason, pause))
        self._tried = None

    def record_success(self) -> None:
        """A call was answered."""
        with transaction(self._database):
            self._save(Standing())
        self._tried = None

    def abandon(self) -> None:
        """A call was not made after all: if it was to be the trial, another may be."""
        self._change_ours(0.0, trial=False)
        self._tried = None

    def _change_ours(self, seconds: float, *, trial: bool) -> None:
        """Let the trial end in `seconds`, unless it is not ours."""
        if self._tried is None:
            return
        with transaction(self._database):
            standing, now = self.read(), self._clock()
            if standing.trial and standing.since == self._tried:
                self._save(replace(standing, since=now, until=now + seconds, trial=trial))
                self._tried = now

    def _save(self, standing: Standing) -> None:
        self._database.execute(
            "UPDATE breaker SET failures = ?, opened = ?, since = ?, until = ?, trial = ?, reason = ?",
            (standing.failures, standing.opened, standing.since, standing.until, standing.trial, standing.reason),
        )
