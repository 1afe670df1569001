from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offload import prompts
from offload.prompts import DELIMITERS, Malformed, between_tags, holds_delimiters

START, END = prompts.TAGS
PIECES = [
    "<",
    ">",
    "</",
    "/",
    " ",
    "\n",
    "ANSWER",
    "TEXT",
    "Improved_Variable",
    "{",
    "}",
    "{x}",
    "%s",
    "a",
    "```",
    "[IP_1]",
]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=8).map("".join).filter(lambda text: not holds_delimiters(text))

MALFORMED = {
    "no tags": ("Lund runs the fan!", "0 opening and 0 closing"),
    "nothing at all": ("", "0 opening and 0 closing"),
    "cut off by max_tokens": (f"{START}Lund runs the", "1 opening and 0 closing"),
    "only a closing tag": (f"Lund runs the fan!{END}", "0 opening and 1 closing"),
    "two pairs": (f"{START}a{END}{START}b{END}", "2 opening and 2 closing"),
    "a pair in a pair": (f"{START}{START}a{END}{END}", "2 opening and 2 closing"),
    "opened twice": (f"{START}a{START}b{END}", "2 opening and 1 closing"),
    "closed twice": (f"{START}a{END}b{END}", "1 opening and 2 closing"),
    "wrong order": (f"{END}Lund runs the fan!{START}", "wrong order"),
    "empty": (START + END, "nothing between"),
    "blank": (f"{START} \n\t{END}", "nothing between"),
    "lower case": (f"{START.lower()}a{END.lower()}", "0 opening and 0 closing"),
    "only in a code block": (f"So:\n```\n{START}a{END}\n```", "in a code block"),
    "in the second code block": (f"```\nb\n```\n```xml\n{START}a{END}\n```", "in a code block"),
    "the question's tags": (f"{START}<ANSWER>\na\n</ANSWER>{END}", "repeats tags"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_answer_is_told_apart_with_its_reason(name: str) -> None:
    """Anything but one text in one pair of tags."""
    answer, reason = MALFORMED[name]
    with pytest.raises(Malformed, match=reason) as caught:
        between_tags(answer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (f"{START}a{END}", "a"),
        (f"{START}\na\n\nb \n{END}", "a\n\nb"),
        (f"Here it is: {START}a{END} I hope that this helps.", "a"),
        (f"{START}```\na\n```{END}", "```\na\n```"),
        (f"```\nb\n```\n{START}a{END}", "a"),
        (f"{START}a < b > c{END}", "a < b > c"),
    ],
)
def test_the_text_between_the_tags_is_taken_without_the_blanks_around_it(answer: str, text: str) -> None:
    """As TextGrad cuts it; what stands outside of the tags does not matter."""
    assert between_tags(answer) == text


@pytest.mark.parametrize(
    "text",
    ["</ANSWER>", "a <TRY> b", "< text >", "<improved_variable", "</\nCASE>", "<SYSTEM_PROMPT x='1'>", "<QUESTION/>"],
)
def test_what_could_pass_for_a_part_of_the_prompt_is_found(text: str) -> None:
    """In any case, with blanks and attributes."""
    assert holds_delimiters("harmless", text)


@pytest.mark.parametrize(
    "text", ["", "ANSWER", "<answers>", "a < b", "<b>", "<TEXTAREA>", "<QUESTION_2>", "&lt;TRY&gt;"]
)
def test_other_texts_are_not(text: str) -> None:
    """HTML and comparisons are what people write."""
    assert not holds_delimiters(text)


def message(text: str, context: str, rule: str, fault: str, tried: str) -> str:
    return prompts.example_message("reference", text, context, [rule], fault, tried)


@given(text=TEXTS, context=TEXTS, rule=TEXTS, fault=TEXTS, tried=TEXTS)
def test_no_text_changes_the_frame_of_the_prompt(text: str, context: str, rule: str, fault: str, tried: str) -> None:
    """Whatever they hold, braces included: the tags of a message are the same, and each text is there as it is."""
    made = message(text, context, rule, fault, tried)
    frame = message(text and "a", context and "a", "a", "a", tried and "a")
    assert DELIMITERS.findall(made) == DELIMITERS.findall(frame)
    system, user = prompts.step_messages(prompts.OPTIMIZER, made)
    assert (system["role"], user["role"], user["content"]) == ("system", "user", made)
    assert f"<ANSWER>\n{text}\n</ANSWER>" in made or not text
    assert f"<QUESTION>\n{context}\n</QUESTION>" in made or not context
    assert f"<TRY>\n{tried}\n</TRY>" in made or not tried
    assert f"\nRule: {' '.join(rule.split())}" in made or len(rule) > 100
    assert len(made.splitlines()) <= len(f"{text}\n{context}\n{tried}".splitlines()) + 12


def test_of_a_prompt_it_is_the_question_that_is_to_be_mended() -> None:
    """The reference then only shows what is asked for."""
    made = prompts.example_message("prompt", "Who?", "Lund.", ["Ask for a sentence."], "too short", "")
    assert made.startswith(
        "<QUESTION>\nWho?\n</QUESTION>\n<ANSWER>\nLund.\n</ANSWER>\nWrong with the question: too short"
    )
    assert "Mend the question." in made


@pytest.mark.parametrize("optimizer", [prompts.OPTIMIZER, prompts.PROMPT_OPTIMIZER])
def test_the_system_prompt_names_the_tags(optimizer: str) -> None:
    """TextGrad fills them in; so does the message that is looked up in the cache."""
    system = prompts.step_messages(optimizer, "")[0]["content"]
    assert f"between {START} and {END}" in system
    assert "{" not in system


@given(wanted=st.lists(TEXTS, max_size=3))
def test_braces_in_a_rule_are_no_format(wanted: list[str]) -> None:
    """A rule may be about JSON."""
    assert prompts.critique_system(wanted).endswith(": " + " ".join(wanted))
