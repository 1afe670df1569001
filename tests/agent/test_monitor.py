"""The monitoring signal and its state machine, on traces of real runs and on cases by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent.decide.monitor import (
    LEARNED,
    STEPS_A_WINDOW,
    Monitor,
    Phase,
    Verdict,
    Window,
    Work,
    advance,
    next_phase,
    numeric_window,
)

TRACES = Path(__file__).with_name("traces")


@dataclass(frozen=True)
class Step:
    """What the signal reads of agent.contract.protocol.Step."""

    loss: float
    value_loss: float | None
    form_loss: float | None
    grad_norm: float


def windows(name: str) -> list[Window]:
    """The windows of a recorded run."""
    steps = [Step(*numbers) for numbers in json.loads((TRACES / f"{name}.json").read_text())]
    cut = range(0, len(steps) - STEPS_A_WINDOW + 1, STEPS_A_WINDOW)
    return [numeric_window(steps[start : start + STEPS_A_WINDOW]) for start in cut]


def ends(found: Sequence[Window], phase: Phase = Phase.NUMERIC) -> tuple[int | None, str]:
    """After how many windows a phase is over, and why; None if it goes on to the end of them."""
    state = Monitor(phase)
    for number, window in enumerate(found, start=1):
        state, verdict = advance(state, window)
        if verdict.over:
            return number, verdict.reason
    return None, ""


def levels(*values: float, gradient: float = 1.0, noise: float = 0.0) -> list[Window]:
    return [Window(value, noise, gradient) for value in values]


# ---- the numeric signal, by hand ----


def test_a_falling_loss_goes_on() -> None:
    """As long as each window falls by a visible share of the highest, nothing is saturated."""
    assert ends(levels(4.0, 3.0, 2.0, 1.0, 0.5, 0.3)) == (None, "")


def test_a_flat_loss_with_a_calm_gradient_is_saturated_after_two_windows() -> None:
    """Magnitude and patience: one flat window may be chance."""
    lively, calm = levels(4.0, 1.0), levels(0.99, 0.98, gradient=0.2)
    assert ends([*lively, calm[0]]) == (None, "")
    number, reason = ends([*lively, *calm])
    assert number == 4
    assert reason.startswith("saturated: flat over 2 windows")


def test_a_flat_loss_with_a_lively_gradient_is_waited_for_twice_as_long() -> None:
    """The weights still move, so the loss may still drop."""
    assert ends(levels(4.0, 3.99, 3.98, 3.97, 2.0, 1.0)) == (None, "")
    number, _ = ends(levels(4.0, 3.99, 3.98, 3.97, 3.96))
    assert number == 5


def test_a_rising_loss_is_not_saturated_but_diverging() -> None:
    """Sign apart from magnitude: the reason is another one, and comes after two windows."""
    number, reason = ends(levels(1.0, 2.0, 3.0))
    assert number == 3
    assert "diverging" in reason


def test_one_rise_is_forgiven() -> None:
    """A single bad window between good ones changes nothing."""
    assert ends(levels(4.0, 3.0, 3.2, 2.0, 1.0)) == (None, "")


def test_a_change_within_the_noise_is_none() -> None:
    """What ten noisy steps cannot tell apart counts as flat, up or down."""
    noisy = [Window(level, noise=0.3, gradient=0.3 if number else 1.0) for number, level in enumerate((2.0, 1.8, 2.1))]
    number, reason = ends(noisy)
    assert number == 3
    assert "saturated" in reason


def test_a_loss_that_is_as_good_as_zero_ends_the_phase_at_once() -> None:
    """There is nothing to wait for, however steep the curve."""
    number, reason = ends(levels(4.0, 1.0, 0.01))
    assert number == 3
    assert "nothing left to learn" in reason


@pytest.mark.parametrize(
    "found", [levels(4.0, LEARNED), levels(49, 50, 50), levels(4.0, 1.0, 0.99, 0.98, gradient=1.0)]
)
def test_a_loss_at_a_limit_goes_on(found: list[Window]) -> None:
    """As low as what counts as learned, or risen by as much as what counts as flat."""
    assert ends(found) == (None, "")


def test_a_gradient_at_half_its_highest_is_lively() -> None:
    """Calm is below it."""
    flat = (4.0, 4.0, 4.0)
    assert ends([*levels(4.0), *levels(*flat, gradient=0.5)]) == (None, "")
    assert ends([*levels(4.0), *levels(*flat, gradient=0.49)])[0] == 3


def test_a_fall_by_just_what_counts_as_flat_is_flat() -> None:
    """One of fifty; a little more is a fall."""
    lively = levels(50)
    assert ends([*lively, *levels(49.5, 49, gradient=0.2)])[0] == 3
    assert ends([*lively, *levels(49.5, 48.9, gradient=0.2)]) == (None, "")


def test_a_phase_that_goes_on_says_what_was_measured() -> None:
    """Shares of the highest window's."""
    state, verdict = advance(Monitor(Phase.NUMERIC, (Window(4.0, gradient=2.0),)), Window(3.0, gradient=1.5))
    assert verdict == Verdict(over=False, reason="change 0.250, gradient 0.75 of its highest")
    assert state.windows == (Window(4.0, gradient=2.0), Window(3.0, gradient=1.5))
    _, verdict = advance(Monitor(Phase.SYMBOLIC), Window(0.3))
    assert verdict == Verdict(over=False, reason="0.300 reward a request")


def test_one_step_has_no_noise() -> None:
    """It cannot be told from one number."""
    assert numeric_window([Step(2.0, None, None, 3.0)]) == Window(2.0, 0.0, 3.0)


def test_a_window_is_of_value_tokens_where_there_are_any() -> None:
    """Form settles first: a loss that mixes both would look flat too early."""
    steps = [Step(1.0, 3.0, 0.5, 2.0), Step(1.0, 5.0, 0.5, 4.0)]
    window = numeric_window(steps)
    assert (window.level, window.gradient) == (4.0, 3.0)
    assert window.noise == pytest.approx(1.0)
    assert numeric_window([*steps, Step(9.0, None, 9.0, 3.0)]).level == 4.0
    assert numeric_window([Step(9.0, None, 9.0, 3.0)] * 2).level == 9.0


# ---- the numeric signal, on recorded runs ----


@pytest.mark.parametrize(
    ("trace", "number", "reason"),
    [
        ("every-row", 9, "nothing left to learn"),
        ("right-rows-then-failing-ones", 8, "nothing left to learn"),
        ("noise", 5, "saturated: flat over 4 windows"),
        ("diverging", 6, "diverging"),
        ("late-drop", 11, "saturated: flat over 2 windows"),
    ],
)
def test_the_switch_points_of_recorded_runs(trace: str, number: int, reason: str) -> None:
    """Real losses and gradient norms of SmolLM2-135M (tests/agent/traces/README.md tells how they were recorded).

    One that learned all ends at once; noise without a trend is given four windows, because the gradient stays lively;
    a loss that rises is told from one that is flat; one that all but stands still at window 4 and falls again is not
    ended there, but at the plateau that follows.
    """
    ended, told = ends(windows(trace))
    assert ended == number
    assert reason in told


def test_the_late_drop_stands_still_before_it_falls() -> None:
    """Or the trace would prove nothing."""
    found = windows("late-drop")
    early, later = (found[at - 2].level - found[at - 1].level for at in (4, 5))
    assert early < 0.02 * found[0].level < later


# ---- the symbolic signal ----


def test_rewriting_that_gains_as_much_as_before_goes_on() -> None:
    """Reward a request, against the best of the phase."""
    assert ends(levels(0.3, 0.25, 0.2, 0.3), Phase.SYMBOLIC) == (None, "")


def test_rewriting_that_gains_little_ends_after_two_windows() -> None:
    """A quarter of the best is little; one such window is not enough."""
    assert ends(levels(0.4, 0.05, 0.4, 0.05), Phase.SYMBOLIC) == (None, "")
    assert ends(levels(0.4, 0.1, 0.1), Phase.SYMBOLIC) == (None, "")
    number, reason = ends(levels(0.4, 0.05, 0.0), Phase.SYMBOLIC)
    assert number == 3
    assert "gains little" in reason


def test_rewriting_that_never_gained_ends_after_two_windows() -> None:
    """Nothing of nothing is nothing."""
    assert ends(levels(0.0, 0.0, 0.0), Phase.SYMBOLIC)[0] == 2


# ---- which side is next ----

NONE, SOME, MORE = Work(0, 0.0), Work(5, 2.0), Work(9, 6.0)


BOTH = {Phase.NUMERIC, Phase.SYMBOLIC}


@pytest.mark.parametrize(
    ("last", "numeric", "symbolic", "flat", "phase"),
    [
        (None, MORE, SOME, set(), Phase.SYMBOLIC),
        (None, SOME, MORE, set(), Phase.SYMBOLIC),
        (None, SOME, NONE, set(), Phase.NUMERIC),
        (None, NONE, SOME, set(), Phase.SYMBOLIC),
        (None, NONE, NONE, set(), Phase.STOP),
        (Phase.NUMERIC, MORE, SOME, set(), Phase.SYMBOLIC),
        (Phase.NUMERIC, MORE, SOME, {Phase.NUMERIC}, Phase.SYMBOLIC),
        (Phase.NUMERIC, SOME, NONE, set(), Phase.NUMERIC),
        (Phase.NUMERIC, SOME, NONE, {Phase.NUMERIC}, Phase.STOP),
        (Phase.NUMERIC, SOME, MORE, BOTH, Phase.STOP),
        (Phase.SYMBOLIC, SOME, MORE, set(), Phase.NUMERIC),
        (Phase.SYMBOLIC, SOME, MORE, {Phase.SYMBOLIC}, Phase.NUMERIC),
        (Phase.SYMBOLIC, NONE, MORE, {Phase.SYMBOLIC}, Phase.STOP),
        (Phase.SYMBOLIC, NONE, MORE, set(), Phase.SYMBOLIC),
    ],
)
def test_the_next_phase(last: Phase | None, numeric: Work, symbolic: Work, flat: set[Phase], phase: Phase) -> None:
    """Rewriting begins; then they take turns; a flat side is passed over, two are the end."""
    assert next_phase(last, numeric, symbolic, frozenset(flat))[0] is phase


@pytest.mark.parametrize(
    ("last", "numeric", "symbolic", "flat", "why"),
    [
        (None, SOME, MORE, set(), "9 examples to rewrite, expected gain 6.0"),
        (None, SOME, NONE, set(), "5 examples to tune the weights on, expected gain 2.0"),
        (None, SOME, NONE, BOTH, "neither tuning nor rewriting gains anything more"),
        (None, NONE, SOME, BOTH, "neither tuning nor rewriting gains anything more"),
        (None, NONE, NONE, BOTH, "nothing is left that tuning or rewriting is expected to help"),
    ],
)
def test_why_a_phase_is_next(last: Phase | None, numeric: Work, symbolic: Work, flat: set[Phase], why: str) -> None:
    """What it has to do, or that nothing helps."""
    assert next_phase(last, numeric, symbolic, frozenset(flat))[1] == why


def test_two_flat_sides_end_a_job_whatever_work_they_still_see() -> None:
    """Hysteresis: no endless taking of turns."""
    flat: set[Phase] = set()
    phase, _ = next_phase(None, MORE, MORE)
    turns = []
    while phase is not Phase.STOP:
        turns.append(phase)
        flat.add(phase)
        phase, _ = next_phase(phase, MORE, MORE, frozenset(flat))
    assert turns == [Phase.SYMBOLIC, Phase.NUMERIC]
