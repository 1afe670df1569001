"""How well rows were routed: against the truth, and in regret against the best action in hindsight.

The truth is known by construction: an invented fact needs the weights, one that the base model knows and that is asked
plainly does not; a reference that breaks its constraint needs a rewrite. In hindsight, the net value of an action on a
training row is the joint reward of the model's answer after it, less before, less the action's cost:

    nothing   0
    weights   the reward after "numeric only"
    both      the reward after "rewrite everything", the row's requests paid for

Nobody rewrites without tuning: a rewrite that is not learned changes no answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from agent.classifier import joint
from agent.decision_store import DecisionStore
from agent.home import Home
from agent.progress import Progress
from agent.settings import Decision
from agent.shapes import Example
from agent.store import Store, open_existing

Row = dict[str, Any]


@dataclass(frozen=True)
class Values:
    """Net values of the actions on one row, in reward."""

    weights: float
    both: float

    def of(self, action: str) -> float:
        """The value of an action by the state that leads to it."""
        return {"weights": self.weights, "both": self.both, "rewrite": self.both}.get(action, 0.0)

    @property
    def best(self) -> float:
        """That of the best action in hindsight."""
        return max(0.0, self.weights, self.both)


def first_choices(home: Home) -> dict[str, Row]:
    """What the first round chose for each row."""
    with open_existing(home.database) as store:
        rows = store.rows("SELECT example, state, standing, gains FROM choices WHERE round = 1 AND job = 1")
    return {row["example"]: {**row, "standing": json.loads(row["standing"])} for row in rows}


def last_rewards(home: Home, examples: Sequence[Example]) -> dict[str, float]:
    """Joint reward of each training row's answer when an arm was over."""
    progress = Progress.load(home.run(1) / "progress.json", examples)
    return {name: row.standing.reward for name, row in progress.rows.items()}


def requests(home: Home, examples: Sequence[Example]) -> dict[str, int]:
    """Requests that each row took in an arm."""
    progress = Progress.load(home.run(1) / "progress.json", examples)
    return {name: row.rewrite.steps if row.rewrite else 0 for name, row in progress.rows.items()}


def values(before: Row, numeric: float, remade: float, asked: int, costs: Decision) -> Values:
    """Net values for one row, from its rewards before, after numeric only, and after rewriting everything."""
    standing = before["standing"]
    was = joint(standing["content"], standing["style"])
    tuned = numeric - was - costs.weights_cost
    rewriting = costs.rewrite_cost if asked else 0.0
    return Values(tuned, remade - was - costs.weights_cost - rewriting)


def rule(row: Row) -> str:
    """The obvious rule: a constraint fails → rewrite (and learn the rewrite), else weights."""
    return "both" if row["constraints"] and not row["obeys"] else "weights"


def confusion(rows: Sequence[Row], chosen: dict[str, Row]) -> dict[str, Any]:
    """Both bits against the truth: counts of [truth][chosen], and the share of rows with both right."""
    bits = {"weights": [[0, 0], [0, 0]], "rewrite": [[0, 0], [0, 0]]}
    right = known = 0
    for row in rows:
        state = chosen[row["id"]]["state"]
        tunes, remakes = state in {"weights", "both"}, state in {"rewrite", "both"}
        needs_rewrite = bool(row["constraints"]) and not row["obeys"]
        bits["rewrite"][needs_rewrite][remakes] += 1
        if row["invented"] or not row["constraints"]:
            bits["weights"][row["invented"]][tunes] += 1
            known += 1
            right += (tunes, remakes) == (row["invented"], needs_rewrite)
    return {"known": known, "right": round(right / known, 4), **bits}


def regrets(rows: Sequence[Row], chosen: dict[str, Row], found: dict[str, Values]) -> dict[str, float]:
    """Mean regret of several ways to choose, in reward a row."""
    ways: dict[str, Callable[[Row], str]] = {
        "ours": lambda row: str(chosen[row["id"]]["state"]),
        "obvious rule": rule,
        "always weights": lambda _: "weights",
        "always both": lambda _: "both",
        "nothing": lambda _: "neither",
    }
    return {
        name: round(fmean(found[row["id"]].best - found[row["id"]].of(way(row)) for row in rows), 4)
        for name, way in ways.items()
    }


def calibration(homes: Sequence[Home], action: str, parts: int = 10) -> list[dict[str, float]]:
    """Predicted against measured gain of an action, in equal parts by what was predicted."""
    pairs: list[tuple[float, float]] = []
    for home in homes:
        with Store(home.database) as store:
            told = DecisionStore(store, 1).outcomes()
        pairs += [(row["expected"], row["gain"]) for row in told if row["action"] == action]
    pairs.sort()
    size = max(1, len(pairs) // parts)
    cut = [pairs[start : start + size] for start in range(0, size * parts, size)]
    cut[-1] += pairs[size * parts :]
    return [
        {
            "predicted": round(fmean(p for p, _ in part), 3),
            "measured": round(fmean(m for _, m in part), 3),
            "n": len(part),
        }
        for part in cut
        if part
    ]
