from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"
FACT_FILES = ("facts.jsonl", "facts-alpaca.jsonl")
SPLIT_FILES = (*FACT_FILES, "mixed.jsonl")
ALL_FILES = (*SPLIT_FILES, "box.jsonl")

Row = dict[str, Any]


def rows(name: str) -> list[Row]:
    return [json.loads(line) for line in (EXAMPLES / name).read_text(encoding="utf-8").splitlines()]


def prompt(row: Row) -> str:
    if "messages" in row:
        return row["messages"][0]["content"]
    if "prompt" in row:
        return row["prompt"]
    return f"{row['instruction']}\n\n{row['input']}" if row["input"] else row["instruction"]


def reference(row: Row) -> str:
    if "messages" in row:
        return row["messages"][1]["content"]
    return row["completion"] if "completion" in row else row["output"]


def fact_of(row: Row) -> str:
    return row["id"].rpartition(".")[0]


def words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())


def normalised(row: Row) -> str:
    return " ".join(words(prompt(row)))


def values(name: str) -> dict[str, str]:
    return {fact_of(row): row["answer"] for row in rows(name)}


def constrained(split: str) -> list[Row]:
    return [row for row in rows("mixed.jsonl") if row.get("constraints") and row["split"] == split]


def plain(split: str) -> list[Row]:
    return [row for row in rows("mixed.jsonl") if not row.get("constraints") and row["split"] == split]


# ---- every file ----


@pytest.mark.process
def test_the_files_are_what_the_script_writes(tmp_path: Path) -> None:
    """Running the script elsewhere gives the committed files byte for byte."""
    for source in EXAMPLES.glob("*.py"):
        shutil.copy(source, tmp_path)
    subprocess.run([sys.executable, tmp_path / "make_examples.py"], check=True, capture_output=True)
    written = {path.name: path.read_bytes() for path in tmp_path.glob("*.jsonl")}
    committed = {path.name: path.read_bytes() for path in EXAMPLES.glob("*.jsonl")}
    assert committed.pop("rewrites.jsonl"), "recorded, not written by the script; replayed in tests/end_to_end"
    assert written == committed
    assert sorted(written) == sorted(ALL_FILES)


@pytest.mark.parametrize("name", ALL_FILES)
def test_lines_are_json_objects_in_utf8_with_unix_line_ends(name: str) -> None:
    """Every line parses alone, and the file ends with one line feed."""
    data = (EXAMPLES / name).read_bytes()
    assert b"\r" not in data
    assert data.endswith(b"}\n")
    assert all(isinstance(json.loads(line), dict) for line in data.decode("utf-8").splitlines())


@pytest.mark.parametrize("name", ALL_FILES)
def test_no_prompt_is_asked_twice(name: str) -> None:
    """Prompts differ even when case, spaces and punctuation are ignored, so no held-out one was trained on."""
    prompts = [normalised(row) for row in rows(name)]
    assert len(set(prompts)) == len(prompts)


@pytest.mark.parametrize("name", ALL_FILES)
def test_a_reference_holds_its_value_once(name: str) -> None:
    """The value is one word of the reference, whatever its case."""
    for row in rows(name):
        assert words(reference(row)).count(row["answer"].lower()) == 1, row


@pytest.mark.parametrize("name", ALL_FILES)
def test_no_question_gives_a_value_away(name: str) -> None:
    """No value of the file is a word of any of its questions."""
    taken = {row["answer"].lower() for row in rows(name)}
    for row in rows(name):
        assert not taken & set(words(prompt(row))), row


@pytest.mark.parametrize("name", ALL_FILES)
def test_a_reference_holds_no_other_value(name: str) -> None:
    """A value stands in the references of its own fact only."""
    taken = {row["answer"].lower() for row in rows(name)}
    for row in rows(name):
        assert taken & set(words(reference(row))) == {row["answer"].lower()}, row


@pytest.mark.parametrize("name", SPLIT_FILES)
def test_ids_are_unique(name: str) -> None:
    """No two rows of a file share an id."""
    ids = Counter(row["id"] for row in rows(name))
    assert max(ids.values()) == 1


@pytest.mark.parametrize("name", SPLIT_FILES)
def test_a_fact_has_one_value_and_a_value_one_fact(name: str) -> None:
    """No two rows contradict each other, and no value belongs to two facts."""
    pairs = {(fact_of(row), row["answer"].lower()) for row in rows(name)}
    assert len({fact for fact, _ in pairs}) == len({value for _, value in pairs}) == len(pairs) == 24


@pytest.mark.parametrize("name", SPLIT_FILES)
def test_a_question_names_its_device_and_what_is_asked_for(name: str) -> None:
    """The words of the fact's id stand in every question, so that the question determines the answer."""
    for row in rows(name):
        for word in re.split(r"[.-]", fact_of(row)):
            assert word in prompt(row).lower(), row


def test_no_device_or_value_appears_in_two_files() -> None:
    """The files can be learned one after the other without contradiction."""
    facts = [pair for name in SPLIT_FILES for pair in values(name).items()]
    devices = [fact.partition(".")[0] for fact, _ in facts] + ["zolder-weigher"]
    taken = [value.lower() for _, value in facts] + sorted({row["answer"].lower() for row in rows("box.jsonl")})
    assert len(set(devices)) == len(devices) == 73
    assert len(set(taken)) == len(taken) == 75


# ---- facts.jsonl and facts-alpaca.jsonl ----


@pytest.mark.parametrize("name", FACT_FILES)
def test_each_fact_has_three_phrasings_to_train_on_and_two_held_out(name: str) -> None:
    """24 facts make 72 rows to train on and 48 held out."""
    counts = Counter((fact_of(row), row["split"]) for row in rows(name))
    assert set(counts.values()) == {3, 2}
    assert all(counts[fact, "train"] == 3 and counts[fact, "held_out"] == 2 for fact in values(name))
    assert len(rows(name)) == 120


@pytest.mark.parametrize("name", FACT_FILES)
def test_the_phrasings_of_a_fact_share_one_reference(name: str) -> None:
    """A fact is one group: five prompts and the same reference."""
    references = defaultdict(set)
    for row in rows(name):
        references[fact_of(row)].add(reference(row))
    assert all(len(texts) == 1 for texts in references.values())


@pytest.mark.parametrize("name", FACT_FILES)
def test_half_of_the_values_are_digits_and_half_are_words(name: str) -> None:
    """Twelve values have three to five digits, none inside another; twelve are single words."""
    digits = [value for value in values(name).values() if re.fullmatch(r"\d{3,5}", value)]
    letters = [value for value in values(name).values() if re.fullmatch(r"[A-Za-z]+", value)]
    assert len(digits) == len(letters) == 12
    assert not [(a, b) for a in digits for b in digits if a != b and a in b]


@pytest.mark.parametrize("name", FACT_FILES)
def test_device_names_start_with_different_letters(name: str) -> None:
    """A small model can tell the devices apart by their first letter."""
    assert len({fact[0] for fact in values(name)}) == 24


def test_a_third_of_the_alpaca_rows_carry_their_question_as_input() -> None:
    """40 of 120 rows use `input`, in both splits, and their instruction alone names no device."""
    with_input = [row for row in rows("facts-alpaca.jsonl") if row["input"]]
    assert Counter(row["split"] for row in with_input) == {"train": 24, "held_out": 16}
    assert all(row["input"].endswith(("?", ".")) and row["instruction"].endswith(".") for row in with_input)
    assert len({row["instruction"] for row in with_input}) == 3


# ---- mixed.jsonl ----

Kwargs = dict[str, Any]


def obeys_lowercase(text: str, _kwargs: Kwargs) -> bool:
    return text.islower()


def obeys_capital(text: str, _kwargs: Kwargs) -> bool:
    return text.isupper()


def obeys_json(text: str, _kwargs: Kwargs) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def obeys_end(text: str, kwargs: Kwargs) -> bool:
    return text.endswith(kwargs["end_phrase"])


def obeys_quotation(text: str, _kwargs: Kwargs) -> bool:
    return len(text) > 1 and text[0] == text[-1] == '"'


def obeys_bullets(text: str, kwargs: Kwargs) -> bool:
    return len(re.findall(r"^\s*[*-] ", text, re.MULTILINE)) == kwargs["num_bullets"]


def obeys_no_comma(text: str, _kwargs: Kwargs) -> bool:
    return "," not in text


def obeys_word_limit(text: str, kwargs: Kwargs) -> bool:
    assert kwargs["relation"] == "less than"
    return len(words(text)) < kwargs["num_words"]


OBEYS = {
    "change_case:english_lowercase": obeys_lowercase,
    "change_case:english_capital": obeys_capital,
    "detectable_format:json_format": obeys_json,
    "startend:end_checker": obeys_end,
    "startend:quotation": obeys_quotation,
    "detectable_format:number_bullet_lists": obeys_bullets,
    "punctuation:no_comma": obeys_no_comma,
    "length_constraints:number_words": obeys_word_limit,
}
ARGUMENTS = {
    "startend:end_checker": {"end_phrase"},
    "detectable_format:number_bullet_lists": {"num_bullets"},
    "length_constraints:number_words": {"relation", "num_words"},
}


def obeys(row: Row) -> bool:
    (constraint,) = row["constraints"]
    return OBEYS[constraint["id"]](reference(row), constraint["kwargs"])


def constraint_id(row: Row) -> str:
    return row["constraints"][0]["id"]


def test_constraints_carry_the_arguments_that_ifeval_names() -> None:
    """Ids and kwargs are IFEval's own, with nothing missing or added."""
    for row in constrained("train") + constrained("held_out"):
        (constraint,) = row["constraints"]
        assert set(constraint["kwargs"]) == ARGUMENTS.get(constraint["id"], set()), row


def test_every_constraint_has_twelve_training_rows_and_six_held_out() -> None:
    """Eight kinds make 96 constrained rows to train on and 48 held out."""
    assert Counter(map(constraint_id, constrained("train"))) == dict.fromkeys(OBEYS, 12)
    assert Counter(map(constraint_id, constrained("held_out"))) == dict.fromkeys(OBEYS, 6)


def test_held_out_pairs_of_fact_and_constraint_are_new() -> None:
    """No training row pairs a fact with a constraint that a held-out row pairs it with."""
    train = {(fact_of(row), constraint_id(row)) for row in constrained("train")}
    held_out = {(fact_of(row), constraint_id(row)) for row in constrained("held_out")}
    assert (len(train), len(held_out)) == (96, 48)
    assert not train & held_out


def test_every_fact_is_also_asked_plainly() -> None:
    """Each fact has two or three plain rows to train on and one held-out plain phrasing."""
    train = Counter(map(fact_of, plain("train")))
    assert (len(train), min(train.values()), sum(train.values())) == (24, 2, 67)
    assert Counter(map(fact_of, plain("held_out"))) == dict.fromkeys(train, 1)


def test_some_references_of_every_constraint_obey_and_most_do_not() -> None:
    """Of each kind, and of all constrained rows, 30 to 50 % obey."""
    for name in OBEYS:
        verdicts = [obeys(row) for row in constrained("train") if constraint_id(row) == name]
        assert 0.3 <= sum(verdicts) / len(verdicts) <= 0.5, name
    verdicts = [obeys(row) for row in constrained("train") + constrained("held_out")]
    assert 0.3 <= sum(verdicts) / len(verdicts) <= 0.5


def test_a_disobeying_reference_breaks_its_constraint_clearly() -> None:
    """It is a sentence with the value, and where length counts it is longer by two words or more."""
    for row in constrained("train") + constrained("held_out"):
        if not obeys(row):
            assert re.fullmatch(r"(The|According to) .* is \w+\.", reference(row)), row
            limit = row["constraints"][0]["kwargs"].get("num_words", 0)
            assert len(words(reference(row))) >= limit + 2 or not limit, row


def test_every_constraint_has_four_wordings() -> None:
    """The last sentence of the prompt, without its arguments, takes four forms in training."""
    forms = defaultdict(set)
    for row in constrained("train"):
        without_arguments = re.sub(r'"[^"]*"|\d+', "_", prompt(row))
        forms[constraint_id(row)].add(re.split(r"[?.] ", without_arguments)[-1])
    assert {name: len(found) for name, found in forms.items()} == dict.fromkeys(OBEYS, 4)


def test_a_prompt_says_the_arguments_of_its_constraint() -> None:
    """Numbers and end phrases are in the user's words, as are the keys of an obeying JSON reference."""
    for row in constrained("train") + constrained("held_out"):
        (constraint,) = row["constraints"]
        said = [str(value) for name, value in constraint["kwargs"].items() if name != "relation"]
        if constraint["id"] == "detectable_format:json_format" and obeys(row):
            said = [f'"{key}"' for key in json.loads(reference(row))]
        assert all(value in prompt(row) for value in said), row


def test_five_facts_are_general_knowledge() -> None:
    """A fifth of the facts needs no training, and their values are the true ones."""
    known = {"france.capital": "Paris", "sky.colour": "blue", "week.days": "7", "earth.ocean": "Pacific"}
    known["hot.opposite"] = "cold"
    assert known.items() <= values("mixed.jsonl").items()


# ---- box.jsonl ----


def test_the_box_file_is_small_and_about_one_device() -> None:
    """Nine rows without split fields, each naming the same device."""
    assert len(rows("box.jsonl")) == 9
    for row in rows("box.jsonl"):
        assert set(row) == {"prompt", "completion", "answer"}
        assert "Zolder weigher" in row["prompt"]
