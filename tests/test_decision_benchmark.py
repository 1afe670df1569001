"""The decision benchmark's own arithmetic: intervals, joint reward, confusion, regret."""

from __future__ import annotations

from typing import Any

import pytest

from agent.contract.settings import Decision
from agent.data.formats import Example, detect, to_example
from benchmarks.decision_report import interval, joint_reward, scored
from benchmarks.decision_routing import Values, confusion, regrets, rule, values

COMMA = {"id": "punctuation:no_comma", "kwargs": {}}


def row(name: str, *, invented: bool = True, constrained: bool = False, obeys: bool = True) -> dict[str, Any]:
    return {
        "id": name,
        "messages": [{"role": "user", "content": "Which?"}, {"role": "assistant", "content": "Port 47."}],
        "answer": "47",
        "constraints": [COMMA] if constrained else [],
        "invented": invented,
        "obeys": obeys,
    }


def judged(record: dict[str, Any]) -> Example:
    return to_example(record, detect(record), 1)


def chosen(state: str, content: float = 0.0, style: float | None = None) -> dict[str, Any]:
    return {"state": state, "standing": {"content": content, "style": style}}


def test_joint_reward_is_content_right_and_every_constraint_kept() -> None:
    """Half a reward is none."""
    truth = {"a": judged(row("a", constrained=True)), "b": judged(row("b"))}
    runs = [{"answers": [{"id": "a", "text": "So, 47."}, {"id": "b", "text": "So, 47."}]}]
    assert joint_reward(scored(runs, truth)) == 0.5
    runs = [{"answers": [{"id": "a", "text": "47."}, {"id": "b", "text": "So, 48."}]}]
    assert joint_reward(scored(runs, truth)) == 0.5


def test_an_interval_holds_its_mean_and_is_wider_for_fewer_prompts() -> None:
    """In per cent, over prompts and seeds."""
    few, many = interval([[1.0], [0.0]] * 5), interval([[1.0], [0.0]] * 50)
    assert few[0] == many[0] == 50.0
    assert few[1] < many[1] < 50.0 < many[2] < few[2]


def test_seeds_that_disagree_widen_an_interval() -> None:
    """What a seed changes is noise too."""
    agree, differ = interval([[0.5, 0.5]] * 20), interval([[1.0, 0.0]] * 20)
    assert agree == [50.0, 50.0, 50.0]
    assert differ[1:] == [0.0, 100.0]


def test_values_are_net_of_cost() -> None:
    """A rewrite is paid for only where it was asked for."""
    costs = Decision(weights_cost=0.1, rewrite_cost=0.2)
    before = chosen("both", content=0.0, style=1.0)
    assert values(before, numeric=0.75, remade=1.0, asked=2, costs=costs) == Values(
        pytest.approx(0.15), pytest.approx(0.2)
    )
    assert values(before, numeric=0.75, remade=1.0, asked=0, costs=costs).both == pytest.approx(0.4)


def test_regret_is_what_the_best_action_would_have_added() -> None:
    """Nothing is an action too, and has value 0."""
    rows = [row("a"), row("b", constrained=True, obeys=False)]
    net = {"a": Values(-0.1, -0.3), "b": Values(0.2, 0.6)}
    picked = {"a": chosen("satisfied"), "b": chosen("both")}
    found = regrets(rows, picked, net)
    assert found["ours"] == 0.0
    assert found["obvious rule"] == pytest.approx(0.05)
    assert found["nothing"] == pytest.approx(0.3)


def test_the_rule_rewrites_what_fails_and_tunes_on_the_rest() -> None:
    """Whatever the model knows."""
    assert rule(row("a", invented=False)) == "weights"
    assert rule(row("b", constrained=True, obeys=False)) == "both"
    assert rule(row("c", constrained=True)) == "weights"


def test_the_confusion_counts_rows_whose_truth_is_known() -> None:
    """A known fact asked under a constraint may need the weights for its form: it counts for the rewrite bit alone."""
    rows = [row("a"), row("b", invented=False), row("c", invented=False, constrained=True, obeys=False)]
    found = confusion(rows, {"a": chosen("weights"), "b": chosen("weights"), "c": chosen("both")})
    assert (found["known"], found["right"]) == (2, 0.5)
    assert found["weights"] == [[0, 1], [0, 1]]
    assert found["rewrite"] == [[2, 0], [0, 1]]
