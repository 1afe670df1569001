import json
from typing import Any

import pytest
from reading import one, only_bad, read, rows, turns

from agent.data.formats import HELD_OUT, SPLITS, TRAIN, Example, Message, detect, to_example
from agent.data.jsonl import BadRow
from agent.scoring.reward import ANSWER_CHECKS

QUESTION = turns(("user", "Q"), ("assistant", "A"))


@pytest.mark.parametrize(
    ("record", "messages"),
    [
        ({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}, QUESTION),
        (
            {
                "messages": [
                    {"role": "system", "content": "S"},
                    {"role": "tool", "content": "T"},
                    {"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                ]
            },
            turns(("system", "S"), ("tool", "T"), ("assistant", "ab")),
        ),
        ({"prompt": "Q", "completion": "A"}, QUESTION),
        (
            {"prompt": [{"role": "user", "content": "Q"}], "completion": [{"role": "assistant", "content": "A"}]},
            QUESTION,
        ),
        ({"text": "plain"}, turns(("assistant", "plain"))),
        ({"instruction": "Q", "output": "A"}, QUESTION),
        ({"instruction": "Q", "input": "", "output": "A"}, QUESTION),
        ({"instruction": "Q", "input": None, "output": "A"}, QUESTION),
        ({"instruction": "Q", "input": "more", "output": "A"}, turns(("user", "Q\n\nmore"), ("assistant", "A"))),
        (
            {
                "conversations": [
                    {"from": "system", "value": "S"},
                    {"from": "human", "value": "Q"},
                    {"from": "gpt", "value": "A"},
                ]
            },
            turns(("system", "S"), ("user", "Q"), ("assistant", "A")),
        ),
        ({"conversations": [{"from": "user", "value": "Q"}, {"from": "assistant", "value": "A"}]}, QUESTION),
        ({"instruction": "Q", "output": "A", "text": "Alpaca's own rows carry both"}, QUESTION),
        ({"messages": None, "prompt": "Q", "completion": "A", "score": 3}, QUESTION),
    ],
)
def test_each_shape_becomes_the_same_messages(record: dict[str, Any], messages: tuple[Message, ...]) -> None:
    """Every known layout of a row is normalised to one tuple of messages."""
    assert one(record).messages == messages


def test_prompt_and_reference_part_the_conversation_at_its_last_message() -> None:
    """The reference is the last message's text and the prompt is all before it, nothing for plain text."""
    example = one({"prompt": "Q", "completion": "A"})
    assert (example.prompt, example.reference) == (turns(("user", "Q")), "A")
    assert one({"text": "plain"}).prompt == ()


def test_optional_fields_are_carried_along() -> None:
    """Id, split, answer and constraints of a row reach the example, numbers as text."""
    constraint = {"id": "length_constraints:number_words", "kwargs": {"relation": "less than", "num_words": 40}}
    example = one(
        {
            "text": "x",
            "id": 12,
            "split": "test",
            "answer": 7710,
            "answer_check": "number",
            "constraints": [constraint, {"id": "punctuation:no_comma"}],
        }
    )
    assert (example.id, example.split, example.answer, example.line) == ("12", HELD_OUT, "7710", 1)
    assert example.answer_check == "number"
    assert example.constraints == (constraint, {"id": "punctuation:no_comma", "kwargs": {}})


@pytest.mark.parametrize("check", ANSWER_CHECKS)
def test_every_answer_check_can_be_asked_for(check: str) -> None:
    """A row that asks for none is compared by the words that it contains."""
    assert one({"text": "x", "answer": "7", "answer_check": check}).answer_check == check
    assert one({"text": "x", "answer": "7"}).answer_check == "contains"


def test_the_number_check_is_for_answers_with_a_number() -> None:
    """Without an answer there is nothing to check, so nothing is wrong."""
    assert one({"text": "x", "answer": "about 1,024", "answer_check": "number"}).answer == "about 1,024"
    assert one({"text": "x", "answer_check": "number"}).answer is None


@pytest.mark.parametrize(
    ("record", "kwargs"), [({"prompt": "Q", "completion": "Q A"}, {}), ({"text": "x"}, {"prompt_to_repeat": "Q"})]
)
def test_a_prompt_to_repeat_is_the_rows_own_or_a_given_one(record: dict[str, Any], kwargs: dict[str, Any]) -> None:
    """Only where there is neither can nobody repeat it."""
    constraint = {"id": "combination:repeat_prompt", "kwargs": kwargs}
    assert one({**record, "constraints": [constraint]}).constraints == (constraint,)


@pytest.mark.parametrize("record", [{"prompt": "Q", "completion": "x"}, {"text": "x"}])
@pytest.mark.parametrize("check", ["exact", "contains"])
def test_an_example_survives_its_line(record: dict[str, Any], check: str) -> None:
    """Every field is there again, the check of the answer too."""
    constraint = {"id": "punctuation:no_comma", "kwargs": {}}
    example = one({**record, "id": "a", "answer": "é", "answer_check": check, "constraints": [constraint]})
    assert Example.from_json(example.to_json()) == example


def test_a_line_of_an_older_version_has_no_answer_check() -> None:
    """Jobs that were enqueued before there was one are judged as they were."""
    example = one({"text": "x", "answer": "7"})
    old = json.loads(example.to_json())
    assert old.pop("answer_check") == "contains"
    assert Example.from_json(json.dumps(old)) == example


def test_null_means_that_an_optional_field_is_absent() -> None:
    """A null field is read as if it were not there."""
    example = one({"text": "x", "id": None, "split": None, "answer": None, "answer_check": None, "constraints": None})
    assert example == one({"text": "x"}) == Example("line-1", turns(("assistant", "x")), None, None, (), 1)


@pytest.mark.parametrize(("alias", "meant"), SPLITS.items())
def test_split_aliases_mean_train_or_held_out(alias: str, meant: str) -> None:
    """The usual names of evaluation splits all mean held_out."""
    assert one({"text": "x", "split": alias}).split == meant
    assert meant == (TRAIN if alias == "train" else HELD_OUT)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"id": True}, '"id" is true or false'),
        ({"id": 1.5}, '"id" is a number'),
        ({"id": ""}, '"id" has 0 characters'),
        ({"id": "x" * 201}, '"id" has 201 characters'),
        ({"id": "a\nb"}, "control character: 'a\\nb'"),
        ({"split": "training"}, "\"split\" is 'training'"),
        ({"split": 1}, '"split" is a number'),
        ({"answer": " "}, '"answer" is blank'),
        ({"answer": False}, '"answer" is true or false'),
        ({"answer": ["a"]}, '"answer" is a list'),
        ({"answer": "7", "answer_check": "numbers"}, "\"answer_check\" is 'numbers'"),
        ({"answer": "7", "answer_check": "Number"}, "\"answer_check\" is 'Number'"),
        ({"answer": "7", "answer_check": ""}, "\"answer_check\" is ''"),
        ({"answer": "7", "answer_check": 1}, '"answer_check" is a number'),
        ({"answer": "7", "answer_check": False}, '"answer_check" is true or false'),
        ({"answer": "7", "answer_check": ["number"]}, '"answer_check" is a list'),
        ({"answer": "seven", "answer_check": "number"}, "\"answer\" holds no number: 'seven'"),
        ({"constraints": [{"id": "combination:repeat_prompt"}]}, "there is no prompt to repeat"),
        ({"constraints": {}}, '"constraints" is an object'),
        ({"constraints": [{"id": "punctuation:no_coma"}]}, "did you mean punctuation:no_comma?"),
        ({"constraints": ["a"]}, "constraints[0] is a string"),
        ({"constraints": [{"kwargs": {}}]}, '"id" of constraints[0] is not a name'),
        ({"constraints": [{"id": "a", "kwargs": []}]}, '"kwargs" of constraints[0] is a list'),
        ({"text": 5}, '"text" is a number'),
        ({"text": "  "}, "the last message is blank"),
        ({"text": "nul \0 inside"}, "NUL character"),
        ({"text": "half \ud800 pair"}, "half a surrogate pair (\\ud800)"),
    ],
)
def test_a_wrong_field_is_a_bad_line_that_names_it(fields: dict[str, Any], problem: str) -> None:
    """A field of a wrong type or value makes the line bad, and the message says which and why."""
    fault = only_bad(json.dumps({"text": "x", **fields}).encode())
    assert problem in fault.problem
    assert fault.fix


@pytest.mark.parametrize(
    ("messages", "problem"),
    [
        ([], '"messages" is an empty list'),
        ("hello", '"messages" is a string'),
        (["hello"], "messages[0] is a string"),
        ([{"role": "robot", "content": "x"}], "\"role\" of messages[0] is 'robot'"),
        ([{"content": "x"}], '"role" of messages[0] is null'),
        ([{"role": "assistant", "content": None}], '"messages[0].content" is null'),
        ([{"role": "assistant", "content": [{"type": "image_url"}]}], "part that is not text"),
        ([{"role": "user", "content": "x"}], "the last message is by the user"),
        ([{"role": "assistant", "content": "\n "}], "the last message is blank"),
    ],
)
def test_a_wrong_conversation_is_a_bad_line_that_says_where(messages: Any, problem: str) -> None:
    """A conversation that cannot be learned from is refused, and the message names the place in it."""
    good = {"messages": [{"role": "assistant", "content": "x"}]}
    _, bad = read(rows(good, {"messages": messages}))
    assert problem in bad[0].problem


def test_first_row_with_a_known_shape_sets_the_shape_of_the_file() -> None:
    """Lines before the first known shape are bad, and so are later lines of another shape."""
    examples, bad = read(rows({"chosen": 1}, {"text": "a"}, {"prompt": "Q", "completion": "A"}, {"text": "b"}))
    assert [example.line for example in examples] == [2, 4]
    assert [(fault.line, fault.problem) for fault in bad] == [
        (1, "unknown shape, the keys are: 'chosen'"),
        (3, "the row lacks 'text', the shape of the rows before it"),
    ]


def test_an_id_that_is_taken_makes_the_later_line_bad() -> None:
    """Ids are unique in a file, given ones against those made from line numbers too, in both directions."""
    ids = ["a", "a", "line-5", None, None, "line-4", "line-7", None]
    examples, bad = read(rows(*({"text": "x", "id": name} for name in ids)))
    assert [example.id for example in examples] == ["a", "line-5", "line-4", "line-7", "line-8"]
    assert [fault.line for fault in bad] == [2, 5, 6]


# ---- constraints as IFEval writes them ----


def ifeval(**changes: Any) -> dict[str, Any]:
    """A row of an IFEval file with a completion."""
    row = {
        "key": 1,
        "prompt": "Name a port. Use no commas.",
        "completion": "Port 4713.",
        "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
        "kwargs": [{}, {"relation": "less than", "num_words": 9}],
    }
    return {**row, **changes}


def test_constraints_are_read_from_an_ifeval_row() -> None:
    """A file of IFEval with completions can be queued as it is."""
    record = ifeval()
    found = to_example(record, detect(record), 1).constraints
    assert [each["id"] for each in found] == record["instruction_id_list"]
    assert found[1]["kwargs"]["num_words"] == 9


def test_a_row_s_own_constraints_come_before_those_of_ifeval() -> None:
    """They are what this project's files say."""
    record = ifeval(constraints=[{"id": "punctuation:no_comma"}])
    assert len(to_example(record, detect(record), 1).constraints) == 1


@pytest.mark.parametrize("changes", [{"kwargs": [{}]}, {"kwargs": None}, {"instruction_id_list": "a"}])
def test_ifeval_lists_that_do_not_fit_are_a_bad_row(changes: dict[str, Any]) -> None:
    """Ids and arguments belong together one by one."""
    record = ifeval(**changes)
    with pytest.raises(BadRow) as caught:
        to_example(record, detect(record), 1)
    assert "two lists of the same length" in caught.value.problem


def test_an_unknown_ifeval_id_is_a_bad_row() -> None:
    """With the near match, as for any constraint."""
    record = ifeval(instruction_id_list=["punctuation:no_coma"], kwargs=[{}])
    with pytest.raises(BadRow) as caught:
        to_example(record, detect(record), 1)
    assert "did you mean punctuation:no_comma" in caught.value.problem
