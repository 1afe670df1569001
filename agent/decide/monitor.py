"""The unified monitoring signal and the state machine it drives: numeric ⇄ symbolic → stop. Pure.

After "Neurosymbolic LoRA: Why and When to Tune Weights vs. Rewrite Prompts" (arXiv 2601.12711): the change of the
training loss and the norm of the gradient say when tuning the weights has saturated, the reward that edits gain says
the same of rewriting. Both sides are measured in windows against the best that their own phase has shown, so that the
same numbers serve for any model and any data:

- numeric: `change` is the fall of the windowed loss over the last windows as a share of the phase's highest window
  (negative where it rises), `gradient` the windowed norm as a share of the phase's highest. The loss is that of value
  tokens where rows have values: the form of an answer is learned long before what it says.
- symbolic: the reward gained per request as a share of the phase's best window.

Magnitude (is it flat?), sign (is it above the phase's lowest?) and patience (for how long?) are judged apart.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from statistics import fmean, stdev
from typing import Any

from agent.contract.lines import quantity

STEPS_A_WINDOW = 10
"""Optimizer steps averaged: the gradient norm of single steps swings by more than an order of magnitude."""
LEAST_STEPS = 5
"""The same where a pass over all rows of the phase is shorter: few rows are learned soon, and more steps on them are
only paid for."""
REQUESTS_A_WINDOW = 12
"""Requests to the remote LLM, at least, that a symbolic window sums over."""
FLAT = 0.02
"""A fall of the loss by less than this share of the phase's highest window, over all windows of patience, is none."""
LEARNED = 0.07
"""Nats per token below which there is nothing left to learn, however steep the curve is: the right token has 93 %, so
greedy answers say it. The last rows that are still wrong are found by the probe after the phase."""
CALM = 0.5
"""Share of the phase's highest gradient norm below which the weights are near rest."""
PATIENCE = 2
"""Windows without a fall, with a calm gradient, after which a side counts as saturated; with a lively one it is twice
as many, because a loss that has not moved yet may still drop."""
LITTLE = 0.25
"""Share of a symbolic phase's best window below which rewriting gains little."""


class Phase(str, Enum):
    """The next thing that a job does."""

    NUMERIC = "numeric"
    SYMBOLIC = "symbolic"
    STOP = "stop"


@dataclass(frozen=True)
class Window:
    """The measurements of one window of a phase.

    Numeric: `level` is the mean loss in nats per token, `noise` the standard error of that mean, `gradient` the mean
    gradient norm. Symbolic: `level` is the reward gained per request, the rest 0.
    """

    level: float
    noise: float = 0.0
    gradient: float = 0.0


@dataclass(frozen=True)
class Monitor:
    """The state between two windows: what the phase has shown so far."""

    phase: Phase
    windows: tuple[Window, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """The end of a phase or its continuation, and why, in a few words."""

    over: bool
    reason: str


def numeric_window(steps: Sequence[Any]) -> Window:
    """A window of the protocol's `Step`s: of the value losses that they have, of their losses if none has one."""
    values = [step.value_loss for step in steps if step.value_loss is not None]
    losses = values or [step.loss for step in steps]
    noise = stdev(losses) / len(losses) ** 0.5 if len(losses) > 1 else 0.0
    return Window(fmean(losses), noise, fmean(step.grad_norm for step in steps))


def advance(monitor: Monitor, window: Window) -> tuple[Monitor, Verdict]:
    """The state after one more window, and whether the phase is over."""
    windows = (*monitor.windows, window)
    judge = _numeric if monitor.phase is Phase.NUMERIC else _symbolic
    return replace(monitor, windows=windows), judge(windows)


def _numeric(windows: Sequence[Window]) -> Verdict:
    last, highest = windows[-1], max(window.level for window in windows)
    if last.level < LEARNED:
        return Verdict(over=True, reason=f"loss {last.level:.3f}: nothing left to learn")
    gradient = last.gradient / (max(window.gradient for window in windows) or 1.0)
    patience = PATIENCE if gradient < CALM else 2 * PATIENCE
    before = windows[-1 - min(patience, len(windows) - 1)]
    change = (before.level - last.level) / highest
    seen = f"change {change:.3f}, gradient {gradient:.2f} of its highest"
    if _rises(windows, highest):
        return Verdict(
            over=True, reason=f"the loss is {last.level:.2f} and has risen for {PATIENCE} windows: diverging"
        )
    if len(windows) > patience and change <= _threshold(before, last, highest):
        return Verdict(over=True, reason=f"saturated: flat over {patience} windows ({seen})")
    return Verdict(over=False, reason=seen)


def _rises(windows: Sequence[Window], highest: float) -> bool:
    """True if the last windows are all above the lowest, by more than what noise explains."""
    lowest = min(windows, key=lambda window: window.level)  # never above itself, so one window or two never rise
    last = windows[-PATIENCE:]
    return all((each.level - lowest.level) / highest > _threshold(lowest, each, highest) for each in last)


def _threshold(one: Window, other: Window, highest: float) -> float:
    """The least difference between two windows that noise does not explain, as a share of the highest."""
    return max(FLAT, math.hypot(one.noise, other.noise) / highest)


def _symbolic(windows: Sequence[Window]) -> Verdict:
    best = max(window.level for window in windows)
    gained = f"{windows[-1].level:.3f} reward a request"
    little = [best <= 0 or window.level < LITTLE * best for window in windows[-PATIENCE:]]
    over = len(windows) >= PATIENCE and all(little)
    return Verdict(over=over, reason=f"rewriting gains little: {gained}" if over else gained)


@dataclass(frozen=True)
class Work:
    """The work of one side: its number of examples, and the reward that it is expected to gain."""

    examples: int
    gain: float


def next_phase(
    last: Phase | None, numeric: Work, symbolic: Work, flat: frozenset[Phase] = frozenset()
) -> tuple[Phase, str]:
    """The phase that follows, and why.

    Rewriting begins, where it has anything to do: a reference is rewritten once, but passes over it before that teach
    what has to be unlearned. After that the sides take turns. Hysteresis: `flat` are the sides whose last phase gained
    nothing, and neither of them is taken up again until the other one has gained something; two flat sides end the job.
    """
    work = {Phase.SYMBOLIC: symbolic, Phase.NUMERIC: numeric}
    for phase in sorted(work, key=lambda phase: phase is last):
        if work[phase].examples and phase not in flat:
            verb = "tune the weights on" if phase is Phase.NUMERIC else "rewrite"
            return phase, f"{quantity(work[phase].examples, 'example')} to {verb}, expected gain {work[phase].gain:.1f}"
    if numeric.examples or symbolic.examples:
        return Phase.STOP, "neither tuning nor rewriting gains anything more"
    return Phase.STOP, "nothing is left that tuning or rewriting is expected to help"
