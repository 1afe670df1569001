from __future__ import annotations

import dataclasses
import json
import random
import subprocess
import sys
from typing import Any

import pytest
from checkout import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.decide.classifier import (
    FEATURES,
    Belief,
    Classifier,
    Costs,
    Standing,
    Tally,
    Vector,
    features,
    joint,
    likely_rewrite,
    prior,
)

SIZE = len(FEATURES)
COSTS = Costs(rewrite=0.08, weights=0.02, explore=0.3)
RIGHT = Standing(
    content=1.0,
    style=None,
    likeness=1.0,
    reference_content=1.0,
    reference_style=None,
    loss=0.1,
    loss_before=None,
    kinds=(),
    words=20,
)
WRONG = dataclasses.replace(RIGHT, content=0.0, likeness=0.5, loss=2.0)
"""An answer that says something else than its reference."""
LACKING = dataclasses.replace(WRONG, style=0.0, reference_style=0.0, kinds=("case",))
"""The same, and both break their one constraint."""
UNSTYLED = dataclasses.replace(RIGHT, style=0.0, reference_style=0.0, kinds=("case",))
"""Answer and reference say what they should and break their one constraint."""


def diagonal(variance: float) -> tuple[Vector, ...]:
    return tuple(tuple(variance * (i == j) for j in range(SIZE)) for i in range(SIZE))


def belief(mean: Vector = (0.0,) * SIZE, variance: float = 0.25, noise: float = 0.05) -> Belief:
    return Belief(mean, diagonal(variance), noise)


def sure(one: float) -> Belief:
    """A belief that every example gains as much, beyond doubt."""
    return belief((one, *(0.0,) * (SIZE - 1)), variance=0.0)


def classifier(weights: float = 0.0, rewrite: float = 0.0) -> Classifier:
    return Classifier(sure(weights), sure(rewrite), {})


UNTAUGHT = Classifier(belief(), belief(), {})


def at(name: str, standing: Standing, tallies: dict[str, Tally] | None = None) -> float:
    return features(standing, tallies or {})[FEATURES.index(name)]


def changed(standing: Standing, **fields: Any) -> Standing:
    return dataclasses.replace(standing, **fields)


# ---- features ----


def test_there_is_a_number_for_each_name() -> None:
    """The first is the constant that the others add to."""
    assert len(features(WRONG, {})) == SIZE
    assert at("one", WRONG) == 1.0


@pytest.mark.parametrize(
    ("name", "standings"),
    [
        ("content_gap", [changed(WRONG, content=c) for c in (1.0, 0.7, 0.0)]),
        ("style_gap", [changed(UNSTYLED, style=s) for s in (1.0, 0.5, 0.0)]),
        ("style_gap", [changed(WRONG, likeness=k) for k in (1.0, 0.5, 0.0)]),
        ("reference_gap", [changed(UNSTYLED, reference_style=s) for s in (1.0, 0.5, 0.0)]),
        ("reference_gap", [changed(UNSTYLED, style=s) for s in (1.0, 0.5, 0.0)]),
        ("lift", [changed(WRONG, content=c) for c in (1.0, 0.7, 0.0)]),
        ("lift", [changed(UNSTYLED, reference_style=s) for s in (0.0, 0.5, 1.0)]),
        ("value_loss", [changed(WRONG, loss=loss) for loss in (0.0, 0.1, 2.0, 9.0)]),
        ("loss_change", [changed(WRONG, loss_before=before) for before in (1.0, 2.0, 2.5, 4.0)]),
        ("length", [changed(WRONG, words=count) for count in (1, 20, 199)]),
        ("trained", [changed(WRONG, trained=times) for times in (0, 1, 2, 9)]),
        ("tried", [changed(UNSTYLED, tried=times) for times in (0, 1, 2, 9)]),
    ],
)
def test_a_feature_grows_with_what_it_is_named_after(name: str, standings: list[Standing]) -> None:
    """More gap, more loss, more tries: a larger number, as a person would expect."""
    values = [at(name, standing) for standing in standings]
    assert values == sorted(set(values))


@pytest.mark.parametrize(
    ("name", "standing", "value"),
    [
        ("content_gap", WRONG, 1.0),
        ("content_gap", RIGHT, 0.0),
        ("style_gap", UNSTYLED, 1.0),
        ("style_gap", changed(WRONG, likeness=0.75), 0.25),
        ("style_gap", changed(UNSTYLED, style=1.0, likeness=0.0), 0.0),
        ("reference_gap", WRONG, 0.0),
        ("reference_gap", UNSTYLED, 0.5),
        ("reference_gap", changed(UNSTYLED, style=1.0), 0.0),
        ("lift", WRONG, 1.0),
        ("lift", RIGHT, 0.0),
        ("lift", changed(UNSTYLED, style=1.0), -0.5),
        ("value_loss", changed(WRONG, loss=1.0), 0.5),
        ("value_loss", changed(WRONG, loss=0.0), 0.0),
        ("loss_change", WRONG, 0.0),
        ("loss_change", changed(WRONG, loss_before=2.0), 0.0),
        ("loss_change", changed(WRONG, loss_before=102.0), 1.0),
        ("loss_change", changed(WRONG, loss=102.0, loss_before=2.0), -1.0),
        ("length", changed(WRONG, words=100), 0.5),
        ("length", changed(WRONG, words=2000), 1.0),
        ("trained", changed(WRONG, trained=1), 0.5),
        ("trained", changed(RIGHT, trained=9), 0.0),
        ("tried", changed(UNSTYLED, tried=1), 0.25),
        ("tried", changed(WRONG, tried=9), 0.0),
        ("likely_rewrite", UNSTYLED, 0.25),
        ("likely_rewrite", WRONG, 0.0),
    ],
)
def test_features_of_cases_that_can_be_counted_by_hand(name: str, standing: Standing, value: float) -> None:
    """Tuning in vain counts where the reference is better, rewriting in vain where something can be gained by it."""
    assert at(name, standing) == pytest.approx(value)


SHARE = st.floats(0, 1)
STANDINGS = st.builds(
    Standing,
    content=SHARE,
    style=st.none() | SHARE,
    likeness=SHARE,
    reference_content=SHARE,
    reference_style=st.none() | SHARE,
    loss=st.floats(0, 1e6),
    loss_before=st.none() | st.floats(0, 1e6),
    kinds=st.lists(st.sampled_from(["case", "length", "title"]), max_size=3).map(tuple),
    words=st.integers(0, 10**6),
    trained=st.integers(0, 100),
    tried=st.integers(0, 100),
)


@given(STANDINGS, st.integers(0, 20))
def test_features_are_about_as_large_as_one(standing: Standing, refused: int) -> None:
    """Whatever the losses and counts are, so that no feature drowns the others."""
    assert all(-1 <= value <= 1 for value in features(standing, {"case": Tally(refused, 0.0)}))


def test_the_joint_reward_is_the_mean_where_a_style_is_asked_for() -> None:
    """And the content alone where it is not."""
    assert joint(1.0, 0.5) == 0.75
    assert joint(0.25, None) == 0.25
    assert (UNSTYLED.reward, UNSTYLED.reference_reward) == (0.5, 0.5)
    assert (WRONG.reward, WRONG.reference_reward) == (0.0, 1.0)


# ---- what rewrites of a kind gain ----


def test_with_no_outcomes_a_rewrite_gains_half_of_what_is_missing() -> None:
    """Whatever the kinds are."""
    assert likely_rewrite([], {}) == likely_rewrite(["case"], {}) == likely_rewrite(["case", "title"], {}) == 0.5


def test_the_worst_kind_decides() -> None:
    """A rewrite has to keep all constraints at once."""
    tallies = {"easy": Tally(10, 10), "hard": Tally(10, 0)}
    hard, easy = (likely_rewrite([kind], tallies) for kind in ("hard", "easy"))
    assert hard < 0.2
    assert easy > 0.8
    assert likely_rewrite(["easy", "hard"], tallies) == hard


def test_a_kind_of_few_outcomes_is_shrunk_to_the_average() -> None:
    """By hand: the average is (9 + 1) / (11 + 2), and counts for two outcomes."""
    tallies = {"easy": Tally(10, 9), "new": Tally(1, 0)}
    average = 10 / 13
    assert likely_rewrite(["never seen"], tallies) == pytest.approx(average)
    assert likely_rewrite(["new"], tallies) == pytest.approx(2 * average / 3)
    assert likely_rewrite(["easy"], tallies) == pytest.approx((9 + 2 * average) / 12)
    assert likely_rewrite([], tallies) == pytest.approx(average)


def test_it_rises_with_what_is_gained_and_falls_with_what_is_refused() -> None:
    """Of its own kind most, of others a little."""
    x = features(UNSTYLED, {})
    gained, refused = (UNTAUGHT.learn_from_rewrite(x, ("case",), gain).tallies for gain in (0.5, 0.0))
    for kind in ("case", "other"):
        assert likely_rewrite([kind], refused) < 0.5 < likely_rewrite([kind], gained)
    assert likely_rewrite(["case"], gained) > likely_rewrite(["other"], gained)


@pytest.mark.parametrize(("gain", "share"), [(0.5, 1.0), (0.25, 0.5), (0.9, 1.0), (0.0, 0.0), (-0.3, 0.0)])
def test_a_tally_counts_the_share_of_what_was_missing(gain: float, share: float) -> None:
    """Half a reward was missing; a rewrite that made it worse gained as little as a refused one."""
    tallies = UNTAUGHT.learn_from_rewrite(features(UNSTYLED, {}), ("case", "title"), gain).tallies
    assert tallies == {"case": Tally(1, share), "title": Tally(1, share)}


def test_where_nothing_was_missing_nothing_was_gained() -> None:
    """A rewrite of a reference that is right."""
    tallies = UNTAUGHT.learn_from_rewrite(features(RIGHT, {}), ("case",), 0.5).tallies
    assert tallies == {"case": Tally(1, 0.0)}


# ---- the regression ----


def solved(matrix: list[list[float]], right: list[float]) -> list[float]:
    """The solution of a system of linear equations, by elimination with pivots."""
    rows = [[*row, value] for row, value in zip(matrix, right, strict=True)]
    for i in range(len(rows)):
        best = max(range(i, len(rows)), key=lambda k: abs(rows[k][i]))
        rows[i], rows[best] = rows[best], rows[i]
        for k in range(len(rows)):
            if k != i:
                factor = rows[k][i] / rows[i][i]
                rows[k] = [a - factor * b for a, b in zip(rows[k], rows[i], strict=True)]
    return [row[-1] / row[i] for i, row in enumerate(rows)]


def outcomes(count: int, seed: int = 0) -> list[tuple[Vector, float]]:
    draw = random.Random(seed)
    return [(tuple(draw.uniform(-1, 1) for _ in FEATURES), draw.uniform(-1, 1)) for _ in range(count)]


def taught(start: Belief, seen: list[tuple[Vector, float]]) -> Belief:
    for x, gain in seen:
        start = start.update(x, gain)
    return start


@pytest.mark.parametrize("count", [1, 5, 60])
def test_updates_one_by_one_give_the_posterior_in_closed_form(count: int) -> None:
    """Ridge regression: precision 1 / variance + X'X / noise, by elimination here, whatever the order of outcomes."""
    mean = tuple(0.1 * place for place in range(SIZE))
    seen = outcomes(count)
    precision = [[(i == j) / 0.25 + sum(x[i] * x[j] for x, _ in seen) / 0.05 for j in range(SIZE)] for i in range(SIZE)]
    right = [mean[i] / 0.25 + sum(x[i] * gain for x, gain in seen) / 0.05 for i in range(SIZE)]
    for order in (seen, seen[::-1]):
        after = taught(belief(mean), order)
        assert after.mean == pytest.approx(solved(precision, right))
        for j, column in enumerate(after.covariance):
            assert column == pytest.approx(solved(precision, [float(i == j) for i in range(SIZE)]))
        assert after.noise == 0.05


def test_many_outcomes_outvote_the_prior() -> None:
    """A prior that is quite sure of a gain of one yields to thirty losses."""
    x = features(WRONG, {})
    start = belief((1.0, *(0.0,) * (SIZE - 1)), variance=0.02)
    assert start.expectation(x) == pytest.approx(1.0)
    after = taught(start, [(x, -0.5)] * 30)
    assert after.expectation(x) == pytest.approx(-0.5, abs=0.1)


def test_one_outcome_moves_a_belief_towards_it_and_not_past_it() -> None:
    """By less, the surer the belief was."""
    x = features(WRONG, {})
    moved = [belief(variance=variance).update(x, 1.0).expectation(x) for variance in (0.001, 0.05, 0.25)]
    assert 0 < moved[0] < moved[1] < moved[2] < 1


VECTORS = st.tuples(*[st.floats(-1, 1)] * SIZE)


@settings(max_examples=50)
@given(VECTORS, st.lists(st.tuples(VECTORS, st.floats(-1, 1)), max_size=8))
def test_doubt_never_rises(x: Vector, seen: list[tuple[Vector, float]]) -> None:
    """Whatever is learned, and however often."""
    now = belief()
    for each, gain in seen:
        after = now.update(each, gain)
        assert after.doubt(x) <= now.doubt(x) + 1e-9
        now = after


def test_doubt_shrinks_with_each_outcome_and_stays_where_nothing_was_seen() -> None:
    """Ten outcomes of one feature say nothing of another."""
    x, other = (tuple(float(i == place) for i in range(SIZE)) for place in (1, 2))
    now, doubts = belief(), [belief().doubt(x)]
    for _ in range(10):
        now = now.update(x, 0.3)
        doubts.append(now.doubt(x))
    assert doubts[0] == pytest.approx(0.5)  # the square root of the variance
    assert doubts == sorted(set(doubts), reverse=True)
    assert now.doubt(other) == pytest.approx(0.5)


def test_doubt_stays_a_number_after_very_many_outcomes() -> None:
    """Rounding must not leave a negative variance."""
    now = taught(belief(noise=1e-6), outcomes(20, seed=1) * 100)
    assert all(0 <= now.doubt(x) < 0.01 for x, _ in outcomes(20, seed=2))


# ---- the choice ----


@pytest.mark.parametrize(
    ("weights", "rewrite", "state"),
    [(0.03, 0.09, "both"), (0.03, 0.07, "weights"), (0.01, 0.09, "rewrite"), (0.01, 0.07, "neither")],
)
def test_each_bit_is_set_by_its_own_gain_and_cost(weights: float, rewrite: float, state: str) -> None:
    """Costs are 0.02 and 0.08: two bits, and neither knows of the other."""
    choice = classifier(weights, rewrite).choose(LACKING, COSTS)
    assert choice.state == state
    assert (choice.wants_tuning, choice.wants_rewrite) == (weights > 0.02, rewrite > 0.08)
    assert (choice.weights.expected, choice.rewrite.expected) == (pytest.approx(weights), pytest.approx(rewrite))
    assert (choice.weights.cost, choice.rewrite.cost) == (0.02, 0.08)
    assert choice.features == features(LACKING, {})


def test_a_gain_that_only_equals_its_cost_is_not_worth_it() -> None:
    """Doing nothing is simpler."""
    assert classifier(0.02, 0.08).choose(WRONG, COSTS).state == "neither"


def test_an_answer_that_is_right_needs_nothing() -> None:
    """However much is hoped for; what is nearly right does."""
    choice = classifier(1.0, 1.0).choose(RIGHT, COSTS)
    assert (choice.state, choice.wants_tuning, choice.wants_rewrite) == ("satisfied", False, False)
    for short in (changed(RIGHT, content=0.9), changed(RIGHT, style=0.9, reference_style=1.0)):
        assert classifier(1.0, 1.0).choose(short, COSTS).state == "weights"


def test_no_action_gains_more_than_there_is_to_gain() -> None:
    """Where the reference obeys, a rewrite adds nothing, whatever is hoped; unless no check sees what it is for."""
    assert classifier(9.0, 9.0).choose(WRONG, COSTS).state == "weights"
    assert classifier(9.0, 9.0).choose(WRONG, COSTS, seen=False).state == "both"
    choice = classifier(9.0, 9.0).choose(LACKING, COSTS)
    assert (choice.weights.expected, choice.rewrite.expected) == (1.0, 0.5)


@given(STANDINGS, st.floats(0, 3), st.floats(0, 3), st.integers(0, 2**16))
def test_exploring_only_ever_adds(standing: Standing, less: float, more: float, seed: int) -> None:
    """What is chosen with little optimism is chosen with more; what is expected does not change by it."""
    seen = outcomes(5, seed)
    one = Classifier(taught(belief(), seen), taught(belief(), seen[::-1]), {})
    low, high = sorted((less, more))
    bold, shy = (one.choose(standing, dataclasses.replace(COSTS, explore=explore)) for explore in (high, low))
    assert bold.wants_tuning >= shy.wants_tuning
    assert bold.wants_rewrite >= shy.wants_rewrite
    for action in ("weights", "rewrite"):
        assert getattr(shy, action).hoped <= getattr(bold, action).hoped
        assert getattr(shy, action).expected == getattr(bold, action).expected <= getattr(shy, action).hoped


def test_what_is_not_known_is_tried() -> None:
    """Without any outcome both actions are hoped to pay, and without exploring neither is."""
    assert UNTAUGHT.choose(LACKING, COSTS).state == "both"
    assert UNTAUGHT.choose(LACKING, dataclasses.replace(COSTS, explore=0.0)).state == "neither"


def test_a_kind_that_is_always_refused_is_given_up_and_another_is_not() -> None:
    """After a dozen rewrites of each, from no knowledge; the two differ in nothing but their constraint's kind."""
    now, bad, good = UNTAUGHT, changed(UNSTYLED, kinds=("bad",)), changed(UNSTYLED, kinds=("good",))
    assert now.choose(bad, COSTS).wants_rewrite
    for _ in range(12):
        now = now.learn_from_rewrite(now.choose(bad, COSTS).features, ("bad",), 0.0)
        now = now.learn_from_rewrite(now.choose(good, COSTS).features, ("good",), 0.5)
    assert not now.choose(bad, COSTS).wants_rewrite
    assert now.choose(good, COSTS).wants_rewrite


def test_an_outcome_teaches_its_own_action_only() -> None:
    """And the classifier it came from stays as it was."""
    x = features(UNSTYLED, {})
    tuned = UNTAUGHT.learn_from_tuning(x, 0.5)
    assert tuned.weights == UNTAUGHT.weights.update(x, 0.5) != UNTAUGHT.weights
    assert (tuned.rewrite, tuned.tallies) == (UNTAUGHT.rewrite, {})
    remade = tuned.learn_from_rewrite(x, ("case",), 0.25)
    assert remade.rewrite == UNTAUGHT.rewrite.update(x, 0.25) != UNTAUGHT.rewrite
    assert remade.weights == tuned.weights
    assert tuned.tallies == {}


# ---- on the disk ----


def test_a_classifier_survives_the_disk() -> None:
    """To the last digit, so that a job that is resumed chooses what it would have chosen."""
    one = UNTAUGHT.learn_from_tuning(features(WRONG, {}), 0.3).learn_from_rewrite(
        features(UNSTYLED, {}), ("case",), 0.1
    )
    again = Classifier.from_json(json.loads(json.dumps(one.to_json(), allow_nan=False)))
    assert again == one
    assert again.choose(UNSTYLED, COSTS) == one.choose(UNSTYLED, COSTS)


@pytest.mark.parametrize("names", [FEATURES[:-1], (*FEATURES, "more"), FEATURES[::-1]])
def test_a_classifier_of_other_features_is_refused(names: tuple[str, ...]) -> None:
    """Its coefficients would be multiplied with the wrong numbers."""
    record = {**UNTAUGHT.to_json(), "features": list(names)}
    with pytest.raises(ValueError, match="has the features"):
        Classifier.from_json(record)


def test_the_prior_that_ships_can_choose() -> None:
    """It is of these features, symmetric, unsure of something, and leaves alone what is right."""
    shipped = prior()
    assert shipped.choose(RIGHT, COSTS).state == "satisfied"
    for each in (shipped.weights, shipped.rewrite):
        assert len(each.mean) == len(each.covariance) == SIZE
        for i, row in enumerate(each.covariance):
            assert row == pytest.approx([column[i] for column in each.covariance])
        assert each.noise > 0
        assert each.doubt(features(WRONG, {})) > 0


def test_choosing_costs_next_to_nothing() -> None:
    """A few hundred calls of Python's a row: some tenths of a millisecond, on the slowest of boxes a few."""
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    sys.setprofile(count)
    UNTAUGHT.choose(UNSTYLED, COSTS)
    sys.setprofile(None)
    assert 0 < calls < 2_000


@pytest.mark.process
def test_the_classifier_needs_nothing_heavy() -> None:
    """It runs in the loop, which is torch-free."""
    code = "import sys; import agent.decide.classifier; print({'torch', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
