"""Encoded examples on the disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quant.chat import Encoded
from quant.corpus import Corpus

marks = st.lists(st.booleans(), min_size=0, max_size=20)


@st.composite
def encoded(draw: st.DrawFn) -> Encoded:
    target = draw(marks)
    tokens = [draw(st.integers(0, 2**31 - 1)) for _ in target]
    value = [t and draw(st.booleans()) for t in target]
    return Encoded(draw(st.text(max_size=50)), tokens, target, value, draw(st.booleans()))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(encoded(), max_size=8))
def test_examples_come_back_as_they_went_in(tmp_path: Path, examples: list[Encoded]) -> None:
    """Ids, tokens, marks; by number, from the end, in slices."""
    corpus = Corpus(tmp_path)
    for example in examples:
        corpus.add(example)
    corpus.finish()
    assert list(corpus) == corpus[:] == examples
    if examples:
        assert corpus[-1] == examples[-1]
    with pytest.raises(IndexError):
        corpus[len(examples)]
    corpus.close()


def test_nothing_is_left_on_the_disk(tmp_path: Path) -> None:
    """The files have no name, so that no death of the process leaves them."""
    corpus = Corpus(tmp_path)
    assert not list(tmp_path.iterdir())
    corpus.close()
