"""IFEval and GSM8K files as rows of the decision benchmark."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agent.contract.settings import Limits
from agent.data.dataset import read_examples
from agent.data.formats import Example
from benchmarks.open_sets import LONGEST, MOST_ROWS, rows


def ifeval(key: int) -> dict[str, Any]:
    kwargs = [{"num_words": None}, {"relation": "at least", "num_words": 2, "keywords": None}]
    return {
        "key": key,
        "prompt": f"Greet {key} without commas.",
        "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
        "kwargs": kwargs,
        "gpt4_response": f"Hello {key}.",
        "gpt4_followed": [True, True],
    }


def gsm8k(value: str) -> dict[str, Any]:
    return {"question": "How much is it?", "answer": f"Two times so much.\n#### {value}"}


def taken(folder: Path, records: list[dict[str, Any]]) -> list[Example]:
    """The examples that a job makes of a file's rows."""
    source, data = folder / "source.jsonl", folder / "data.jsonl"
    source.write_text("".join(json.dumps(record) + "\n" for record in records))
    data.write_text("".join(json.dumps(row) + "\n" for row in rows(source)))
    with data.open("rb") as stream:
        return list(read_examples(stream, Limits(), print))


def test_ifeval_rows_carry_their_constraints(tmp_path: Path) -> None:
    """A null argument does no harm; a third of the rows is held out."""
    found = taken(tmp_path, [ifeval(key) for key in range(6)])
    assert [example.split for example in found] == ["held_out", "train", "train"] * 2
    assert found[1].reference == "Hello 1."
    assert [constraint["id"] for constraint in found[1].constraints] == ifeval(1)["instruction_id_list"]
    assert found[1].constraints[1]["kwargs"]["num_words"] == 2


def test_gsm8k_rows_are_checked_by_their_number(tmp_path: Path) -> None:
    """The number after the signs, commas and all."""
    (found,) = taken(tmp_path, [gsm8k("27,200")])
    assert (found.answer, found.answer_check) == ("27,200", "number")
    assert found.reference.endswith("#### 27,200")


def test_long_rows_are_left_out_and_sixty_are_enough(tmp_path: Path) -> None:
    """What does not fit a training example would be cut."""
    long = {"question": "?" * LONGEST, "answer": "#### 1"}
    found = taken(tmp_path, [long, *(gsm8k(str(number)) for number in range(MOST_ROWS + 5))])
    assert len(found) == MOST_ROWS
    assert found[0].answer == "0"


def test_another_shape_is_told(tmp_path: Path) -> None:
    """By its line."""
    with pytest.raises(SystemExit, match="line 2 is neither"):
        taken(tmp_path, [gsm8k("1"), {"text": "x"}])
