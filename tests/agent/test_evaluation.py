from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from agent.contract.settings import Training
from agent.scoring.evaluation import Evaluation, model_card
from agent.scoring.gate import Measured, judge


def about(before: Evaluation, after: Evaluation) -> dict[str, Any]:
    figures = {
        "before": before.means,
        "after": after.means,
        "train_rows": 90,
        "held_out_rows": 10,
        "steps": 60,
        "tokens": 12_345,
        "train_seconds": 61.7,
        "tokens_per_s": 200.1,
        "peak_rss_mb": 812.3,
    }
    return {
        "job": 4,
        "mode": "numeric",
        "file": "/data/pumps.jsonl",
        "parent": 2,
        "base": "smollm2-135m-instruct",
        "software": "0.1.0",
        "libraries": {"torch": "2.13.0+cpu", "peft": "0.21.2"},
        "settings": dataclasses.asdict(Training(rank=8)),
        "verdict": {"reason": "Promoted: the loss fell."},
        "figures": figures,
    }


def test_means_are_taken_over_the_rows_and_there_is_none_of_nothing() -> None:
    """Plain text has losses but no rewards; a job without held-out rows has neither."""
    assert Evaluation([0.0, 1.0, 1.0], [None] * 3, [2.0, 1.0], []).means == {"content": 0.6667, "loss": 1.5}
    assert Evaluation([], [], [2.0], []).means == {"content": None, "loss": 2.0}
    assert Evaluation([], [], [], []).means == {"content": None, "loss": None}


STYLED = Evaluation(
    content=[0.0, 1.0, 1.0],
    style=[1.0, None, 0.5],
    losses=[2.0, 3.0, 4.0, 5.0],
    answers=[{"id": name, "text": "über"} for name in "abc"],
    kinds=[["case"], [], ["title", "case"]],
    likeness=[0.25, 0.5, 0.75],
    earlier={"held-out rows of job 3": [1.0, 0.0]},
)
"""Three rows with a prompt, the second without constraints, and one of plain text."""


def test_with_constraints_a_reward_is_the_mean_of_content_and_style() -> None:
    """A row without constraints is judged by its content alone; the means are told apart."""
    assert STYLED.rewards == (0.5, 1.0, 0.75)
    assert STYLED.means == {"content": 0.6667, "style": 0.75, "loss": 3.5}


def test_the_gate_gets_every_row_in_order() -> None:
    """Not the means: it compares row by row. The metric is named after what it is made of."""
    plain = Evaluation([0.5, 1.0], [None, None], [2.0, 3.0], []).measurement
    assert plain == Measured((0.5, 1.0), (2.0, 3.0), "content reward", {"content": (0.5, 1.0)})
    assert STYLED.measurement == Measured(
        (0.5, 1.0, 0.75), (2.0, 3.0, 4.0, 5.0), "mean of content and style reward", STYLED.slices
    )


def test_slices_are_what_must_not_fall() -> None:
    """Content, likeness, style where there are constraints, the rewards of each kind of them, and earlier jobs."""
    assert STYLED.slices == {
        "content": (0.0, 1.0, 1.0),
        "likeness": (0.5,),
        "style": (1.0, 0.5),
        "case": (0.5, 0.75),
        "title": (0.75,),
        "held-out rows of job 3": (1.0, 0.0),
    }


def test_a_row_with_two_constraints_of_a_kind_is_one_row_of_the_slice() -> None:
    """The gate tolerates one row that falls, not two halves of it."""
    twice = dataclasses.replace(STYLED, kinds=[["case", "case"], [], []])
    assert twice.slices["case"] == (0.5,)


def test_rows_that_do_not_belong_together_are_a_mistake_of_the_caller() -> None:
    """A slice of the wrong rows would judge the wrong thing."""
    with pytest.raises(ValueError, match="shorter"):
        _ = dataclasses.replace(STYLED, kinds=[["case"]]).slices


def test_an_evaluation_survives_the_disk() -> None:
    """A second attempt reads what the first one measured, and judges by the same."""
    again = Evaluation(**json.loads(json.dumps(dataclasses.asdict(STYLED), allow_nan=False)))
    assert again == STYLED
    assert again.measurement == STYLED.measurement


def test_an_evaluation_of_an_older_version_can_be_read() -> None:
    """A job that was begun before an upgrade measured neither kinds nor likeness nor earlier rows."""
    old = {"content": [0.5], "style": [1.0], "losses": [2.0], "answers": [{"id": "a", "text": "über"}]}
    assert Evaluation(**old).slices == {"content": (0.5,), "style": (1.0,)}


def test_two_evaluations_go_through_the_gate() -> None:
    """Twenty rows that gained content and lost all style of one kind are refused for it."""
    answers = [{"id": str(place), "text": "x"} for place in range(20)]
    kinds = [["case"] if place < 6 else ["title"] for place in range(20)]
    before = Evaluation([0.0] * 20, [1.0] * 6 + [0.0] * 14, [2.0] * 20, answers, kinds)
    after = Evaluation([0.0] * 6 + [1.0] * 14, [0.0] * 6 + [1.0] * 14, [2.0] * 20, answers, kinds)
    verdict = judge(before.measurement, after.measurement, max_slice_drop=0.1)
    assert verdict.reason.startswith("Not promoted: case fell from 0.5 to 0 on 6 rows, although the mean of content")
    assert judge(before.measurement, after.measurement).promote


def test_the_model_card_tells_what_a_person_wants_to_know() -> None:
    """Base, data, verdict, figures before and after, settings, and how to load it."""
    card = model_card(about(Evaluation([0.25], [None], [3.0], []), Evaluation([0.75], [None], [1.5], [])))
    for said in (
        "base_model: smollm2-135m-instruct",
        "nslora-agent 0.1.0 from `/data/pumps.jsonl` (job 4, parent version 2)",
        "with torch 2.13.0+cpu, peft 0.21.2.",
        "Promoted: the loss fell.",
        "| 10 held-out rows | before | after |",
        "| content reward | 0.250 | 0.750 |",
        "| loss, nats/token | 3.000 | 1.500 |",
        "90 rows, 60 steps, 12345 tokens in 62 s",
        "Rank 8, alpha 32",
        "PeftModel.from_pretrained",
    ):
        assert said in card


@pytest.mark.parametrize("evaluation", [Evaluation([], [], [], []), Evaluation([], [], [1.0], [])])
def test_the_model_card_shows_a_dash_for_what_was_not_measured(evaluation: Evaluation) -> None:
    """No held-out rows is a case like any other."""
    assert "| content reward | - | - |" in model_card(about(evaluation, evaluation))


@pytest.mark.parametrize(
    ("system_prompt", "said"), [(True, "`system_prompt.txt` goes with it."), (False, "It needs no system prompt.")]
)
@pytest.mark.parametrize("mode", ["neurosymbolic", "alternate"])
def test_the_model_card_of_a_version_of_both_sides_tells_of_both(mode: str, system_prompt: bool, said: str) -> None:  # noqa: FBT001
    """Rounds, rewrites and the way to their reasons, then what was trained and how to load it."""
    told = about(STYLED, STYLED)
    rewrites = "7 examples offered for a rewrite, 5 rewritten; 2 mended by the model itself."
    figures = {**told["figures"], "rounds": 3, "system_prompt": system_prompt, "rewrites": rewrites}
    card = model_card({**told, "mode": mode, "figures": figures})
    for part in (
        "| content reward | 0.667 | 0.667 |",
        "| style reward | 0.750 | 0.750 |",
        f"3 rounds; {said}",
        "`nslora-agent explain 4`",
        rewrites,
        "90 rows, 60 steps, 12345 tokens",
        "PeftModel.from_pretrained",
    ):
        assert part in card
