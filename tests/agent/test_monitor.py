"""The monitoring signal and its state machine, on traces of real runs and on cases by hand."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from agent import monitor
from agent.monitor import STEPS_A_WINDOW, Monitor, Phase, Window, Work, advance, next_phase, numeric_window

TRACES = Path(__file__).with_name("traces")


@dataclass(frozen=True)
class Step:
    """What the signal reads of agent.protocol.Step."""

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
