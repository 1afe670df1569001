"""When a failed try of a call is repeated and how long to wait before: pure functions.

The waits are exponential back-off with full jitter (Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog,
2015): boxes that failed together do not come back together.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timezone
from email.utils import parsedate_to_datetime

from agent.contract import errors

FIRST_WAIT = 0.5
"""Seconds: the longest wait after the first failure; it doubles with every further one."""
LONGEST_WAIT = 30.0
"""Seconds: where the doubling ends."""
LONGEST_RETRY_AFTER = 120.0
"""Seconds a worker sleeps because a server says so; a job that has to wait longer is better put back into the queue."""

SECONDS = re.compile(r"[0-9]{1,9}")
"""Retry-After as a number (RFC 9110, 10.2.3), and not longer than three decades."""


class RemoteUnavailable(errors.RemoteUnavailable):
    """`agent.contract.errors.RemoteUnavailable` plus what only the worker needs to know.

    It has the same name on purpose: an error crosses the process boundary as the name of its class and its message.

    Attributes:
        retry_after: seconds from now before which the server wants no further request, None if it did not say.
        again: False if the same request would fail in the same way.
        billed: whether the server may have done the work, so that it counts against the caps.
    """

    def __init__(
        self, message: str, *, retry_after: float | None = None, again: bool = True, billed: bool = False
    ) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.again = again
        self.billed = billed


class RequestRefused(errors.RemoteRefused):
    """This request is refused (too long, not understood); others may be served."""


def refusal(status: int) -> type[errors.RemoteRefused]:
    """The error for a status that no retry mends: whether it is about this request or about all of them."""
    return RequestRefused if status in {400, 413, 422} else errors.RemoteRefused


def is_temporary(status: int) -> bool:
    """True if an HTTP status says that the same request may be answered later: 408, 409, 429, 5xx and unknown ones."""
    return status in {408, 409, 429} or not 200 <= status < 500


def longest_wait(failures: int) -> float:
    """Seconds that the wait after so many failures (from 1 on) stays below."""
    return min(LONGEST_WAIT, FIRST_WAIT * 2.0 ** min(failures - 1, 10))


def wait_after(failure: RemoteUnavailable, failures: int, attempts: int, random: Callable[[], float]) -> float | None:
    """Seconds to wait before the next of `attempts` tries, None if there shall be none.

    `random` gives numbers in [0, 1). What the server asks for is a lower bound: the jitter comes on top.
    """
    asked = failure.retry_after or 0.0
    if not failure.again or failures >= attempts or asked > LONGEST_RETRY_AFTER:
        return None
    return asked + random() * longest_wait(failures)


def retry_after(value: str | None, date: str | None, now: float) -> float | None:
    """Seconds that a Retry-After header asks for, None if there is none or it makes no sense.

    A date is measured from the response's own Date header: a box without a battery-backed clock may be years off.
    `now` (Unix seconds) stands in where that header is missing. A date in the past means 0.
    """
    value = (value or "").strip()
    if SECONDS.fullmatch(value):
        return float(value)
    until = _unix_time(value)
    if until is None:
        return None
    start = _unix_time(date or "")
    return max(0.0, until - (now if start is None else start))


def _unix_time(date: str) -> float | None:
    try:
        parsed = parsedate_to_datetime(date)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
    # An HTTP date is always GMT; a datetime without a zone would be taken for local time.
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=timezone.utc)).timestamp()
