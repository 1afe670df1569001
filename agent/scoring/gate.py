"""The gate: is the new version better on held-out rows by more than the noise, and worse in nothing? Pure.

The noise is that of the gain over the rows, by the percentile bootstrap (Efron and Tibshirani, 1993, chapter 13).
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean

from agent.contract.lines import quantity

ENOUGH_ROWS = 20
"""Held-out rows from which on rewards, which are coarser than losses, can be told from noise."""
RESAMPLES = 1000
"""Bootstrap samples: their fifth percentile moves by a few per cent of its distance from the mean between seeds."""
CONFIDENCE = 0.95
"""Share of the resampled gains that lie above the gain less its noise."""
ENOUGH_FOR_A_SLICE = 5
"""Rows from which on a slice is judged by itself."""


@dataclass(frozen=True)
class Measured:
    """One model on the held-out rows, in their order: rewards in [0, 1], losses in nats per target token.

    Rows of plain text have a loss but no reward.
    """

    rewards: tuple[float, ...]
    losses: tuple[float, ...]
    metric: str = "content reward"
    """What the rewards are."""
    slices: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """Rewards of parts of the rows, or of other rows, by name: none of them may fall."""


@dataclass(frozen=True)
class Slice:
    """Mean reward of one slice before and after, over its rows."""

    name: str
    before: float
    after: float
    rows: int


@dataclass(frozen=True)
class Verdict:
    """The gate's decision and its numbers.

    `before` and `after` are means of the metric over the rows; `gain` is positive where it got better (a reward
    that rose, a loss that fell); `noise` is what the gain had to exceed. All four are 0.0 where there is
    nothing finite to compare, so that a verdict can always be stored as JSON.
    """

    promote: bool
    metric: str
    """which reward, or loss"""
    before: float
    after: float
    gain: float
    noise: float
    rows: int
    reason: str
    """One sentence for people."""
    slices: tuple[Slice, ...] = ()


def judge(before: Measured, after: Measured, max_slice_drop: float = 1.0) -> Verdict:
    """Compare two models row by row.

    From 20 rows with a reward on the reward decides, below that the loss. Whatever that says, a slice of five rows or
    more whose mean reward falls by more than `max_slice_drop`, and by more than one row of it, refuses.

    Raises ValueError if the two were not measured on the same number of rows.
    """
    verdict = _judge_rows(before, after)
    slices = tuple(
        Slice(name, round(fmean(old), 4), round(fmean(new), 4), len(new))
        for name, old in before.slices.items()
        if (new := after.slices.get(name, ())) and len(new) == len(old)
    )
    fallen = [each for each in slices if each.rows >= ENOUGH_FOR_A_SLICE and _falls(each, max_slice_drop)]
    verdict = replace(verdict, slices=slices)
    if not verdict.promote or not fallen:
        return verdict
    worst = min(fallen, key=lambda each: each.after - each.before)
    fall = f"{worst.name} fell from {worst.before:.3g} to {worst.after:.3g} on {quantity(worst.rows, 'row')}"
    gained = verdict.reason.removeprefix("Promoted: ")
    return replace(verdict, promote=False, reason=f"Not promoted: {fall}, although {gained}")


def _falls(each: Slice, max_slice_drop: float) -> bool:
    # One row of a small slice is chance; the rounding of the means is no fall.
    return each.before - each.after > max(max_slice_drop, 1 / each.rows) + 1e-4


def _judge_rows(before: Measured, after: Measured) -> Verdict:
    rows = len(after.losses)
    by_reward = len(after.rewards) >= ENOUGH_ROWS
    metric = after.metric if by_reward else "loss"
    if len(before.losses) != rows:
        raise ValueError(f"{len(before.losses)} rows before, {rows} after: both must be measured on the same rows")
    if rows == 0:
        return _refusal(metric, rows, "Not promoted: no held-out rows, so there is nothing to judge by.")
    if not all(map(math.isfinite, before.losses + after.losses)):
        return _refusal(metric, rows, "Not promoted: the loss of a held-out row is not a finite number.")
    if by_reward:
        return _compare(metric, before.rewards, after.rewards, better=1)
    return _compare(metric, before.losses, after.losses, better=-1)


def _refusal(metric: str, rows: int, reason: str) -> Verdict:
    return Verdict(promote=False, metric=metric, before=0.0, after=0.0, gain=0.0, noise=0.0, rows=rows, reason=reason)


def _compare(metric: str, before: Sequence[float], after: Sequence[float], better: int) -> Verdict:
    differences = [better * (new - old) for old, new in zip(before, after, strict=True)]
    rows, gain = len(differences), fmean(differences)
    noise = gain - lowest(differences)
    promote = gain > 0 and gain > noise
    old, new = fmean(before), fmean(after)
    if gain <= 0:
        outcome, comparison = "Not promoted", "which is no gain"
    elif gain <= noise:
        outcome, comparison = "Not promoted", f"a gain of {gain:.3g} that is within the noise of {noise:.3g}"
    else:
        outcome, comparison = "Promoted", f"a gain of {gain:.3g} that is more than the noise of {noise:.3g}"
    few = f" (judged by loss, fewer than {ENOUGH_ROWS} rows)" if rows < ENOUGH_ROWS else ""
    held_out = f"{rows} held-out row{'s' if rows > 1 else ''}"
    reason = f"{outcome}: the {metric} on {held_out} went from {old:.3g} to {new:.3g}, {comparison}{few}."
    return Verdict(
        promote=promote, metric=metric, before=old, after=new, gain=gain, noise=noise, rows=rows, reason=reason
    )


def lowest(values: Sequence[float], seed: int = 0) -> float:
    """The mean of some values less its noise: exceeded by 95 % of the means of their bootstrap samples."""
    draw = random.Random(seed)
    means = sorted(fmean(draw.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return means[round((1 - CONFIDENCE) * RESAMPLES)]
