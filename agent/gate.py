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
    """One model on the held-out rows, in their order: rewards in [0, 1], losses in nats per target token."""

    rewards: tuple[float, ...]
    losses: tuple[float, ...]


@dataclass(frozen=True)
class Verdict:
    """What the gate decided and by which numbers.

    `before` and `after` are means of the metric over the rows; `gain` is positive where it got better (a reward
    that rose, a loss that fell); `noise` is what the gain had to exceed. All four are 0.0 where there is
    nothing finite to compare, so that a verdict can always be stored as JSON.
    """

    promote: bool
    metric: str
    """content reward or loss"""
    before: float
    after: float
    gain: float
    noise: float
    rows: int
    reason: str
    """One sentence for people."""


def judge(before: Measured, after: Measured) -> Verdict:
    """Compare two models row by row.

    From 20 rows on the content reward decides, below that the loss. Raises ValueError if the two were not
    measured on the same number of rows.
    """
    rows = len(after.losses)
    by_reward = rows >= ENOUGH_ROWS
    metric = "content reward" if by_reward else "loss"
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
    promote, old, new = gain > noise, fmean(before), fmean(after)
    reason = (
        f"{'Promoted' if promote else 'Not promoted'}: the {metric} on {rows} held-out row{'s' if rows > 1 else ''}"
        f" went from {old:.3g} to {new:.3g}, {_in_words(gain, noise)}"
        f"{'' if rows >= ENOUGH_ROWS else f' (too few rows to judge by rewards, which takes {ENOUGH_ROWS})'}."
    )
    return Verdict(
        promote=promote, metric=metric, before=old, after=new, gain=gain, noise=noise, rows=rows, reason=reason
    )


def _in_words(gain: float, noise: float) -> str:
    if gain <= 0:
        return "which is no gain"
    if gain <= noise:
        return f"a gain of {gain:.3g} that is within the noise of {noise:.3g}"
    return f"a gain of {gain:.3g} that is more than the noise of {noise:.3g}"
