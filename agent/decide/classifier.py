"""The reward-based classifier: what would tuning the weights on an example gain, and what would rewriting it?

Two Bayesian linear regressions over the same cheap features (Bishop, Pattern Recognition and Machine Learning, 3.3)
predict the reward that each action gains; an action is taken where the gain, at its optimistic end as in LinUCB (arXiv
1003.0146, equation 5), exceeds its cost. Two bits and not three classes: many examples need both, some neither.

The prior is fitted by benchmarks/fit_prior.py on outcomes measured on other data, and ships as prior.json; every
outcome on the box updates the posterior. Pure Python: a prediction takes microseconds.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.scoring.reward import joint

FEATURES = (
    "one",
    "content_gap",
    "style_gap",
    "reference_gap",
    "lift",
    "value_loss",
    "loss_change",
    "length",
    "trained",
    "tried",
    "likely_rewrite",
)
"""Names of the features, in order; `features` says what they are."""
PRIOR = Path(__file__).with_name("prior.json")
LONG = 200.0
"""Words of a reference from which on it counts as long."""
ASSUMED = 2.0
"""Outcomes that the average acceptance of rewrites counts for, where a kind of constraint has few of its own."""

Vector = tuple[float, ...]


@dataclass(frozen=True)
class Standing:
    """An example as the classifier knows it before a choice.

    Rewards of the model's answer and of the reference in [0, 1]; `style` and `reference_style` are None where the
    example has no constraints, and `likeness`, how much the answer looks like the references, stands in. Losses in
    nats per token, of value tokens where it has a value; `loss_before` is that of the last time, None at first.
    `trained` counts numeric phases, `tried` rewrites offered.
    """

    content: float
    style: float | None
    likeness: float
    reference_content: float
    reference_style: float | None
    loss: float
    loss_before: float | None
    kinds: tuple[str, ...]
    words: int
    trained: int = 0
    tried: int = 0

    @property
    def reward(self) -> float:
        """Joint reward of the model's answer."""
        return joint(self.content, self.style)

    @property
    def reference_reward(self) -> float:
        """Joint reward of the reference: what tuning the weights on it can reach."""
        return joint(self.reference_content, self.reference_style)


@dataclass(frozen=True)
class Tally:
    """The rewrites offered for a kind of constraint, and the share of the missing reward they gained."""

    offered: float = 0.0
    gained: float = 0.0


Tallies = Mapping[str, Tally]


def likely_rewrite(kinds: Iterable[str], tallies: Tallies) -> float:
    """Expected share of the missing reward that a rewrite gains: the worst of the kinds, shrunk to the average."""
    # fsum, because a resumed job has the kinds in another order.
    offered = math.fsum(tally.offered for tally in tallies.values())
    average = (math.fsum(tally.gained for tally in tallies.values()) + 1) / (offered + 2)
    each = [tallies.get(kind, Tally()) for kind in kinds] or [Tally()]
    return min((tally.gained + ASSUMED * average) / (tally.offered + ASSUMED) for tally in each)


def features(standing: Standing, tallies: Tallies) -> Vector:
    """The features in the order of FEATURES, each about as large as 1.

    content_gap and style_gap are what the answer lacks, reference_gap is what rewriting could add to the better of
    answer and reference, lift what the reference is better than the answer; value_loss and loss_change are squashed
    into [-1, 1]; trained and tried weigh lift and reference_gap by how often they were gone for in vain.
    """
    gap = 1 - max(standing.reward, standing.reference_reward)
    lift = standing.reference_reward - standing.reward
    fall = 0.0 if standing.loss_before is None else standing.loss_before - standing.loss
    return (
        1.0,
        1 - standing.content,
        1 - (standing.likeness if standing.style is None else standing.style),
        gap,
        lift,
        standing.loss / (1 + standing.loss),
        math.tanh(fall),
        min(1.0, standing.words / LONG),
        lift * standing.trained / (1 + standing.trained),
        gap * standing.tried / (1 + standing.tried),
        gap * likely_rewrite(standing.kinds, tallies),
    )


@dataclass(frozen=True)
class Belief:
    """A Bayesian linear regression: mean and covariance of its coefficients, and the variance of the noise."""

    mean: Vector
    covariance: tuple[Vector, ...]
    noise: float

    def expectation(self, x: Vector) -> float:
        """The predicted gain."""
        return sum(w * v for w, v in zip(self.mean, x, strict=True))

    def doubt(self, x: Vector) -> float:
        """Standard deviation of the predicted gain, the noise of a single outcome left out."""
        return math.sqrt(max(0.0, sum(v * s for v, s in zip(x, self._spread(x), strict=True))))

    def update(self, x: Vector, gain: float) -> Belief:
        """The belief after one outcome, by the Sherman-Morrison formula."""
        spread = self._spread(x)
        scale = self.noise + sum(v * s for v, s in zip(x, spread, strict=True))
        surprise = (gain - self.expectation(x)) / scale
        return Belief(
            tuple(w + s * surprise for w, s in zip(self.mean, spread, strict=True)),
            tuple(
                tuple(c - a * b / scale for c, b in zip(row, spread, strict=True))
                for row, a in zip(self.covariance, spread, strict=True)
            ),
            self.noise,
        )

    def _spread(self, x: Vector) -> list[float]:
        return [sum(c * v for c, v in zip(row, x, strict=True)) for row in self.covariance]


@dataclass(frozen=True)
class Gains:
    """Expected reward gain of one action on an example, its optimistic end, and its cost in reward."""

    expected: float
    hoped: float
    cost: float

    @property
    def worth_it(self) -> bool:
        """True if the action pays at its optimistic end."""
        return self.hoped > self.cost

    def at_most(self, gain: float) -> Gains:
        """The same where no more than `gain` is to be had."""
        return Gains(min(self.expected, gain), min(self.hoped, gain), self.cost)


@dataclass(frozen=True)
class Costs:
    """The costs, in rewards, of one rewrite and of tuning on one example for a phase."""

    rewrite: float
    weights: float
    explore: float
    """Standard deviations of its doubt by which a gain is taken to be better than expected."""


@dataclass(frozen=True)
class Choice:
    """The two bits for one example, and what they rest on."""

    state: str
    """satisfied, weights, rewrite, both or neither"""
    features: Vector
    weights: Gains
    rewrite: Gains

    @property
    def wants_tuning(self) -> bool:
        """True if the weights should be tuned on the example."""
        return self.state in {"weights", "both"}

    @property
    def wants_rewrite(self) -> bool:
        """True if the example should be rewritten."""
        return self.state in {"rewrite", "both"}


@dataclass(frozen=True)
class Classifier:
    """Both beliefs and the tallies by kind of constraint; every method returns values, nothing changes in place."""

    weights: Belief
    rewrite: Belief
    tallies: Tallies

    def choose(self, standing: Standing, costs: Costs, *, seen: bool = True) -> Choice:
        """The choice for an example: nothing for one that is right, else each action that is worth its cost.

        No action gains more than there is to gain. `seen` is False where a rewrite is for a style that no check of ours
        measures: then the reward cannot say how much that is.
        """
        x = features(standing, self.tallies)
        gap = x[FEATURES.index("reference_gap")] if seen else math.inf
        weights = self._gains(self.weights, x, costs.weights, costs.explore).at_most(1 - standing.reward)
        rewrite = self._gains(self.rewrite, x, costs.rewrite, costs.explore).at_most(gap)
        if standing.reward >= 1:
            return Choice("satisfied", x, weights, rewrite)
        states = {(1, 1): "both", (1, 0): "weights", (0, 1): "rewrite", (0, 0): "neither"}
        return Choice(states[weights.worth_it, rewrite.worth_it], x, weights, rewrite)

    @staticmethod
    def _gains(belief: Belief, x: Vector, cost: float, explore: float) -> Gains:
        expected = belief.expectation(x)
        return Gains(expected, expected + explore * belief.doubt(x), cost)

    def learn_from_tuning(self, x: Vector, gain: float) -> Classifier:
        """After an example's reward rose by `gain` (or fell) in a numeric phase."""
        return Classifier(self.weights.update(x, gain), self.rewrite, self.tallies)

    def learn_from_rewrite(self, x: Vector, kinds: Sequence[str], gain: float) -> Classifier:
        """After a rewrite raised the example's reference by `gain` (or lowered it), 0 if it was refused."""
        gap = x[FEATURES.index("reference_gap")]
        share = max(0.0, min(1.0, gain / gap)) if gap > 0 else 0.0
        tallies = dict(self.tallies)
        for kind in kinds:
            old = tallies.get(kind, Tally())
            tallies[kind] = Tally(old.offered + 1, old.gained + share)
        return Classifier(self.weights, self.rewrite.update(x, gain), tallies)

    def to_json(self) -> dict[str, Any]:
        """The classifier as `from_json` takes it."""
        tallies = {kind: [tally.offered, tally.gained] for kind, tally in self.tallies.items()}
        return {
            "features": FEATURES,
            "weights": vars(self.weights),
            "rewrite": vars(self.rewrite),
            "tallies": tallies,
        }

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Classifier:
        """The classifier that `to_json` wrote. Raises ValueError where it is of other features."""
        if tuple(record["features"]) != FEATURES:
            raise ValueError(f"the classifier has the features {record['features']}, expected {list(FEATURES)}")
        tallies = {kind: Tally(*numbers) for kind, numbers in record["tallies"].items()}
        return cls(_belief(record["weights"]), _belief(record["rewrite"]), tallies)


def _belief(record: dict[str, Any]) -> Belief:
    return Belief(tuple(record["mean"]), tuple(map(tuple, record["covariance"])), record["noise"])


def prior() -> Classifier:
    """The classifier as it ships."""
    return Classifier.from_json(json.loads(PRIOR.read_bytes()))
