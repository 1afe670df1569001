"""Fit the classifier's prior: `python -m benchmarks.fit_prior --state DIR`; writes agent/prior.json.

Outcomes are measured on examples/mixed.jsonl, whose facts are not those of the decision benchmark: a job that throws a
coin for each bit of each row tunes and rewrites with recorded answers, and keeps what each action gained, as any job
does. Two Bayesian linear regressions are fitted to them; so that a box can outvote them, they are shipped as if they
had seen no more than `STRENGTH` outcomes.

`--state` is a folder with a prepared base model (`nslora-agent init --state DIR`). Takes about 7 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agent.decide.classifier import FEATURES, PRIOR, Belief, Classifier, Tally
from agent.decide.decision_store import DecisionStore, Outcome
from agent.queue.store import Store
from agent.system.config import DEFAULT_BASE
from agent.system.paths import Home
from benchmarks.arms import RANDOM_ROUTING
from benchmarks.boxes import box, run_job

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "examples" / "mixed.jsonl"
ANSWERS = ROOT / "examples" / "rewrites.jsonl"
SEEDS = (0, 1)
STRENGTH = 60
"""Outcomes that the shipped belief counts for."""
WIDE = 0.25
"""Variance of each coefficient before anything is known."""
AGAIN = {"weights": "trained", "rewrite": "tried"}
"""The features that say that the action was taken before in vain. Random routing hardly does it again, so that
there is nothing to fit: it is believed to gain half of what it would the first time (coefficient -1), until a
box sees otherwise."""
KINDS_COUNT = 3.0
"""Rewrites that the shipped tally of a kind of constraint counts for."""


def measured(state: Path, seed: int) -> list[Outcome]:
    """The outcomes of one job with random routing."""
    home = box(state / f"prior-{seed}", Home(state).model(DEFAULT_BASE), [ANSWERS])
    settings = {"seed": seed, "rounds": 4}
    job, ended = run_job(home, DATA, "neurosymbolic", settings, RANDOM_ROUTING)
    print(f"seed {seed}: {ended}", flush=True)
    with Store(home.database) as store:
        rows = DecisionStore(store, job.id).outcomes()
    names = ("example", "action", "expected", "gain", "told")
    return [Outcome(features=tuple(r["features"]), kinds=tuple(r["kinds"]), **{n: r[n] for n in names}) for r in rows]


def fitted(outcomes: Sequence[Outcome], action: str) -> Belief:
    """The regression on an action's outcomes, its noise that of the residuals of a first fit."""
    flat = tuple(tuple(WIDE * (i == j) for j in range(len(FEATURES))) for i in range(len(FEATURES)))
    belief = Belief(tuple(-1.0 * (name == AGAIN[action]) for name in FEATURES), flat, 0.05)
    first = _after(belief, outcomes)
    noise = statistics.fmean((each.gain - first.expectation(each.features)) ** 2 for each in outcomes)
    last = _after(Belief(belief.mean, flat, noise), outcomes)
    weaker = max(1.0, len(outcomes) / STRENGTH)
    covariance = tuple(tuple(weaker * value for value in row) for row in last.covariance)
    return Belief(last.mean, covariance, noise)


def _after(belief: Belief, outcomes: Sequence[Outcome]) -> Belief:
    for each in outcomes:
        belief = belief.update(each.features, each.gain)
    return belief


def tallies(outcomes: Sequence[Outcome]) -> dict[str, Tally]:
    """Success of rewrites by kind of constraint, weakened to a few rewrites each."""
    found: dict[str, list[float]] = {}
    for each in outcomes:
        gap = each.features[FEATURES.index("reference_gap")]
        for kind in each.kinds:
            found.setdefault(kind, []).append(max(0.0, min(1.0, each.gain / gap)) if gap > 0 else 0.0)
    return {
        kind: Tally(min(KINDS_COUNT, len(shares)), min(KINDS_COUNT, len(shares)) * statistics.fmean(shares))
        for kind, shares in found.items()
    }


def rounded(value: Any) -> Any:
    """Numbers with six digits, however deep."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: rounded(each) for key, each in value.items()}
    return [rounded(each) for each in value] if isinstance(value, (list, tuple)) else value


def main() -> None:
    """Measure, fit, write and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", type=Path, required=True, help="folder with a prepared base model")
    arguments = parser.parse_args()
    outcomes = [outcome for seed in SEEDS for outcome in measured(arguments.state, seed)]
    by = {action: [each for each in outcomes if each.action == action] for action in AGAIN}
    classifier = Classifier(*(fitted(by[action], action) for action in AGAIN), tallies(by["rewrite"]))
    PRIOR.write_text(json.dumps(rounded(classifier.to_json()), indent=1) + "\n")
    for action, belief in (("weights", classifier.weights), ("rewrite", classifier.rewrite)):
        print(f"{action}: {len(by[action])} outcomes, noise {belief.noise:.4f}")
        print("  " + ", ".join(f"{name} {value:+.2f}" for name, value in zip(FEATURES, belief.mean, strict=True)))
    print({kind: f"{tally.gained / tally.offered:.2f}" for kind, tally in classifier.tallies.items()})


if __name__ == "__main__":
    main()
