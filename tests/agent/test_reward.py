from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.reward import content_reward, words


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
