from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.contract import errors
from offload.retries import (
    LONGEST_RETRY_AFTER,
    LONGEST_WAIT,
    RemoteUnavailable,
    is_temporary,
    longest_wait,
    retry_after,
    wait_after,
)

FAILURES = st.integers(1, 10**6)
SHARES = st.floats(0, 1, exclude_max=True)
NOON = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)


def unavailable(pause: float | None = None, *, again: bool = True) -> RemoteUnavailable:
    return RemoteUnavailable("no", retry_after=pause, again=again)


@given(failures=FAILURES, share=SHARES, pause=st.none() | st.floats(0, LONGEST_RETRY_AFTER))
def test_a_wait_lies_between_what_is_asked_for_and_the_backoff_on_top(
    failures: int, share: float, pause: float | None
) -> None:
    """However often it failed: full jitter over a range that doubles up to its cap."""
    wait = wait_after(unavailable(pause), failures, failures + 1, lambda: share)
    asked = pause or 0.0
    assert wait is not None
    assert asked <= wait <= asked + min(LONGEST_WAIT, 0.5 * 2 ** min(failures - 1, 99))


def test_the_range_doubles_up_to_the_cap() -> None:
    """0.5 s to 30 s."""
    assert [longest_wait(n) for n in range(1, 10)] == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


@given(failures=FAILURES, pause=st.none() | st.floats(0))
def test_there_is_no_wait_after_the_last_try_or_for_the_same_again(failures: int, pause: float | None) -> None:
    """None means: give up now."""
    assert wait_after(unavailable(pause), failures, failures, lambda: 0.5) is None
    assert wait_after(unavailable(pause, again=False), failures, failures + 1, lambda: 0.5) is None


@given(pause=st.floats(LONGEST_RETRY_AFTER, exclude_min=True))
def test_a_long_pause_is_not_slept_away(pause: float) -> None:
    """The job does something else meanwhile."""
    assert wait_after(unavailable(pause), 1, 5, lambda: 0.5) is None


@given(status=st.integers(100, 999))
def test_only_requests_that_are_at_fault_are_given_up(status: int) -> None:
    """Of 2xx to 4xx, 408, 409 and 429 pass; everything outside may."""
    assert is_temporary(status) == (status in {408, 409, 429} or status < 200 or status >= 500)


@pytest.mark.parametrize(("value", "seconds"), [("0", 0), ("7", 7), (" 7 ", 7), ("007", 7), ("999999999", 999_999_999)])
def test_retry_after_in_seconds(value: str, seconds: float) -> None:
    """A whole number."""
    assert retry_after(value, None, 0.0) == seconds


@pytest.mark.parametrize("value", [None, "", "soon", "-1", "1.5", "1e3", "nan", "inf", "٣", "9" * 10, "7, 8"])
def test_retry_after_that_makes_no_sense_is_none(value: str | None) -> None:
    """Then the usual back-off applies."""
    assert retry_after(value, None, 0.0) is None


@given(ahead=st.integers(-1000, 1000), clock=st.floats(-1e9, 1e9))
def test_retry_after_as_a_date_is_measured_on_the_servers_clock(ahead: int, clock: float) -> None:
    """The box's own clock plays no part if the server tells its time."""
    until = format_datetime(NOON + timedelta(seconds=ahead), usegmt=True)
    assert retry_after(until, format_datetime(NOON, usegmt=True), clock) == max(0, ahead)


@pytest.mark.parametrize("date", [None, "", "yesterday"])
def test_without_the_servers_clock_the_boxs_own_stands_in(date: str | None) -> None:
    """Better than nothing."""
    until = format_datetime(NOON + timedelta(seconds=9), usegmt=True)
    assert retry_after(until, date, NOON.timestamp()) == 9


def test_a_date_without_a_zone_is_gmt(monkeypatch: pytest.MonkeyPatch) -> None:
    """As HTTP says, wherever the box stands."""
    monkeypatch.setenv("TZ", "Asia/Kathmandu")
    time.tzset()
    assert retry_after("Thu, 01 Jan 2026 12:00:09", None, NOON.timestamp()) == 9
    monkeypatch.undo()
    time.tzset()


DATES = st.text() | st.from_regex(r"[A-Z][a-z]{2}, \d{1,3} Jan \d{1,5} \d{1,3}:\d\d:\d\d (GMT|[+-]\d{1,9})")


@given(value=DATES, date=st.none() | DATES, now=st.floats(0, 1e12))
def test_any_retry_after_is_none_or_a_number(value: str, date: str | None, now: float) -> None:
    """No header raises."""
    seconds = retry_after(value, date, now)
    assert seconds is None or seconds >= 0


def test_the_error_travels_under_the_name_that_exit_codes_know() -> None:
    """The protocol sends a class by its name and finds it in errors.BY_NAME."""
    assert errors.BY_NAME[RemoteUnavailable.__name__] is RemoteUnavailable.__mro__[1]
    assert (unavailable().exit_code, unavailable().retryable, str(unavailable())) == (71, True, "no")
