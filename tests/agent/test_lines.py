"""Texts cut to fit, and JSON lines of our own."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.constraints import constraint_types, extra_constraints
from agent.contract.lines import json_line, read_json_lines, shorten, shorten_line, write_json_lines
from agent.scoring import acceptance
from offload import prompts

TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=12,
)


@given(TEXTS, st.integers(3, 60), st.sampled_from(["…", "..."]))
def test_a_text_is_cut_to_fit_or_left_alone(text: str, longest: int, mark: str) -> None:
    """Never longer than it may be, and marked where something is gone."""
    short = shorten(text, longest, mark)
    assert len(short) <= longest
    if len(text) <= longest:
        assert short == text
    else:
        assert short == text[: longest - len(mark)] + mark


def test_a_text_on_one_line_is_cut_after_its_lines_were_joined() -> None:
    """Whitespace counts as one space."""
    assert shorten_line(" a \n\n b\tc ", 5) == "a b c"
    assert shorten_line("a\nb   c d", 5) == "a b …"


WORDS = "one two " * 100


@pytest.mark.parametrize(
    ("said", "ends", "length"),
    [
        (constraint_types.double_quote(WORDS), '..."', 102),
        (extra_constraints._short(WORDS), "...", 150),
        (acceptance._short(WORDS), "...", 60),
        (prompts._one_line(WORDS), "…", 400),
    ],
)
def test_what_is_sent_to_the_remote_llm_keeps_its_bytes(said: str, ends: str, length: int) -> None:
    """Their hash is the key of recorded answers: with other marks none of those would be found again."""
    text = said.removeprefix('"').removesuffix(ends)
    assert said.endswith(ends)
    assert len(said) == length
    assert WORDS.startswith(text)


@given(st.lists(JSON))
def test_what_is_written_is_read_back(tmp_path_factory: pytest.TempPathFactory, values: list[object]) -> None:
    """A line each, also with separators in a text that Python and Unicode take for ends of lines."""
    path = tmp_path_factory.getbasetemp() / "lines.jsonl"
    write_json_lines(path, [*values, {"text": "a\u2028b\x85c\x1cd\r\ne\n"}])
    assert list(read_json_lines(path)) == [*values, {"text": "a\u2028b\x85c\x1cd\r\ne\n"}]
    assert path.read_bytes().count(b"\n") == len(values) + 1


def test_a_file_is_read_as_it_is_asked_for(tmp_path: Path) -> None:
    """Memory does not grow with it."""
    path = tmp_path / "lines.jsonl"
    path.write_bytes(b"1\n2\nno JSON\n")
    assert list(itertools.islice(read_json_lines(path), 2)) == [1, 2]


def test_what_json_has_no_word_for_is_refused() -> None:
    """Other programs could not read it."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        json_line({"loss": math.nan})
