from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from remotes import Clock, finished, opened, rows, start

from offload.breaker import (
    CLOSED,
    FAILURES,
    FIRST_PAUSE,
    HALF_OPEN,
    LONGEST_ASKED,
    LONGEST_PAUSE,
    OPEN,
    TRIAL,
    Breaker,
    Standing,
    after_failure,
)

NOW = 1_000_000.0
DAY = 86_400.0

# ---- the table of transitions ----


def failing(*, failures: int = 0, opened: int = 0, since: float | None = None, until: float | None = None) -> Standing:
    return Standing(failures, opened, since, until, reason="old")


@pytest.mark.parametrize(
    ("before", "pause", "state", "failures", "opened", "seconds"),
    [
        (failing(), 0.0, CLOSED, 1, 0, None),
        (failing(failures=3), 0.0, CLOSED, 4, 0, None),
        (failing(failures=4), 0.0, OPEN, 5, 1, FIRST_PAUSE),
        (failing(failures=4), 500.0, OPEN, 5, 1, 500.0),
        (failing(), 7.0, OPEN, 1, 0, 7.0),
        (failing(), 1e9, OPEN, 1, 0, LONGEST_ASKED),
        # a trial that fails
        (failing(failures=5, opened=1, since=NOW - 40, until=NOW), 0.0, OPEN, 6, 2, 2 * FIRST_PAUSE),
        (failing(failures=1, since=NOW - 40, until=NOW), 0.0, OPEN, 2, 1, FIRST_PAUSE),
        (failing(failures=30, opened=16, since=NOW - 40, until=NOW), 0.0, OPEN, 31, 16, LONGEST_PAUSE),
        # calls that were under way when it opened
        (failing(failures=5, opened=1, since=NOW, until=NOW + 30), 0.0, OPEN, 6, 1, 30.0),
        (failing(failures=5, opened=1, since=NOW, until=NOW + 30), 90.0, OPEN, 6, 1, 90.0),
    ],
)
def test_a_failure_leads_to(
    before: Standing, pause: float, state: str, failures: int, opened: int, seconds: float | None
) -> None:
    """The row after a failed call, for each kind of row before it."""
    after = after_failure(before, NOW, "new", pause)
    assert (after.state(NOW), after.failures, after.opened, after.reason) == (state, failures, opened, "new")
    assert after.until == (None if seconds is None else NOW + seconds)


@given(st.lists(st.floats(0, 1e5), max_size=FAILURES - 1))
def test_four_failures_never_open_it(steps: list[float]) -> None:
    """Whenever they come, as long as the remote asks for no pause."""
    standing, now = Standing(), NOW
    for step in steps:
        now += step
        standing = after_failure(standing, now, "")
        assert standing.state(now) == CLOSED


@given(st.lists(st.tuples(st.floats(-2 * DAY, 2 * DAY), st.floats(0, 1e12)), max_size=40))
def test_a_pause_is_bounded(steps: list[tuple[float, float]]) -> None:
    """Whatever the remote asks for and the clock does, it half-opens within a day."""
    standing, now = Standing(), NOW
    for step, pause in steps:
        now += step
        standing = after_failure(standing, now, "", pause)
        assert standing.state(now + LONGEST_ASKED + 1.0) != OPEN
        assert standing.until is None or standing.until <= now + LONGEST_ASKED


@given(st.lists(st.floats(0, 1e4), min_size=FAILURES, max_size=30))
def test_without_a_pause_asked_for_it_is_never_open_for_longer_than_half_an_hour(steps: list[float]) -> None:
    """The back-off doubles up to a limit; from the fifth failure on it is never closed by time alone."""
    standing, now = Standing(), NOW
    for step in steps:
        now += step
        standing = after_failure(standing, now, "")
    assert standing.until is not None
    assert standing.until <= now + LONGEST_PAUSE
    assert standing.state(now + LONGEST_PAUSE) == HALF_OPEN


# ---- the row ----


def test_five_failures_open_it_and_a_trial_decides(tmp_path: Path) -> None:
    """It half-opens by itself; a trial that fails opens it for twice as long, one that succeeds closes it."""
    clock = Clock()
    with opened(tmp_path) as database:
        breaker = Breaker(database, clock)
        for _ in range(FAILURES):
            assert breaker.allow()
            breaker.record_failure("503")
        assert not breaker.allow()
        clock.now += FIRST_PAUSE
        assert breaker.read().state(clock.now) == HALF_OPEN
        assert breaker.allow()
        breaker.record_failure("503")
        clock.now += 2 * FIRST_PAUSE - 1
        assert not breaker.allow()
        clock.now += 1
        assert breaker.allow()
        breaker.record_success()
        assert breaker.read() == Standing()
        assert breaker.allow()


def half_open(breaker: Breaker, clock: Clock) -> None:
    for _ in range(FAILURES):
        breaker.record_failure("503")
    clock.now += FIRST_PAUSE


def test_a_trial_keeps_the_others_waiting_until_it_ends(tmp_path: Path) -> None:
    """Half-open lets one try; with each further try it holds on, and when its process is dead somebody else may."""
    clock = Clock()
    with opened(tmp_path) as database, opened(tmp_path) as other_database:
        ours, others = Breaker(database, clock), Breaker(other_database, clock)
        half_open(ours, clock)
        assert ours.allow()
        assert ours.read().state(clock.now) == HALF_OPEN
        clock.now += TRIAL - 1
        assert not others.allow()
        ours.renew()
        clock.now += TRIAL - 1
        assert not others.allow()
        clock.now += 1
        assert others.allow()
        ours.renew()
        ours.abandon()
        assert not Breaker(database, clock).allow(), "a trial that was lost to another was ended"


def test_a_trial_that_is_not_made_is_anothers(tmp_path: Path) -> None:
    """A spent budget or a wrong setting says nothing about the remote."""
    clock = Clock()
    with opened(tmp_path) as database:
        breaker = Breaker(database, clock)
        half_open(breaker, clock)
        assert breaker.allow()
        breaker.abandon()
        assert breaker.read().failures == FAILURES
        assert Breaker(database, clock).allow()


def test_a_call_that_is_not_made_ends_no_pause(tmp_path: Path) -> None:
    """It was allowed before the others failed; only a trial of its own is its to give back."""
    clock = Clock()
    with opened(tmp_path) as database:
        ours, others = Breaker(database, clock), Breaker(database, clock)
        assert ours.allow()
        for _ in range(FAILURES):
            others.record_failure("503")
        ours.abandon()
        ours.renew()
        assert not others.allow()


def test_calls_that_fail_together_pause_once(tmp_path: Path) -> None:
    """Twenty calls under way when the remote goes down are one outage, not twenty."""
    clock = Clock()
    with opened(tmp_path) as database:
        breaker = Breaker(database, clock)
        for _ in range(20):
            breaker.record_failure("503")
        assert breaker.read().until == clock.now + FIRST_PAUSE


def test_a_clock_put_back_ends_pause_and_trial(tmp_path: Path) -> None:
    """By a day or by a minute: it does not stay open until the clock has caught up."""
    for back in (DAY, 60.0):
        clock = Clock()
        with opened(tmp_path) as database:
            breaker = Breaker(database, clock)
            half_open(breaker, clock)
            breaker.record_failure("503")
            assert not breaker.allow()
            clock.now -= back
            assert breaker.allow()
            assert not breaker.allow()
            clock.now -= back
            assert breaker.allow()
            breaker.record_success()


@pytest.mark.process
def test_one_of_several_processes_tries(tmp_path: Path) -> None:
    """All see the same state after a restart, and exactly one of eight may make the trial call."""
    with opened(tmp_path) as database:
        breaker = Breaker(database)
        for _ in range(FAILURES):
            breaker.record_failure("the remote LLM at example answers 503")
        standing = breaker.read()
        script = "s = new_remote().breaker.read(); print(s.failures, s.until, s.reason, sep='|')"
        (line,) = finished(start(tmp_path, script))
        assert line == f"{FAILURES}|{standing.until}|{standing.reason}"
        with database.conn:
            database.execute("UPDATE breaker SET since = since - 1e6, until = until - 1e6")
    script = """
starts = time.time() + 0.3
for _ in range(8):
    if os.fork() == 0:
        breaker = new_remote().breaker
        time.sleep(max(0.0, starts - time.time()))
        os.write(1, f"{breaker.allow()}\\n".encode())
        os._exit(0)
for _ in range(8):
    os.wait()
"""
    assert sorted(finished(start(tmp_path, script))) == ["False"] * 7 + ["True"]
    assert rows(tmp_path, "SELECT trial FROM breaker") == [{"trial": 1}]
