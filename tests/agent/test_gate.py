from __future__ import annotations

import dataclasses
import json
import math
import random
import statistics
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.scoring.gate import Measured, Slice, Verdict, judge, lowest


def measured(rewards: list[float], losses: list[float] | None = None) -> Measured:
    return Measured(tuple(rewards), tuple(losses or [2.0] * len(rewards)))


def by_loss(before: list[float], after: list[float]) -> Verdict:
    return judge(measured([0.0] * len(before), before), measured([0.0] * len(after), after))


def test_a_reward_that_rises_by_more_than_its_noise_is_promoted() -> None:
    """Twenty rows, half of which rise by 0.4: gain and noise are those of the paired differences.

    A resampled gain is 0.4 / 20 times a binomial count of mean 10; 94 % of the counts are 7 or more.
    """
    verdict = judge(measured([0.2] * 20), measured([0.2] * 10 + [0.6] * 10))
    assert verdict.promote
    assert verdict.metric == "content reward"
    assert (verdict.before, verdict.after, verdict.rows) == (pytest.approx(0.2), pytest.approx(0.4), 20)
    assert verdict.gain == pytest.approx(0.2)
    assert verdict.noise == pytest.approx(0.2 - 0.02 * 7, abs=0.02)
    assert verdict.reason.startswith("Promoted: the content reward on 20 held-out rows went from 0.2 to 0.4")


def test_a_reward_that_rises_within_its_noise_is_not_promoted() -> None:
    """One row of twenty that turns right is what chance gives too: a third of the samples does not have it."""
    verdict = judge(measured([0.0] * 20), measured([1.0] + [0.0] * 19))
    assert not verdict.promote
    assert verdict.gain == verdict.noise == pytest.approx(0.05)
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
    verdict = judge(measured([0.25] * 20), measured([0.5] * 20))
    assert verdict.promote
    assert verdict.noise == 0.0


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


def test_only_rows_with_a_reward_make_the_reward_decide() -> None:
    """Plain text has none: nineteen rewards and six more losses are judged by loss."""
    before, after = Measured((0.0,) * 19, (2.0,) * 25), Measured((1.0,) * 19, (2.0,) * 25)
    assert judge(before, after).metric == "loss"


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
    assert verdict == Verdict(
        promote=False,
        metric="loss",
        before=0.0,
        after=0.0,
        gain=0.0,
        noise=0.0,
        rows=0,
        reason="Not promoted: no held-out rows, so there is nothing to judge by.",
    )


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


def test_rewards_of_different_rows_are_a_mistake_of_the_caller() -> None:
    """Rows that one model answered and the other did not cannot be left out silently."""
    before, after = Measured((0.0,) * 21, (1.0,) * 25), Measured((1.0,) * 22, (1.0,) * 25)
    with pytest.raises(ValueError, match="argument 2 is longer"):
        judge(before, after)


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        (
            measured([0.25] * 20),
            measured([0.5] * 20),
            (
                "Promoted: the content reward on 20 held-out rows went from 0.25 to 0.5, "
                "a gain of 0.25 that is more than the noise of 0."
            ),
        ),
        (
            measured([0.5] * 20),
            measured([0.5] * 20),
            "Not promoted: the content reward on 20 held-out rows went from 0.5 to 0.5, which is no gain.",
        ),
        (
            measured([0.0] * 20),
            measured([1.0] + [0.0] * 19),
            (
                "Not promoted: the content reward on 20 held-out rows went from 0 to 0.05, "
                "a gain of 0.05 that is within the noise of 0.05."
            ),
        ),
        (
            measured([0.0], [2.0]),
            measured([0.0], [1.5]),
            (
                "Promoted: the loss on 1 held-out row went from 2 to 1.5, "
                "a gain of 0.5 that is more than the noise of 0 (judged by loss, fewer than 20 rows)."
            ),
        ),
        (
            measured([0.0], [1.0]),
            measured([0.0], [math.nan]),
            "Not promoted: the loss of a held-out row is not a finite number.",
        ),
    ],
)
def test_the_reason_is_one_sentence_with_the_figures(before: Measured, after: Measured, reason: str) -> None:
    """What was measured on how many rows, before and after, and what the gain is held against."""
    assert judge(before, after).reason == reason


# ---- noise ----


def normal(rows: int, seed: int, mean: float = 0.1, spread: float = 0.3) -> list[float]:
    draw = random.Random(seed)
    return [draw.gauss(mean, spread) for _ in range(rows)]


@pytest.mark.parametrize("seed", range(5))
def test_the_noise_is_about_that_of_a_normal_mean(seed: int) -> None:
    """For a hundred normal differences the bootstrap and 1.645 standard errors must nearly agree."""
    values = normal(100, seed)
    noise = statistics.fmean(values) - lowest(values)
    assert noise == pytest.approx(1.645 * statistics.stdev(values) / math.sqrt(100), rel=0.25)


def test_the_noise_is_that_of_95_per_cent() -> None:
    """On average over several draws, where chance evens out."""
    draws = [normal(60, seed) for seed in range(10)]
    shares = [(statistics.fmean(each) - lowest(each)) / statistics.stdev(each) * math.sqrt(60) for each in draws]
    assert statistics.fmean(shares) == pytest.approx(1.645, rel=0.06)


def test_noise_shrinks_with_the_square_root_of_the_rows() -> None:
    """Four times the rows, half the noise."""
    few, many = (statistics.fmean(values) - lowest(values) for values in (normal(100, 1), normal(400, 2)))
    assert many == pytest.approx(few / 2, rel=0.25)


def test_the_same_rows_always_have_the_same_noise() -> None:
    """A verdict that is made again is the same; another seed gives nearly the same."""
    values = normal(50, 0)
    assert lowest(values) == lowest(list(values))
    assert lowest(values, seed=1) == pytest.approx(lowest(values), abs=0.03)
    assert lowest(values, seed=1) != lowest(values)


@given(st.lists(st.floats(-1, 1), min_size=1, max_size=10))
def test_the_lowest_mean_lies_among_the_values(values: list[float]) -> None:
    """It is a mean of some of them."""
    assert min(values) - 1e-12 <= lowest(values) <= max(values) + 1e-12


@pytest.mark.parametrize("value", [0.0, 0.1, -0.3, 1 / 3])
def test_values_that_are_all_equal_have_no_noise(value: float) -> None:
    """Not even that of rounding."""
    assert lowest([value] * 30) == statistics.fmean([value] * 30)


# ---- slices ----


def risen(**slices: tuple[Sequence[float], Sequence[float]]) -> tuple[Measured, Measured]:
    """Two measurements whose mean reward speaks for a promotion, with slices before and after."""
    before, after = measured([0.25] * 20), measured([0.5] * 20)
    return (
        dataclasses.replace(before, slices={name: old for name, (old, _) in slices.items()}),
        dataclasses.replace(after, slices={name: new for name, (_, new) in slices.items()}),
    )


def test_a_slice_that_falls_refuses_what_the_mean_would_promote() -> None:
    """And the reason names the slice that fell most, its figures, and what spoke for a promotion."""
    both = risen(title=([0.9] * 10, [0.7] * 10), case=([0.8] * 10, [0.3] * 10), fine=([0.1] * 10, [0.2] * 10))
    assert judge(*both).promote
    verdict = judge(*both, max_slice_drop=0.1)
    assert not verdict.promote
    assert verdict.reason.startswith(
        "Not promoted: case fell from 0.8 to 0.3 on 10 rows, although the content reward on 20 held-out rows went from"
    )
    assert verdict.gain == pytest.approx(0.25)
    assert verdict.slices == (
        Slice("title", 0.9, 0.7, 10),
        Slice("case", 0.8, 0.3, 10),
        Slice("fine", 0.1, 0.2, 10),
    )


@pytest.mark.parametrize(
    ("old", "new", "promote"),
    [
        ([1.0] * 100, [0.9] * 100, True),
        ([0.8] * 100, [0.7] * 100, True),
        ([1.0] * 100, [0.88] * 100, False),
        ([1.0] * 5, [1.0] * 4 + [0.0], True),
        ([1.0] * 5, [1.0] * 4 + [0.5], True),
        ([1.0] * 5, [1.0] * 3 + [0.0] * 2, False),
        ([1.0] * 9, [1.0] * 8 + [0.0], True),
        ([1.0] * 30, [1.0] * 26 + [0.0] * 4, False),
        ([1.0] * 4, [0.0] * 4, True),
        ([0.5] * 20, [0.5] * 20, True),
        ([], [], True),
    ],
)
def test_a_slice_may_fall_by_as_much_as_is_allowed_or_by_one_row(
    old: list[float],
    new: list[float],
    promote: bool,  # noqa: FBT001
) -> None:
    """A tenth is allowed here; one row is chance, and fewer than five rows are no slice to judge by."""
    verdict = judge(*risen(case=(old, new)), max_slice_drop=0.1)
    assert verdict.promote is promote
    assert [each.rows for each in verdict.slices] == [len(new)] * bool(new)


@pytest.mark.parametrize("missing", ["before", "after"])
def test_a_slice_that_one_side_lacks_is_left_out(missing: str) -> None:
    """There is nothing to compare it with; the same if it has other rows."""
    before, after = risen(case=([1.0] * 10, [0.0] * 10))
    without = {"before": (measured([0.25] * 20), after), "after": (before, measured([0.5] * 20))}[missing]
    for pair in (without, risen(case=([1.0] * 10, [0.0] * 9))):
        verdict = judge(*pair, max_slice_drop=0.1)
        assert verdict.promote
        assert verdict.slices == ()


def test_a_refusal_by_the_mean_stays_that_whatever_the_slices_did() -> None:
    """A slice never promotes, and does not take the place of the first reason; it is listed all the same."""
    before, after = risen(case=([1.0] * 10, [0.0] * 10))
    after = dataclasses.replace(after, rewards=before.rewards)
    verdict = judge(before, after, max_slice_drop=0.1)
    assert not verdict.promote
    assert "no gain" in verdict.reason
    assert "case" not in verdict.reason
    assert verdict.slices == (Slice("case", 1.0, 0.0, 10),)


def test_slices_are_judged_where_the_loss_decides_too() -> None:
    """Nineteen rows whose loss fell, but one kind of answer was unlearned."""
    before = dataclasses.replace(measured([0.0] * 19, [2.0] * 19), slices={"case": [1.0] * 10})
    after = dataclasses.replace(measured([0.0] * 19, [1.0] * 19), slices={"case": [0.5] * 10})
    verdict = judge(before, after, max_slice_drop=0.1)
    assert (verdict.metric, verdict.promote) == ("loss", False)
    assert "although the loss on 19 held-out rows" in verdict.reason


@pytest.mark.parametrize("max_slice_drop", [0.1, 1.0])
def test_a_verdict_can_be_stored(max_slice_drop: float) -> None:
    """Promoted or refused, with its slices, in a version's manifest."""
    verdict = judge(*risen(case=([1.0] * 10, [0.5] * 10)), max_slice_drop)
    stored = json.loads(json.dumps(dataclasses.asdict(verdict), allow_nan=False))
    assert stored["slices"] == [{"name": "case", "before": 1.0, "after": 0.5, "rows": 10}]
    assert Verdict(**stored).promote is (max_slice_drop == 1.0)
