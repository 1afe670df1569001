import dataclasses
import json
import math

import pytest

from agent.gate import Measured, Verdict, judge


def measured(rewards: list[float], losses: list[float] | None = None) -> Measured:
    return Measured(tuple(rewards), tuple(losses or [2.0] * len(rewards)))


def by_loss(before: list[float], after: list[float]) -> Verdict:
    return judge(measured([0.0] * len(before), before), measured([0.0] * len(after), after))


def test_a_reward_that_rises_by_more_than_its_noise_is_promoted() -> None:
    """Twenty rows, half of which rise by 0.4: gain and noise are those of the paired differences."""
    verdict = judge(measured([0.2] * 20), measured([0.2] * 10 + [0.6] * 10))
    assert verdict.promote
    assert verdict.metric == "content reward"
    assert (verdict.before, verdict.after, verdict.rows) == (pytest.approx(0.2), pytest.approx(0.4), 20)
    assert verdict.gain == pytest.approx(0.2)
    # sample standard deviation of ten 0.0 and ten 0.4: 0.4 * sqrt(5 / 19)
    assert verdict.noise == pytest.approx(1.645 * 0.4 * math.sqrt(5 / 19) / math.sqrt(20))
    assert verdict.reason.startswith("Promoted: the content reward on 20 held-out rows went from 0.2 to 0.4")


def test_a_reward_that_rises_within_its_noise_is_not_promoted() -> None:
    """One row of twenty that turns right is what chance gives too."""
    verdict = judge(measured([0.0] * 20), measured([1.0] + [0.0] * 19))
    assert not verdict.promote
    assert verdict.gain == pytest.approx(0.05)
    assert verdict.noise > verdict.gain
    assert "within the noise" in verdict.reason


def test_pairing_makes_a_small_steady_gain_visible() -> None:
    """Rows that differ widely but each rise a little are promoted, which unpaired means could not tell."""
    before = [row / 20 for row in range(20)]
    after = [reward + 0.01 + 0.001 * (row % 2) for row, reward in enumerate(before)]
    assert judge(measured(before), measured(after)).promote


@pytest.mark.parametrize("change", [0.0, -0.1])
def test_a_reward_that_does_not_rise_is_not_promoted(change: float) -> None:
    """The same rewards, or a steady fall without any noise, keep the old version, whatever the loss did."""
    verdict = judge(measured([0.5] * 20), measured([0.5 + change] * 20, [0.1] * 20))
    assert not verdict.promote
    assert "no gain" in verdict.reason


def test_a_steady_gain_without_noise_is_promoted() -> None:
    """Differences that are all the same have no noise, so any rise counts."""
    assert judge(measured([0.25] * 20), measured([0.5] * 20)).promote


def test_few_rows_are_judged_by_loss_and_the_verdict_says_so() -> None:
    """With 19 rows a fall of the loss promotes although the rewards stayed at zero."""
    verdict = by_loss([2.0] * 19, [1.5, 1.6] * 9 + [1.5])
    assert verdict.promote
    assert verdict.metric == "loss"
    assert verdict.gain == pytest.approx(2.0 - verdict.after)
    assert "fewer than 20 rows" in verdict.reason


def test_few_rows_ignore_rewards() -> None:
    """With 19 rows a reward that rises cannot promote a loss that rises."""
    assert not judge(measured([0.0] * 19, [1.0] * 19), measured([1.0] * 19, [1.5] * 19)).promote


def test_a_loss_that_falls_within_its_noise_is_not_promoted() -> None:
    """Two rows, one much better and one nearly as much worse, show nothing."""
    assert not by_loss([2.0, 2.0], [1.0, 2.9]).promote


@pytest.mark.parametrize(("after", "promote"), [(1.999, True), (2.0, False), (2.1, False)])
def test_one_row_is_promoted_for_any_fall(after: float, promote: bool) -> None:  # noqa: FBT001
    """A single row has no noise that could be measured."""
    verdict = by_loss([2.0], [after])
    assert verdict.promote is promote
    assert "1 held-out row " in verdict.reason


def test_no_rows_are_nothing_to_judge_by() -> None:
    """Without held-out rows the old version stays, and the reason says why."""
    verdict = by_loss([], [])
    assert not verdict.promote
    assert verdict.rows == 0
    assert "nothing to judge by" in verdict.reason


@pytest.mark.parametrize("rows", [5, 25])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("side", ["before", "after"])
def test_losses_that_are_not_finite_are_never_promoted(rows: int, value: float, side: str) -> None:
    """One such loss on either side, at any number of rows, refuses, and the verdict can still be stored as JSON."""
    good, bad = measured([1.0] * rows, [0.5] * rows), measured([1.0] * rows, [0.5] * (rows - 1) + [value])
    verdict = judge(bad, good) if side == "before" else judge(good, bad)
    assert not verdict.promote
    assert "not a finite number" in verdict.reason
    json.dumps(dataclasses.asdict(verdict), allow_nan=False)


def test_measurements_of_different_rows_are_a_mistake_of_the_caller() -> None:
    """Two different numbers of rows cannot be paired."""
    with pytest.raises(ValueError, match="3 rows before, 2 after"):
        by_loss([1.0] * 3, [1.0] * 2)
