from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest

from agent.data.formats import Example, Message
from agent.runner.rewriting import RewriteOutcome
from agent.runner.rows import OWN_ANSWER, WORST_LOSS, Row, rewards
from agent.scoring.stylometry import Stylometry

SHORT = {"id": "length_constraints:number_words", "kwargs": {"relation": "less than", "num_words": 8}}
NO_COMMA = {"id": "punctuation:no_comma", "kwargs": {}}
LONG_WINDED = "The lamp of pump 3 is amber, and it has been amber for as long as anyone knows."
QUESTION = Message("user", "What colour is the lamp of pump 3?")
EXAMPLE = Example("a", (QUESTION, Message("assistant", LONG_WINDED)), None, "amber", (SHORT, NO_COMMA), 1)
"""Its reference has the answer and keeps neither constraint."""
PLAIN = Example("p", (Message("assistant", "Pumps hum."),), None, None, (), 2)
STYLED = Stylometry.of([LONG_WINDED])
GOOD = "The lamp of pump 3 is amber."


def row(example: Example = EXAMPLE, **fields: Any) -> Row:
    return Row(example, example.reference, **fields)


def asked(text: str | None, example: Example = EXAMPLE, loss: float = 1.0) -> Row:
    return row(example).after_probe(text, loss, STYLED, trained=False).with_own_answer()


def changed(**fields: Any) -> Example:
    return dataclasses.replace(EXAMPLE, **fields)


def told(state: str = "remade", text: str = GOOD) -> RewriteOutcome:
    return RewriteOutcome("a", state, text, ("too long",), (NO_COMMA["id"],), steps=2, calls=2, cost=0.5, retry_at=3.0)


# ---- rewards ----


@pytest.mark.parametrize(
    ("text", "content", "style"),
    [
        (GOOD, 1.0, 1.0),
        (LONG_WINDED, 1.0, 0.0),
        ("It is amber, I am quite sure.", 1.0, 0.5),
        ("green", 0.0, 1.0),
        ("", 0.0, 0.0),
    ],
)
def test_a_text_is_rewarded_for_what_it_says_and_for_its_constraints(text: str, content: float, style: float) -> None:
    """Each by itself, and both together by their mean."""
    assert rewards(EXAMPLE, text) == (content, style)
    assert row().reward_of(text) == (content + style) / 2


def test_a_row_says_how_its_answer_is_compared() -> None:
    """By the words of the answer, unless it asks for the number."""
    asks = changed(answer="3", constraints=())
    assert rewards(asks, "Of pump 3, 4 lamps") == (1.0, None)
    assert rewards(dataclasses.replace(asks, answer_check="number"), "Of pump 3, 4 lamps") == (0.0, None)


def test_without_an_answer_a_text_is_compared_with_the_reference_as_it_came() -> None:
    """So a reference that says something else does not become what is right."""
    free = changed(answer=None, constraints=())
    now = asked("no idea", free).with_reference("Pumps hum.", "someone")
    assert now.reward_of(LONG_WINDED) == 1.0
    assert now.reward_of(now.reference) == now.standing.reference_reward == 0.0
    assert now.standing.words == 2


@pytest.mark.parametrize("constraint", [NO_COMMA, {"id": "combination:repeat_prompt", "kwargs": {}}])
def test_plain_text_has_no_constraints_to_keep(constraint: dict[str, Any]) -> None:
    """It asks nothing: neither of the model's answer nor of the reference, not even to repeat what is not there."""
    plain = dataclasses.replace(PLAIN, constraints=(constraint,))
    assert rewards(plain, "Pumps, hum.") == (1.0, None)
    assert asked(None, plain).standing.reference_style is None


# ---- a probe ----


def test_a_row_that_was_not_asked_has_no_standing() -> None:
    """The classifier is never told anything that was not measured."""
    with pytest.raises(ValueError, match="row a was not probed"):
        _ = row().standing


def test_a_standing_says_how_answer_and_reference_do() -> None:
    """Each number at its place."""
    now = row(trained=2, tried=1, loss_before=9.0).after_probe(
        "It is amber, I am quite sure.", 1.5, STYLED, trained=True
    )
    standing = now.standing
    assert (standing.content, standing.style) == (1.0, 0.5)
    assert (standing.reference_content, standing.reference_style) == (1.0, 0.0)
    assert (standing.loss, standing.loss_before) == (1.5, None)
    assert (standing.trained, standing.tried, standing.words) == (3, 1, 18)
    assert standing.kinds == (SHORT["id"], NO_COMMA["id"])
    assert standing.likeness == STYLED.likeness("It is amber, I am quite sure.") < 1


def test_the_last_loss_is_kept_when_a_row_is_asked_again() -> None:
    """And only training counts as training."""
    first = asked("no idea", loss=3.0)
    again = first.after_probe("no idea", 2.0, STYLED, trained=True).after_probe("no idea", 1.0, STYLED, trained=False)
    assert (first.standing.loss_before, first.trained) == (None, 0)
    assert (again.standing.loss, again.standing.loss_before, again.trained) == (1.0, 2.0, 1)


def test_plain_text_is_judged_by_the_likelihood_of_its_tokens() -> None:
    """There is no answer to compare, so it is never quite right and its reference stays."""
    now = asked(None, PLAIN, loss=math.log(4))
    assert now.standing.content == pytest.approx(0.25)
    assert (now.standing.style, now.standing.likeness, now.standing.reference_reward) == (None, 1.0, 1.0)
    assert not now.is_right
    assert (now.reference, now.source) == ("Pumps hum.", "")


@pytest.mark.parametrize("loss", [math.inf, math.nan])
@pytest.mark.parametrize(("text", "example"), [(None, PLAIN), ("no idea", EXAMPLE)])
def test_a_loss_that_is_not_finite_can_be_stored(loss: float, text: str | None, example: Example) -> None:
    """As of a row that is cut before its first token to learn: it counts as a very bad one."""
    now = asked(text, example, loss=loss).after_probe(text, loss, STYLED, trained=True)
    assert (now.standing.loss, now.standing.loss_before) == (WORST_LOSS, WORST_LOSS)
    json.dumps(now.to_json(), allow_nan=False)


@pytest.mark.parametrize(
    ("text", "reference", "right"), [(GOOD, GOOD, True), (GOOD, LONG_WINDED, False), (LONG_WINDED, GOOD, False)]
)
def test_a_row_is_right_if_answer_and_reference_are(text: str, reference: str, *, right: bool) -> None:
    """One of them is not enough."""
    now = dataclasses.replace(asked(text), reference=reference)
    assert now.is_right is right


# ---- the model's own answer ----


def test_an_own_answer_that_is_right_takes_the_place_of_a_reference_that_is_not() -> None:
    """It costs no request; what the row came with is kept beside it."""
    now = asked(GOOD)
    assert (now.reference, now.source) == (GOOD, OWN_ANSWER)
    assert now.example.reference == GOOD
    assert now.example.messages[:-1] == EXAMPLE.messages[:-1]
    assert now.origin is EXAMPLE
    assert now.is_right


@pytest.mark.parametrize(
    ("text", "example"),
    [
        ("The lamp of pump 3 is green.", EXAMPLE),
        ("It is amber, I think.", EXAMPLE),
        (GOOD, changed(constraints=())),
        (GOOD, changed(messages=(QUESTION, Message("assistant", "Amber.")))),
        ("The lamp is amber.", changed(messages=(QUESTION, Message("assistant", f"{LONG_WINDED} See https://a.b/c")))),
        ("Sure! Lamp 3 is amber.", EXAMPLE),
    ],
    ids=["wrong", "breaks a rule", "reference has none", "reference is right", "loses the URL", "chatter"],
)
def test_any_other_own_answer_does_not(text: str, example: Example) -> None:
    """Wrong, or no better than the reference, or one that no rewrite would be accepted for."""
    now = asked(text, example)
    assert (now.reference, now.source) == (example.reference, "")
    assert now.example is example


def test_an_own_answer_is_checked_against_the_row_as_it_came() -> None:
    """Although an earlier rewrite had lost the number, it must be there."""
    kept = changed(messages=(QUESTION, Message("assistant", f"{LONG_WINDED} Call 4711.")))
    now = dataclasses.replace(row(kept), reference=LONG_WINDED, source="remote")
    assert now.after_probe(GOOD, 1.0, STYLED, trained=False).reference == LONG_WINDED
    assert (
        now.after_probe("Lamp 3 is amber: 4711.", 1.0, STYLED, trained=False).with_own_answer().reference
        == "Lamp 3 is amber: 4711."
    )


def test_plain_text_has_no_own_answer() -> None:
    """However well the model knows it, and whatever its reference lacks."""
    assert asked(None, dataclasses.replace(PLAIN, answer="42"), loss=0.0).reference == "Pumps hum."


@pytest.mark.parametrize(
    ("constraint", "question", "reference", "text"),
    [
        (
            {"id": "change_case:english_lowercase", "kwargs": {}},
            "What colour is it?",
            "The lamp in Berlin is amber.",
            "the lamp in berlin is amber.",
        ),
        (SHORT, "What colour is the lamp in Berlin?", f"{LONG_WINDED} It is in Berlin.", GOOD),
    ],
    ids=["lower case", "shorter"],
)
def test_an_own_answer_may_change_what_its_constraints_ask_for(
    constraint: dict[str, Any], question: str, reference: str, text: str
) -> None:
    """The case of a name, or leaving out one of the question where the answer must be short."""
    messages = (Message("user", question), Message("assistant", reference))
    assert asked(text, changed(messages=messages, constraints=(constraint,))).source == OWN_ANSWER


def test_an_own_answer_needs_the_words_of_the_answer_as_a_rewrite_does() -> None:
    """Even where the row's check takes the same number in other words."""
    messages = (QUESTION, Message("assistant", "It has 1,024 lamps, amber ones."))
    counted = changed(messages=messages, answer="1,024", answer_check="number", constraints=(NO_COMMA,))
    assert asked("It has 1024 lamps.", counted).source == ""
    assert asked("It has 1024 lamps.", dataclasses.replace(counted, answer="1024")).source == OWN_ANSWER


# ---- a rewrite ----


def test_an_accepted_rewrite_becomes_the_reference() -> None:
    """With the name of the model that wrote it; nothing waits any more."""
    now = dataclasses.replace(asked("no idea"), waits=True).after_rewrite(told(), "remote-7b")
    assert (now.reference, now.source, now.tried, now.waits) == (GOOD, "remote-7b", 1, False)
    assert now.rewrite == told()
    assert now.standing.reference_reward == 1.0
    assert now.standing.tried == 1


@pytest.mark.parametrize("state", ["rejected", "satisfied"])
def test_a_refused_rewrite_changes_no_reference(state: str) -> None:
    """It counts as tried, and what became of it is kept."""
    now = asked("no idea").after_rewrite(told(state), "remote-7b")
    assert (now.reference, now.source, now.tried) == (LONG_WINDED, "", 1)
    assert now.rewrite == told(state)


def test_each_kind_of_constraint_is_named_once() -> None:
    """Two constraints of one kind are one thing to learn about."""
    assert row(changed(constraints=(NO_COMMA, SHORT, NO_COMMA))).kinds == (NO_COMMA["id"], SHORT["id"])


# ---- on the disk ----


@pytest.mark.parametrize(
    "kept",
    [
        row(),
        row(PLAIN),
        asked("no idea"),
        asked(None, PLAIN),
        asked(GOOD),
        asked("no idea").after_rewrite(told(), "remote-7b").after_probe(GOOD, 0.5, STYLED, trained=True),
        dataclasses.replace(asked("no idea"), waits=True, rewrite=told("deferred")),
    ],
    ids=["fresh", "plain", "asked", "plain asked", "own answer", "rewritten", "waits"],
)
def test_a_row_survives_the_disk(kept: Row) -> None:
    """The example travels by itself, and the two give the same row, which stands as it stood."""
    line = json.dumps(kept.to_json(), allow_nan=False)
    again = Row.from_json(Example.from_json(kept.origin.to_json()), json.loads(line))
    assert again == kept
    assert again.example == kept.example
    if kept.answered:
        assert again.standing == kept.standing
