"""A run as it goes, put together from its events: what `watch` shows and `report` draws."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from agent.system.events import read_events

RECENT = 20
"""Steps that the time left is estimated from."""
KEPT = 4000
"""Steps kept: a very long run is thinned, every other step at a time."""


@dataclass
class RunHistory:
    """The history of a run so far; `refresh` reads its new events.

    Attributes:
        steps: the events of optimizer steps, thinned.
        phases: (time, name) of each phase that began.
        rounds: the events of rounds that began, then the same of those that are over.
        windows: the events of the monitoring signal.
        rewrites: how many ended in each state.
        notes: texts for people, newest last.
        plan, verdict: those events, None before they came.
    """

    path: Path
    steps: list[dict[str, Any]] = field(default_factory=list)
    phases: list[tuple[float, str]] = field(default_factory=list)
    rounds: list[dict[str, Any]] = field(default_factory=list)
    over: list[dict[str, Any]] = field(default_factory=list)
    windows: list[dict[str, Any]] = field(default_factory=list)
    rewrites: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    plan: dict[str, Any] | None = None
    verdict: dict[str, Any] | None = None
    _offset: int = 0
    _every: int = 1

    def refresh(self) -> RunHistory:
        """Read on."""
        for event, after in read_events(self.path, self._offset):
            self._offset = after
            kind = event.get("event")
            if kind == "step":
                self._add_step(event)
            elif kind == "phase":
                self.phases.append((event["at"], event["phase"]))
            elif kind in {"round", "round over", "window"}:
                {"round": self.rounds, "round over": self.over, "window": self.windows}[kind].append(event)
            elif kind == "rewrite":
                self.rewrites[event["state"]] += 1
            elif kind == "note":
                self.notes.append(event["text"])
            elif kind in {"plan", "verdict"}:
                setattr(self, kind, event)
        return self

    def _add_step(self, event: dict[str, Any]) -> None:
        # An attempt that died may have done steps that the next one does again.
        while self.steps and self.steps[-1]["step"] >= event["step"]:
            self.steps.pop()
        if event["step"] % self._every == 0 or not self.steps:
            self.steps.append(event)
        if len(self.steps) > KEPT:
            self._every *= 2
            self.steps = self.steps[::2]

    @property
    def seconds_left(self) -> float | None:
        """Of the optimizer steps that are still to come, at the pace of the last ones; None where there are none."""
        recent = self.steps[-RECENT:]
        if not recent or recent[-1]["step"] >= recent[-1]["steps"]:
            return None
        each = median(step["tokens"] / step["tokens_per_s"] for step in recent if step["tokens_per_s"])
        return float(each * (recent[-1]["steps"] - recent[-1]["step"]))

    def losses(self, count: int) -> list[float]:
        """The course of the loss in at most `count` means of equal parts."""
        values = [step["loss"] for step in self.steps]
        if len(values) <= count:
            return values
        parts = [values[len(values) * part // count : len(values) * (part + 1) // count] for part in range(count)]
        return [sum(part) / len(part) for part in parts]
