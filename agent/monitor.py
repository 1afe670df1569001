"""The unified monitoring signal and the state machine it drives: numeric ⇄ symbolic → stop. Pure.

After "Neurosymbolic LoRA: Why and When to Tune Weights vs. Rewrite Prompts" (arXiv 2601.12711): the change of the
training loss and the norm of the gradient say when tuning the weights has saturated, the reward that edits gain says
the same of rewriting. Both sides are measured in windows against the best that their own phase has shown, so that the
same numbers serve for any model and any data:

- numeric: `change` is the fall of the windowed loss as a share of the phase's highest window (negative where it
  rises), `gradient` the windowed norm as a share of the phase's highest. The loss is that of value tokens where rows
  have values: the form of an answer is learned long before what it says.
- symbolic: `change` is the reward gained per request as a share of the phase's best window.

Magnitude (is it flat?), sign (is it rising?) and patience (for how long?) are judged apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import Enum
from statistics import fmean, stdev
from typing import Any

STEPS_A_WINDOW = 10
"""Optimizer steps averaged: the gradient norm of single steps swings by more than an order of magnitude."""
REQUESTS_A_WINDOW = 12
"""Requests to the remote LLM, at least, that a symbolic window sums over."""
FLAT = 0.02
"""A fall of the loss by less than this share of the phase's highest window is none."""
LEARNED = 0.02
"""Nats per token below which there is nothing left to learn, however steep the curve is."""
CALM = 0.5
"""Share of the phase's highest gradient norm below which the weights are near rest."""
PATIENCE = 2
"""Flat windows with a calm gradient after which a side counts as saturated; with a lively one it is twice as many,
because a loss that has not moved yet may still drop."""
LITTLE = 0.25
"""Share of a symbolic phase's best window below which rewriting gains little."""


class Phase(str, Enum):
    """What a job does next."""

    NUMERIC = "numeric"
    SYMBOLIC = "symbolic"
    STOP = "stop"


@dataclass(frozen=True)
class Window:
    """What one window of a phase measured.

    Numeric: `level` is the mean loss in nats per token, `noise` the standard error of that mean, `gradient` the mean
    gradient norm. Symbolic: `level` is the reward gained per request, the rest 0.
    """

    level: float
    noise: float = 0.0
    gradient: float = 0.0


@dataclass(frozen=True)
class Signal:
    """One window against its phase: see the module's text; `learned` is True where the loss is as good as zero."""

    change: float
    gradient: float
    noise: float
    learned: bool = False


@dataclass(frozen=True)
class Monitor:
    """The state between two windows."""

    phase: Phase
    windows: tuple[Window, ...] = ()
    flat: int = 0
    rising: int = 0


@dataclass(frozen=True)
class Verdict:
    """Whether the phase has had its time, and why, in a few words."""

    over: bool
    reason: str


def numeric_window(steps: Sequence[Any]) -> Window:
    """A window of `agent.protocol.Step`s: of the value losses that they have, of their losses if none has one."""
    values = [step.value_loss for step in steps if step.value_loss is not None]
    losses = values or [step.loss for step in steps]
    noise = stdev(losses) / len(losses) ** 0.5 if len(losses) > 1 else 0.0
    return Window(fmean(losses), noise, fmean(step.grad_norm for step in steps))


def numeric_signal(windows: Sequence[Window]) -> Signal:
    """The newest of at least one window of a numeric phase against the phase."""
    last = windows[-1]
    highest = max(window.level for window in windows)
    liveliest = max(window.gradient for window in windows)
    before = windows[-2] if len(windows) > 1 else None
    return Signal(
        change=(before.level - last.level) / highest if before and highest else 1.0,
        gradient=last.gradient / liveliest if liveliest else 0.0,
        noise=(before.noise**2 + last.noise**2) ** 0.5 / highest if before and highest else 0.0,
        learned=last.level < LEARNED,
    )


def symbolic_signal(windows: Sequence[Window]) -> Signal:
    """The newest of at least one window of a symbolic phase against the best of the phase."""
    best = max(window.level for window in windows)
    return Signal(change=windows[-1].level / best if best > 0 else 0.0, gradient=0.0, noise=0.0)


def advance(monitor: Monitor, window: Window) -> tuple[Monitor, Verdict]:
    """The state after one more window, and whether the phase is over."""
    windows = (*monitor.windows, window)
    if monitor.phase is Phase.SYMBOLIC:
        return _symbolic(replace(monitor, windows=windows))
    return _numeric(replace(monitor, windows=windows))


def _numeric(monitor: Monitor) -> tuple[Monitor, Verdict]:
    signal = numeric_signal(monitor.windows)
    threshold = max(FLAT, signal.noise)
    flat = monitor.flat + 1 if signal.change <= threshold else 0
    rising = monitor.rising + 1 if signal.change < -threshold else 0
    patience = PATIENCE if signal.gradient < CALM else 2 * PATIENCE
    monitor = replace(monitor, flat=0 if rising else flat, rising=rising)
    if signal.learned:
        return monitor, Verdict(over=True, reason=f"loss {monitor.windows[-1].level:.3f}: nothing left to learn")
    if rising >= PATIENCE:
        return monitor, Verdict(over=True, reason=f"the loss has risen for {rising} windows: diverging")
    if monitor.flat >= patience:
        seen = f"change {signal.change:.3f}, gradient {signal.gradient:.2f} of its highest"
        return monitor, Verdict(over=True, reason=f"saturated: {monitor.flat} flat windows ({seen})")
    return monitor, Verdict(over=False, reason=f"change {signal.change:.3f}, gradient {signal.gradient:.2f}")


def _symbolic(monitor: Monitor) -> tuple[Monitor, Verdict]:
    signal = symbolic_signal(monitor.windows)
    monitor = replace(monitor, flat=monitor.flat + 1 if signal.change < LITTLE else 0)
    gained = monitor.windows[-1].level
    if monitor.flat >= PATIENCE:
        return monitor, Verdict(over=True, reason=f"rewriting gains little: {gained:.3f} reward a request")
    return monitor, Verdict(over=False, reason=f"{gained:.3f} reward a request")


@dataclass(frozen=True)
class Work:
    """What one side has to do: how many examples, and the reward that is expected to gain."""

    examples: int
    gain: float


def next_phase(
    last: Phase | None, numeric: Work, symbolic: Work, flat: frozenset[Phase] = frozenset()
) -> tuple[Phase, str]:
    """What to do after a phase, and why.

    Rewriting begins, where it has anything to do: a reference is rewritten once, but passes over it before that teach
    what has to be unlearned. After that the sides take turns. Hysteresis: `flat` are the sides whose last phase gained
    nothing, and neither of them is taken up again until the other one has gained something; two flat sides end the job.
    """
    work = {Phase.SYMBOLIC: symbolic, Phase.NUMERIC: numeric}
    for phase in sorted(work, key=lambda phase: phase is last):
        if work[phase].examples and phase not in flat:
            verb = "tune the weights on" if phase is Phase.NUMERIC else "rewrite"
            return phase, f"{work[phase].examples} examples to {verb}, expected gain {work[phase].gain:.1f}"
    if numeric.examples or symbolic.examples:
        return Phase.STOP, "neither tuning nor rewriting gains anything more"
    return Phase.STOP, "nothing is left that tuning or rewriting is expected to help"
