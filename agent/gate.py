"""The gate: is the new adapter better on held-out rows by more than the noise? Pure, from recorded numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

ENOUGH_ROWS = 20
"""Held-out rows from which on rewards, which are coarser than losses, can be told from noise."""
ONE_SIDED_95 = 1.645
"""Standard errors that a gain without any cause exceeds in one case of twenty."""


@dataclass(frozen=True)
class Measured:
    """One model on the held-out rows, in their order: rewards in [0, 1], losses in nats per target token.

    Rows of plain text have a loss but no reward.
    """

    rewards: tuple[float, ...]
    losses: tuple[float, ...]
    metric: str = "content reward"
    """What the rewards are."""


@dataclass(frozen=True)
class Verdict:
    """What the gate decided and by which numbers.

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


def judge(before: Measured, after: Measured) -> Verdict:
    """Compare two models row by row.

    From 20 rows with a reward on the reward decides, below that the loss. Raises ValueError if the two were
    not measured on the same number of rows.
    """
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
    noise = ONE_SIDED_95 * stdev(differences) / math.sqrt(rows) if rows > 1 else 0.0
    promote = gain > 0 and gain > noise
    old, new = fmean(before), fmean(after)
    reason = _reason(metric, old, new, gain, noise, rows)
    return Verdict(
        promote=promote, metric=metric, before=old, after=new, gain=gain, noise=noise, rows=rows, reason=reason
    )


def _reason(metric: str, old: float, new: float, gain: float, noise: float, rows: int) -> str:
    if gain <= 0:
        outcome = "Not promoted"
        comparison = "which is no gain"
    elif gain <= noise:
        outcome = "Not promoted"
        comparison = f"a gain of {gain:.3g} that is within the noise of {noise:.3g}"
    else:
        outcome = "Promoted"
        comparison = f"a gain of {gain:.3g} that is more than the noise of {noise:.3g}"
    few = f" (judged by loss, fewer than {ENOUGH_ROWS} rows)" if rows < ENOUGH_ROWS else ""
    held_out = f"{rows} held-out row{'s' if rows > 1 else ''}"
    return f"{outcome}: the {metric} on {held_out} went from {old:.3g} to {new:.3g}, {comparison}{few}."
