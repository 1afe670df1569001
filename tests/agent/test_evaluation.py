from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from agent.evaluation import Evaluation, model_card
from agent.gate import Measured
from agent.settings import Training


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
        "settings": dataclasses.asdict(Training(rank=8)),
        "verdict": {"reason": "Promoted: the loss fell."},
        "figures": figures,
    }


def test_means_are_taken_over_the_rows_and_there_is_none_of_nothing() -> None:
    """Plain text has losses but no rewards; a job without held-out rows has neither."""
    assert Evaluation([0.0, 1.0, 1.0], [None] * 3, [2.0, 1.0], []).means == {"content": 0.6667, "loss": 1.5}
    assert Evaluation([], [], [2.0], []).means == {"content": None, "loss": 2.0}
    assert Evaluation([], [], [], []).means == {"content": None, "loss": None}


def test_the_gate_gets_every_row_in_order() -> None:
    """Not the means: it compares row by row."""
    assert Evaluation([0.5, 1.0], [None, None], [2.0, 3.0], []).measured == Measured((0.5, 1.0), (2.0, 3.0))


def test_an_evaluation_survives_the_disk() -> None:
    """A second attempt reads what the first one measured."""
    evaluation = Evaluation([0.5], [1.0], [2.0], [{"id": "a", "text": "über"}])
    assert Evaluation(**json.loads(json.dumps(dataclasses.asdict(evaluation)))) == evaluation


def test_the_model_card_tells_what_a_person_wants_to_know() -> None:
    """Base, data, verdict, figures before and after, settings, and how to load it."""
    card = model_card(about(Evaluation([0.25], [None], [3.0], []), Evaluation([0.75], [None], [1.5], [])))
    for said in (
        "base_model: smollm2-135m-instruct",
        "`/data/pumps.jsonl` (job 4, parent version 2)",
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
