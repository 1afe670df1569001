"""The data of the decision benchmark holds what the benchmark says of it, and nothing that contradicts itself."""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

import pytest
from checkout import ROOT

from agent.constraints import verify
from agent.contract.settings import Limits
from agent.data.dataset import read_examples
from agent.scoring.reward import content_reward
from benchmarks import decision_data
from benchmarks.decision_content import INVENTED, KNOWN, WORDINGS

FOLDER = ROOT / "benchmarks" / "data"
MIXES = ("even", "style")
SLICES = ("single", "double", "wordings", "arguments")

Row = dict[str, Any]


def rows(name: str) -> list[Row]:
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text().splitlines()]


def question(row: Row) -> str:
    return str(row["messages"][0]["content"])


def kinds(row: Row) -> tuple[str, ...]:
    return tuple(constraint["id"] for constraint in row["constraints"])


def pairs(found: list[Row]) -> set[tuple[str, tuple[str, ...]]]:
    return {(row["fact"], kinds(row)) for row in found if row["constraints"]}


HELD_OUT = rows("held-out")


@pytest.mark.parametrize("name", decision_data.FILES)
def test_the_files_are_what_the_script_writes(name: str) -> None:
    """Nobody edits them by hand."""
    assert rows(name) == json.loads(json.dumps(list(decision_data.FILES[name]())))


@pytest.mark.parametrize("name", decision_data.FILES)
def test_every_row_is_a_good_one_with_a_prompt_and_an_id_of_its_own(name: str) -> None:
    """The agent takes the file as it is."""
    bad: list[object] = []
    with (FOLDER / f"{name}.jsonl").open("rb") as stream:
        good = list(read_examples(stream, Limits(), bad.append))
    assert not bad
    assert len(good) == len({question(row) for row in rows(name)}) == len({row["id"] for row in rows(name)})


@pytest.mark.slow
@pytest.mark.parametrize("name", decision_data.FILES)
def test_references_say_the_value_and_keep_their_constraints_just_where_they_are_said_to(name: str) -> None:
    """The truth that the benchmark compares with is the checks' own."""
    for row in rows(name):
        reference = row["messages"][1]["content"]
        assert content_reward(reference, "", row["answer"]) == 1.0
        assert (verify.faults(row["constraints"], reference, question(row)) == ()) is row["obeys"], row["id"]


def test_no_fact_has_two_values_and_no_value_two_facts() -> None:
    """A wrong answer is never another fact's right one, and no value stands inside of another."""
    values = {(row["fact"], row["answer"]) for name in decision_data.FILES for row in rows(name)}
    assert len(values) == len({fact for fact, _ in values}) == len({value for _, value in values}) == 30
    texts = [value.casefold() for _, value in values]
    assert not any(a != b and a in b for a in texts for b in texts)


def test_facts_are_half_digits_and_half_words() -> None:
    """24 invented ones, and 6 that the base model knows."""
    invented = [value for ships in INVENTED.values() for value in ships.values()]
    assert len(invented) == 24
    assert sum(map(str.isdigit, invented)) == 12
    assert len(KNOWN) == 6


def test_every_constraint_has_four_wordings_to_train_on_and_two_new_ones() -> None:
    """None of them twice."""
    assert all(len(set(wordings)) == 6 for wordings in WORDINGS.values())


@pytest.mark.parametrize("mix", MIXES)
def test_a_mix_has_a_fifth_known_rows_and_two_in_five_obeying(mix: str) -> None:
    """Counted over rows and, for obeying, over those with a constraint, kind by kind."""
    found = rows(mix)
    assert sum(not row["invented"] for row in found) == len(found) / 5
    constrained = Counter(kinds(row)[0] for row in found if row["constraints"])
    obeying = Counter(kinds(row)[0] for row in found if row["constraints"] and row["obeys"])
    assert len(constrained) == 6
    assert all(obeying[kind] / count == 0.4 for kind, count in constrained.items())


def test_the_mixes_differ_in_content_and_style() -> None:
    """60 plain rows of 150 in one, 30 in the other."""
    assert [sum(not row["constraints"] for row in rows(mix)) for mix in MIXES] == [60, 30]


@pytest.mark.parametrize("name", SLICES)
def test_a_held_out_slice_has_a_hundred_prompts_that_no_training_row_has(name: str) -> None:
    """Prompt for prompt."""
    trained = {question(row) for mix in (*MIXES, "tuning") for row in rows(mix)}
    asked = {question(row) for row in HELD_OUT if row["slice"] == name}
    assert len(asked) >= 100
    assert not asked & trained


@pytest.mark.parametrize("mix", [*MIXES, "tuning"])
def test_held_out_pairings_are_new(mix: str) -> None:
    """No fact is trained on, or tuned by, with a constraint that the single and wordings slices ask it with."""
    held_out = pairs([row for row in HELD_OUT if row["slice"] in {"single", "wordings", "double"}])
    assert not pairs(rows(mix)) & held_out


def test_tuning_rows_are_not_trained_on() -> None:
    """Settings are chosen on pairings that even.jsonl has not."""
    assert not pairs(rows("tuning")) & pairs(rows("even"))


def test_new_wordings_and_arguments_are_new() -> None:
    """What the slices are called is what they are."""
    trained = " ".join(question(row) for mix in MIXES for row in rows(mix))
    for kind, wordings in WORDINGS.items():
        for wording in wordings[4:]:
            pattern = re.sub(r"\\\{\d\\\}", "[^ ]+", re.escape(wording))
            assert not re.search(pattern, trained), kind
    arguments = {json.dumps(row["constraints"]) for row in HELD_OUT if row["slice"] == "arguments"}
    assert not arguments & {json.dumps(row["constraints"]) for mix in MIXES for row in rows(mix)}
