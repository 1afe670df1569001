from __future__ import annotations

from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.scoring.reward import ANSWER_CHECKS, content_reward, last_number, words


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("The port is 4713.", "4713", True),
        ("4713", "4713", True),
        ("Port:4713, I think", "4713", True),
        ("It is PORT 4713!", "port 4713", True),
        ("**Amber**.", "amber", True),
        ('"amber"', "amber", True),
        ("The STRASSE is long", "Straße", True),
        ("the box's lamp is half-open", "half-open", True),
        ("at 10:30 sharp", "10:30", True),
        ("It costs 1,024.5 euros.", "1,024.5", True),
        ("It has version 2.10.", "2.1", False),
        ("The port is 14713.", "4713", False),
        ("The port is 47130.", "4713", False),
        ("The port is 4714.", "4713", False),
        ("1,024", "024", False),
        ("10:30", "30", False),
        ("amberish", "amber", False),
        ("north of the east", "north east", False),
        ("east north", "north east", False),
        ("", "4713", False),
        ("I do not know.", "4713", False),
    ],
)
def test_an_answer_is_right_if_its_words_are_there_as_they_are(text: str, answer: str, *, right: bool) -> None:
    """As a person would mark it: case, punctuation and the sentence around it do not count, other digits do."""
    assert content_reward(text, "anything", answer) == float(right)


@pytest.mark.parametrize(
    ("text", "reference", "reward"),
    [
        ("the lamp is amber", "The lamp is amber.", 1.0),
        ("The lamp is green", "The lamp is amber", 0.75),
        ("amber", "The lamp is amber", 0.4),
        ("lamp lamp lamp lamp", "The lamp is amber", 0.25),
        ("no idea", "The lamp is amber", 0.0),
        ("", "The lamp is amber", 0.0),
        ("", "", 1.0),
        ("…", "?!", 1.0),
    ],
)
def test_without_an_answer_the_overlap_with_the_reference_counts(text: str, reference: str, reward: float) -> None:
    """F1 of words: repeating one of them earns nothing, saying too little or too much costs."""
    assert content_reward(text, reference, None) == pytest.approx(reward)


WORD = st.sampled_from(["lamp", "port", "4713", "is", "amber", "10:30"])
WORDS = st.lists(WORD, max_size=6)


@given(WORDS, WORDS, st.data())
def test_saying_one_more_word_of_the_reference_never_lowers_the_reward(
    text: list[str], reference: list[str], data: st.DataObject
) -> None:
    """So that no optimisation is led away from the content."""
    missing = list(reference)
    for word in text:
        if word in missing:
            missing.remove(word)
    if missing:
        more = [*text, data.draw(st.sampled_from(missing))]
        before, after = (content_reward(" ".join(t), " ".join(reference), None) for t in (text, more))
        assert after > before


@given(st.text(), st.text(), st.none() | st.text())
def test_a_reward_is_always_between_0_and_1(text: str, reference: str, answer: str | None) -> None:
    """For any text in any script."""
    assert 0.0 <= content_reward(text, reference, answer) <= 1.0


@given(WORDS, WORDS, WORDS)
def test_an_answer_inside_any_sentence_is_right(before: list[str], answer: list[str], after: list[str]) -> None:
    """What stands around it does not matter."""
    text = " ".join([*before, *answer, *after])
    assert content_reward(text, "", " ".join(answer)) == float(bool(answer))


def test_numbers_stay_whole_and_sentences_end() -> None:
    """The words that everything above is counted in."""
    assert words("Set 10:30, 1,024.5 or v2; it's port:415. End.of 3.x") == [
        "set", "10:30", "1,024.5", "or", "v2", "it's", "port", "415", "end", "of", "3", "x",
    ]  # fmt: skip


# ---- the other checks ----


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("1024", "1024"),
        ("1,024", "1024"),
        ("1024.0", "1024"),
        ("It is 1,234,567.89.", "1234567.89"),
        ("$5.", "5"),
        ("It costs €5", "5"),
        ("£5", "5"),
        ("50%", "50"),
        ("50 %, I think", "50"),
        ("5kg", "5"),
        ("the 5th", "5"),
        ("3, then 4, then 12", "12"),
        ("#### 72", "72"),
        ("**72**", "72"),
        ("\\boxed{72}", "72"),
        ("x=72", "72"),
        ("The answer is...42", "42"),
        ("No, wait.42", "42"),
        ("-7", "-7"),
        ("x = -7", "-7"),
        ("(-7)", "-7"),
        ("-$7", "-7"),
        ("$-7", "-7"),
        ("\u22127", "-7"),
        ("5 - 7", "7"),
        ("5-7", "7"),
        ("5\u20137", "7"),
        ("$5-$7", "7"),
        ("5%-7%", "7"),
        ("from (a)-7", "7"),
        ("x-7", "7"),
        (".5", "0.5"),
        ("-.5", "-0.5"),
        ("5.", "5"),
        ("1e-05", "0.00001"),
        ("2.5E3 Pa", "2500"),
        ("3e", "3"),
        ("serial 3e45x", "3"),
        ("1,2,3", "3"),
        ("12,3456", "3456"),
        ("10:30", "30"),
        ("1/2", "2"),
        ("2026-11-05", "5"),
        ("3.14.15", "3.14"),
        ("42 of v1.2", "42"),
        ("42 for pump7", "42"),
        ("\u0664\u0662", "42"),
    ],
)
def test_the_last_number_is_read_as_a_person_reads_it(text: str, number: str) -> None:
    """Separators, currencies, units and emphasis do not count; a dash is a sign only where nothing is before it."""
    assert last_number(text) == Decimal(number)


@pytest.mark.parametrize("text", ["", "seven", "v1.2", "pump7", "x\u00b2", "-", "$", ",", "...", "e5"])
def test_a_text_without_a_number_has_none(text: str) -> None:
    """Digits inside names are no numbers."""
    assert last_number(text) is None


@pytest.mark.parametrize(
    ("check", "text", "answer", "right"),
    [
        ("number", "18 - 7 = 11 eggs, so she earns $22.", "22", True),
        ("number", "18 - 7 = 11 eggs, so she earns $22.", "11", False),
        ("number", "1,024.0", "1024", True),
        ("number", "1024", "1,024", True),
        ("number", "7", "-7", False),
        ("number", "-7", "7", False),
        ("number", "0.1", "0.10", True),
        ("number", "0.1000000000000000001", "0.1", False),
        ("number", "no idea", "22", False),
        ("number", "no idea", "none", False),
        ("number", "", "0", False),
        ("exact", "Amber.", "amber", True),
        ("exact", "**1,024**", "1,024", True),
        ("exact", "1024", "1,024", False),
        ("exact", "It is amber", "amber", False),
        ("exact", "half", "half amber", False),
        ("exact", "", "?!", False),
        ("contains", "It is amber", "amber", True),
        ("contains", "It is 22 of 30", "22", True),
        ("contains", "", "?!", False),
    ],
)
def test_a_row_says_how_its_answer_is_compared(check: str, text: str, answer: str, *, right: bool) -> None:
    """By its words anywhere, by its words alone, or by the last number, which is exact."""
    assert content_reward(text, "anything", answer, check) == float(right)


@given(
    st.sampled_from(sorted(ANSWER_CHECKS)), st.text("0123456789.,-+$%eE :a\u2212\u0664\u00b2") | st.text(), st.text()
)
def test_every_check_judges_any_text(check: str, text: str, answer: str) -> None:
    """It never raises, and a blank text is never right."""
    assert content_reward(text, "", answer, check) in {0.0, 1.0}
    assert content_reward(" ", "", text, check) == 0.0
    assert content_reward("", "", answer, check) == 0.0


@given(st.decimals(-(10**9), 10**9, places=3), st.sampled_from(["{:f}", "{:,}"]), st.sampled_from(["", " is it", "kg"]))
def test_any_number_is_found_however_it_is_written(number: Decimal, form: str, after: str) -> None:
    """With or without separators, and whatever follows."""
    assert last_number(f"It is {form.format(number)}{after}") == number


def test_without_an_answer_the_check_says_nothing() -> None:
    """Then the overlap with the reference counts as ever."""
    assert content_reward("the lamp is amber", "The lamp is amber.", None, "number") == 1.0
