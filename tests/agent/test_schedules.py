"""The two schedules of a neurosymbolic job; the monitor's own rules are tested in test_monitor.py."""

from __future__ import annotations

import pytest

from agent.decide import monitor
from agent.decide.monitor import REQUESTS_A_WINDOW, STEPS_A_WINDOW, Monitor, Phase, Window, Work
from agent.decide.schedules import Alternating, Monitored

NUMERIC, SYMBOLIC, STOP = Phase.NUMERIC, Phase.SYMBOLIC, Phase.STOP
NOTHING, SOME, MUCH = Work(0, 0.0), Work(3, 1.0), Work(9, 5.0)


def windows_until_over(schedule: Alternating, phase: Phase) -> int:
    """How many windows a phase lasts, at most 50."""
    state = Monitor(phase)
    for number in range(1, 51):
        state, verdict = schedule.advance(state, Window(1.0))
        assert (state.phase, len(state.windows)) == (phase, number)
        if verdict.over:
            assert verdict.reason == "its fixed length"
            return number
    return 0


# ---- by the signal ----


@pytest.mark.parametrize("phase", [NUMERIC, SYMBOLIC])
def test_a_monitored_phase_lasts_as_long_as_the_monitor_says(phase: Phase) -> None:
    """Window by window the same state and verdict, until it is over."""
    ours = theirs = Monitor(phase)
    for level in (3.0, 2.0, 2.0, 2.0, 0.0, 0.0, 0.0):
        window = Window(level, 0.0, level)
        ours, verdict = Monitored().advance(ours, window)
        theirs, expected = monitor.advance(theirs, window)
        assert (ours, verdict) == (theirs, expected)
    assert verdict.over


@pytest.mark.parametrize("last", [None, NUMERIC, SYMBOLIC])
@pytest.mark.parametrize("flat", [frozenset(), frozenset({NUMERIC}), frozenset({NUMERIC, SYMBOLIC})])
def test_a_monitored_job_changes_sides_as_the_monitor_says(last: Phase | None, flat: frozenset[Phase]) -> None:
    """Work, last phase and flat sides are passed on as they are."""
    for numeric, symbolic in ((SOME, MUCH), (MUCH, SOME), (NOTHING, SOME), (SOME, NOTHING), (NOTHING, NOTHING)):
        expected = monitor.next_phase(last, numeric, symbolic, flat)
        assert Monitored().next_phase(last, numeric, symbolic, flat) == expected


@pytest.mark.parametrize(("steps_a_pass", "steps"), [(1, 5), (5, 5), (7, 7), (10, 10), (500, 10)])
def test_a_window_is_a_pass_within_bounds(steps_a_pass: int, steps: int) -> None:
    """Few rows are judged sooner; turns of fixed length are counted in windows that never change."""
    assert Monitored().steps_a_window(steps_a_pass) == steps
    assert Alternating(40, 10).steps_a_window(steps_a_pass) == STEPS_A_WINDOW


# ---- in turns ----


@pytest.mark.parametrize("steps", [1, STEPS_A_WINDOW, STEPS_A_WINDOW + 1, 4 * STEPS_A_WINDOW])
def test_a_numeric_turn_lasts_its_steps(steps: int) -> None:
    """In whole windows, rounded up; how many requests a symbolic turn has does not matter."""
    assert windows_until_over(Alternating(steps, 10_000), NUMERIC) == -(-steps // STEPS_A_WINDOW)


@pytest.mark.parametrize("requests", [1, REQUESTS_A_WINDOW, REQUESTS_A_WINDOW + 1, 3 * REQUESTS_A_WINDOW])
def test_a_symbolic_turn_lasts_its_requests(requests: int) -> None:
    """In whole windows, rounded up; how many steps a numeric turn has does not matter."""
    assert windows_until_over(Alternating(10_000, requests), SYMBOLIC) == -(-requests // REQUESTS_A_WINDOW)


def test_a_turn_ends_whatever_the_signal_says() -> None:
    """A loss that is as good as zero ends a monitored phase, but no turn."""
    window = Window(0.0)
    assert Monitored().advance(Monitor(NUMERIC), window)[1].over
    assert not Alternating(5 * STEPS_A_WINDOW, 1).advance(Monitor(NUMERIC), window)[1].over


@pytest.mark.parametrize("flat", [frozenset(), frozenset({NUMERIC}), frozenset({NUMERIC, SYMBOLIC})])
@pytest.mark.parametrize(
    ("last", "numeric", "symbolic", "phase"),
    [
        (None, SOME, SOME, SYMBOLIC),
        (None, MUCH, SOME, SYMBOLIC),
        (None, SOME, NOTHING, NUMERIC),
        (NUMERIC, SOME, SOME, SYMBOLIC),
        (NUMERIC, SOME, NOTHING, NUMERIC),
        (SYMBOLIC, SOME, MUCH, NUMERIC),
        (SYMBOLIC, NOTHING, SOME, SYMBOLIC),
        (None, NOTHING, NOTHING, STOP),
        (NUMERIC, NOTHING, NOTHING, STOP),
        (SYMBOLIC, NOTHING, NOTHING, STOP),
    ],
)
def test_turns_alternate_while_both_sides_have_work(
    last: Phase | None,
    numeric: Work,
    symbolic: Work,
    phase: Phase,
    flat: frozenset[Phase],
) -> None:
    """The other side, else the same again, else the end; expected and measured gains do not matter."""
    chosen, why = Alternating(10, 10).next_phase(last, numeric, symbolic, flat)
    assert chosen is phase
    if phase is STOP:
        assert why == "nothing is left that tuning or rewriting is expected to help"
    else:
        assert why == ("nothing to tune the weights on" if last is phase is SYMBOLIC else "its turn")
