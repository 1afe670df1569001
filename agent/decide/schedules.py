"""When a neurosymbolic job changes sides: by the monitoring signal, or after fixed numbers of steps and requests."""

from __future__ import annotations

from dataclasses import dataclass

from agent.decide import monitor
from agent.decide.monitor import LEAST_STEPS, REQUESTS_A_WINDOW, STEPS_A_WINDOW, Monitor, Phase, Verdict, Window, Work


class Monitored:
    """A phase lasts until the signal says that its side has saturated."""

    def steps_a_window(self, steps_a_pass: int) -> int:
        """Optimizer steps of a window: a pass over all rows, within bounds."""
        return max(LEAST_STEPS, min(STEPS_A_WINDOW, steps_a_pass))

    def advance(self, state: Monitor, window: Window) -> tuple[Monitor, Verdict]:
        """The state after one more window, and whether the phase is over."""
        return monitor.advance(state, window)

    def next_phase(
        self, last: Phase | None, numeric: Work, symbolic: Work, flat: frozenset[Phase]
    ) -> tuple[Phase, str]:
        """The phase that follows, from the work of each side and the sides that gained nothing at their last turn."""
        return monitor.next_phase(last, numeric, symbolic, flat)


@dataclass(frozen=True)
class Alternating:
    """Numeric and symbolic phases of fixed length in turns; what the signal is measured against."""

    steps: int
    requests: int

    def steps_a_window(self, steps_a_pass: int) -> int:
        """Always the same."""
        del steps_a_pass
        return STEPS_A_WINDOW

    def advance(self, state: Monitor, window: Window) -> tuple[Monitor, Verdict]:
        """The phase is over after its fixed number of windows."""
        numeric = state.phase is Phase.NUMERIC
        most = self.steps / STEPS_A_WINDOW if numeric else self.requests / REQUESTS_A_WINDOW
        state = Monitor(state.phase, (*state.windows, window))
        return state, Verdict(over=len(state.windows) >= most, reason="its fixed length")

    def next_phase(
        self, last: Phase | None, numeric: Work, symbolic: Work, flat: frozenset[Phase]
    ) -> tuple[Phase, str]:
        """The other side, if that has work, else the same again; what they gained does not matter here."""
        del flat
        if last is not Phase.SYMBOLIC and symbolic.examples:
            return Phase.SYMBOLIC, "its turn"
        if numeric.examples:
            return Phase.NUMERIC, "its turn"
        if symbolic.examples:
            return Phase.SYMBOLIC, "nothing to tune the weights on"
        return Phase.STOP, "nothing is left that tuning or rewriting is expected to help"
