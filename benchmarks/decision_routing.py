"""Quality of routing: against the truth, and in regret against the best action in hindsight.

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

from agent.contract.settings import Decision
from agent.data.formats import Example
from agent.decide.decision_store import DecisionStore
from agent.queue.store import open_existing
from agent.runner.progress import Progress
from agent.scoring.reward import joint
from agent.system.paths import Home

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
    """The first round's choice for each row."""
    with open_existing(home.database) as store:
        rows = store.execute("SELECT example, state, standing, gains FROM choices WHERE round = 1 AND job = 1")
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
        with open_existing(home.database) as store:
            told = DecisionStore(store, 1).outcomes()
        pairs += [(row["expected"], row["gain"]) for row in told if row["action"] == action]
    pairs.sort()
    cut = [pairs[len(pairs) * part // parts : len(pairs) * (part + 1) // parts] for part in range(parts)]
    return [
        {
            "predicted": round(fmean(p for p, _ in part), 3),
            "measured": round(fmean(m for _, m in part), 3),
            "n": len(part),
        }
        for part in cut
        if part
    ]


def routing(boxes: Sequence[dict[str, Home]], rows: Sequence[Row], examples: Sequence[Example]) -> dict[str, Any]:
    """All of this over some seeds, printed; `boxes` are those of the arms by name, seed by seed."""
    costs = Decision()
    confusions, found = [], []
    for arms in boxes:
        chosen = first_choices(arms["neurosymbolic"])
        numeric, remade = (last_rewards(arms[arm], examples) for arm in ("numeric only", "rewrite everything"))
        asked = requests(arms["rewrite everything"], examples)
        net = {i: values(chosen[i], numeric[i], remade[i], asked[i], costs) for i in chosen}
        confusions.append(confusion(rows, chosen))
        found.append(regrets(rows, chosen, net))
    ours = [arms["neurosymbolic"] for arms in boxes]
    figures = {
        "right": [each["right"] for each in confusions],
        "confusion": confusions[0],
        "regret": {way: round(fmean(each[way] for each in found), 4) for way in found[0]},
        "calibration": {action: calibration(ours, action) for action in ("weights", "rewrite")},
    }
    _print(figures)
    return figures


def _print(figures: dict[str, Any]) -> None:
    print(f"\nrouting: both bits right on {figures['right']} of the rows whose truth is known, by seed")
    for bit in ("weights", "rewrite"):
        (left, needless), (missed, met) = figures["confusion"][bit]
        print(f"  {bit} needed: chosen {met}, missed {missed}; not needed: chosen {needless}, left {left}")
    print("mean regret against the best action in hindsight, in reward a row:")
    for way, regret in figures["regret"].items():
        print(f"  {way:<16}{regret:.4f}")
    for action, parts in figures["calibration"].items():
        print(f"calibration, {action}: predicted → measured gain by decile")
        print("  " + ", ".join(f"{part['predicted']:+.2f} → {part['measured']:+.2f}" for part in parts))
