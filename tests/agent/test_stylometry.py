from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from math import log2

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent.scoring.stylometry import LEAST_SPREAD, Stylometry, form

REFERENCES = (
    "The pump in hall 3 hums because its bearing is worn. Replace the bearing before the next shift.",
    "The lamp above the door is amber. That means the tank is being filled, so keep the valve closed.",
    "Press the green button twice and wait for the tone. The display then shows the pressure in bar.",
    "The filter has to be changed every 90 days. A spare one lies in the cabinet next to the stairs.",
)
"""Two plain sentences each, in one line."""
STYLE = Stylometry.of(REFERENCES)
NAMES = ("words a sentence", "letters a word", "capitals", "digits", "marks", "lines")


def test_the_form_of_a_text_can_be_counted_by_hand() -> None:
    """Four words a sentence, 13 letters of 4 words, capitals 2 of 12 letters, one digit, three marks, two lines."""
    assert form("No, Pump 3\nhummed.") == pytest.approx((2.0, (2 + 4 + 1 + 6) / 4, 2 / 12, 1 / 18, 2 / 4, 1.0))
    assert form("One two. Three four! Five six?")[0] == pytest.approx(1.0)


def test_a_point_inside_a_number_ends_no_sentence_and_blank_lines_around_a_text_are_none_of_it() -> None:
    """Six words in two sentences; one line."""
    assert form("It is 1.5 bar. Or 2.5?")[0] == pytest.approx(log2(3))
    assert form("\n\n one \n\n")[5] == 0.0


@pytest.mark.parametrize("text", ["", " \n ", "?!", "\u0664", "\U0001f600", "x"])
def test_every_text_has_a_form(text: str) -> None:
    """Also where there is nothing to divide by."""
    assert len(form(text)) == len(LEAST_SPREAD) == len(NAMES)


@given(st.text() | st.text("aA1.! \n"))
def test_a_likeness_is_between_0_and_1(text: str) -> None:
    """For any text in any script; only a blank one has nothing."""
    assert 0.0 <= STYLE.likeness(text) <= 1.0
    assert (STYLE.likeness(text) == 0.0) == (not text.strip())


@settings(max_examples=50)
@given(st.lists(st.text(), min_size=1, max_size=5), st.text())
def test_any_references_make_a_style(references: list[str], text: str) -> None:
    """One is enough, and it may be anything."""
    assert 0.0 <= Stylometry.of(references).likeness(text) <= 1.0


def test_no_references_make_no_style() -> None:
    """There is nothing to be like."""
    with pytest.raises(ValueError, match="zip"):
        Stylometry.of([])


@pytest.mark.parametrize("text", REFERENCES)
def test_the_references_are_like_themselves(text: str) -> None:
    """Nearly: some are a little more than one spread off in one feature."""
    assert STYLE.likeness(text) > 0.9


@pytest.mark.parametrize("text", ["Amber.", "LOUD!", "- a\n- b", REFERENCES[0]])
def test_a_single_reference_is_exactly_like_itself(text: str) -> None:
    """Whatever its style is."""
    assert Stylometry.of([text]).likeness(text) == 1.0


ORDERED = (
    "The valve behind the tank drips because its seal is old. Order a new seal and close the valve until then.",
    "THE VALVE BEHIND THE TANK DRIPS BECAUSE ITS SEAL IS OLD. ORDER A NEW SEAL AND CLOSE THE VALVE UNTIL THEN.",
    "- VALVE!!!\n- DRIPS!!!\n- SEAL OLD!!!\n- NEW SEAL!!!\n- CLOSE!!!",
    "",
)
"""From what the references might have said to nothing at all."""


def test_texts_are_ordered_as_a_person_would_order_them() -> None:
    """A sentence like those, the same shouted, shouted bullets, nothing; and each step is clear."""
    likeness = [STYLE.likeness(text) for text in ORDERED]
    assert likeness[0] > 0.9
    assert all(before > after + 0.1 for before, after in itertools.pairwise(likeness))


@pytest.mark.parametrize(
    "worse",
    [
        lambda text: text.upper(),
        lambda text: text.replace(" ", "\n"),
        lambda text: text.replace(" ", ", "),
        lambda text: text.replace(" ", ". "),
        lambda text: text.replace("e", "4"),
        lambda text: text.replace(" ", " a "),
        lambda text: "\n".join(f"* {word}" for word in text.split()),
        lambda text: '{"text": "' + text.replace(" ", '", "') + '"}',
        lambda text: text.split()[0],
    ],
    ids=["capitals", "lines", "commas", "sentences", "digits", "short words", "bullets", "JSON", "one word"],
)
def test_another_form_of_the_same_words_is_less_alike(worse: Callable[[str], str]) -> None:
    """Each of these would strike a person at first sight."""
    assert STYLE.likeness(worse(ORDERED[0])) < STYLE.likeness(ORDERED[0]) - 0.05


def test_what_a_text_says_does_not_count() -> None:
    """The same form with other words is as good: that is left to the content reward."""
    other = "The goose under the moon sings because its mother is far. Bring a warm coat and shut the window until ten."
    assert STYLE.likeness(other) == pytest.approx(STYLE.likeness(ORDERED[0]), abs=0.1)


@given(st.integers(0, len(NAMES) - 1), st.floats(0, 20), st.floats(0, 20), st.sampled_from([-1, 1]))
def test_farther_away_in_one_feature_is_never_better(feature: int, one: float, other: float, side: int) -> None:
    """The references' mean is moved away from a text in one feature alone, by spreads."""
    text = ORDERED[0]
    start = dataclasses.replace(STYLE, means=form(text))
    assert start.likeness(text) == 1.0

    def moved(spreads: float) -> float:
        means = list(start.means)
        means[feature] += side * spreads * start.spreads[feature]
        return dataclasses.replace(start, means=tuple(means)).likeness(text)

    near, far = sorted((one, other))
    assert moved(near) >= moved(far) > 5 / 6


@pytest.mark.parametrize("feature", range(len(NAMES)), ids=NAMES)
@pytest.mark.parametrize(("spreads", "likeness"), [(0.99, 1.0), (2.0, 11 / 12), (4.0, 7 / 8)])
def test_each_feature_counts_for_a_sixth(feature: int, spreads: float, likeness: float) -> None:
    """Within one spread it costs nothing; one beyond it, half of its sixth; three beyond it, three quarters."""
    text = ORDERED[0]
    means = list(form(text))
    means[feature] += spreads * STYLE.spreads[feature]
    assert Stylometry(tuple(means), STYLE.spreads).likeness(text) == pytest.approx(likeness)


def test_references_that_are_all_alike_still_leave_some_room() -> None:
    """A spread of zero would call every other text as far away as can be."""
    same = Stylometry.of([REFERENCES[0]] * 9)
    assert same.spreads == LEAST_SPREAD
    assert same.likeness(REFERENCES[0].replace("hums", "purrs")) > 0.95


def test_references_of_many_forms_forgive_more() -> None:
    """Where anything goes, one form more is nothing special."""
    wide = Stylometry.of([*REFERENCES, "- A!\n- B!\n- C!", "YES", '{"a": 1}', "one two three four five six seven"])
    assert wide.likeness(ORDERED[2]) > STYLE.likeness(ORDERED[2])
    assert all(new >= old for new, old in zip(wide.spreads, STYLE.spreads, strict=True))
