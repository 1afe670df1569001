"""Encoded examples on the disk."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from quant.shared.chat import Encoded
from quant.shared.corpus import Corpus

tokens = st.lists(st.tuples(st.integers(0, 2**31 - 1), st.booleans(), st.booleans()), max_size=6)


def encoded(name: str, columns: list[tuple[int, bool, bool]], *, cut: bool) -> Encoded:
    ids, target, value = ([column[at] for column in columns] for at in range(3))
    return Encoded(name, ids, target, [t and v for t, v in zip(target, value, strict=True)], cut)


examples_of_any_kind = st.builds(encoded, st.text(max_size=10), tokens, cut=st.booleans())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(examples_of_any_kind, max_size=4))
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
