"""The ladder of settings that take less memory, for a job that has too little. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from agent.contract.settings import Training

SHORTEST = 128
"""Tokens below which a sequence is not cut further."""
LOWEST_RANK = 4
MOST_FALLS = 3
"""How often a job that ran out of memory goes on one rung lower."""

Rung = Callable[[Training], dict[str, Any]]
KEEPS_CHECKPOINT: tuple[Rung, ...] = (
    lambda _: {"memory_budget": 1},
    lambda now: {"sequence_length": max(SHORTEST, now.sequence_length // 2)},
    lambda now: {"sequence_length": max(SHORTEST, now.sequence_length // 2)},
)
"""Everything is computed again, which changes no result; then long examples are cut. A checkpoint stays of use."""
STARTS_OVER: tuple[Rung, ...] = (
    lambda _: {"optimizer": "adamw8bit"},
    lambda now: {"top_layers": now.top_layers / 2},
    lambda now: {"top_layers": now.top_layers / 2},
    lambda now: _ranked(now, max(LOWEST_RANK, now.rank // 2)),
)
"""Another optimizer or a smaller adapter: a checkpoint does not fit any more."""


def _ranked(now: Training, rank: int) -> dict[str, Any]:
    """Another rank at the same scale of the update."""
    return {"rank": rank, "alpha": max(1, now.alpha * rank // now.rank)}


def rungs(settings: Training) -> list[Training]:
    """The settings as given, then ever less; a rung that would change nothing is left out."""
    found = [settings]
    for rung in (*KEEPS_CHECKPOINT, *STARTS_OVER):
        now = found[-1]
        less = {name: value for name, value in rung(now).items() if _is_less(getattr(now, name), value)}
        if less:
            found.append(replace(now, **less))
    return found


def _is_less(before: Any, after: Any) -> bool:
    """True if a value takes less than another: a budget of 0 stands for half of what is free."""
    return bool(before != after) if isinstance(before, str) else bool(before == 0 or after < before)


def differences(before: Training, after: Training) -> str:
    """The changed settings, in words; empty if nothing changed."""
    names = [known.name for known in dataclasses.fields(Training)]
    changed = [name for name in names if getattr(before, name) != getattr(after, name)]
    return ", ".join(f"{name} {getattr(after, name)} instead of {getattr(before, name)}" for name in changed)


def keeps_checkpoint(before: Training, after: Training) -> bool:
    """True if a checkpoint made with the one settings can be resumed with the other."""
    shape = ("rank", "alpha", "top_layers", "optimizer")
    return all(getattr(before, name) == getattr(after, name) for name in shape)
