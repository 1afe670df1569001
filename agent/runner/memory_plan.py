"""A job's way down the ladder of settings that take less memory, kept in its run's folder."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from agent.contract.atomic_io import remove_tree, write_json
from agent.contract.errors import OutOfMemory
from agent.contract.protocol import FITS_WITH, Peaks
from agent.contract.settings import Training
from agent.runner import memory_fallbacks
from agent.runner.progress import PROGRESS

PLAN = "memory.json"


@dataclass(frozen=True)
class Rung:
    """Where a job stands on the ladder, and how often it fell there because a process ran out of memory."""

    number: int = 0
    falls: int = 0

    @classmethod
    def of(cls, run: Path) -> Rung:
        """That of a run; the first one where none was written down, or not whole."""
        try:
            return cls(**json.loads((run / PLAN).read_bytes()))
        except (OSError, ValueError, TypeError):
            return cls()

    def settings(self, given: Training) -> Training:
        """The settings to work with."""
        found = memory_fallbacks.rungs(given)
        return found[min(self.number, len(found) - 1)]


def fit_to_memory(run: Path, given: Training, ask: Callable[[Training], Peaks]) -> tuple[Training, Peaks]:
    """The first settings, from where the job stands downwards, whose predicted peaks fit, and these.

    Raises OutOfMemory if even the last ones take too much.
    """
    kept, rungs = Rung.of(run), memory_fallbacks.rungs(given)
    for number in range(min(kept.number, len(rungs) - 1), len(rungs)):
        peaks = ask(rungs[number])
        if not peaks.known or peaks.highest[0] - peaks.now_mb <= FITS_WITH * peaks.free_mb:
            step_down(run, given, Rung(number, kept.falls))
            return rungs[number], peaks
    most, phase = peaks.highest
    raise OutOfMemory(
        f"even at its lowest settings this job needs {most - peaks.now_mb:.0f} MB more (to {phase}), "
        f"{peaks.free_mb:.0f} MB are free: close other programs, or take a smaller base model"
    )


def fall_back(run: Path, given: Training, fault: OutOfMemory) -> str:
    """Step one rung down after a process ran out of memory; returns what changes, in words.

    Raises OutOfMemory where that has happened too often or nothing is left to lower.
    """
    kept, rungs = Rung.of(run), memory_fallbacks.rungs(given)
    if kept.falls >= memory_fallbacks.MOST_FALLS or kept.number + 1 >= len(rungs):
        raise OutOfMemory(f"{fault}, {kept.falls + 1} times: close other programs, or lower sequence_length") from fault
    lower = Rung(kept.number + 1, kept.falls + 1)
    step_down(run, given, lower)
    return memory_fallbacks.differences(rungs[kept.number], rungs[lower.number])


def step_down(run: Path, given: Training, lower: Rung) -> None:
    """Write down where the job stands; what was trained with another shape is of no use any more and goes."""
    before = Rung.of(run)
    if lower != before:
        if not memory_fallbacks.keeps_checkpoint(before.settings(given), lower.settings(given)):
            start_over(run)
        write_json(run / PLAN, dataclasses.asdict(lower))


def start_over(run: Path) -> None:
    """Delete what a run's next attempt would go on from."""
    for path in [run / PROGRESS, *run.glob("attempt-*")]:
        remove_tree(path)
