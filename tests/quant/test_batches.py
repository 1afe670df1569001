from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from quant.shared.chat import Encoded
from quant.shared.packing import Schedule, fill_rows, pack


@given(st.lists(st.integers(1, 40), max_size=60), st.integers(1, 8), st.integers(40, 90))
def test_rows_hold_every_example_once_and_keep_both_limits(lengths: list[int], examples: int, tokens: int) -> None:
    """No example is lost or doubled, and no row exceeds its examples or tokens."""
    rows = fill_rows(lengths, examples, tokens)
    assert [i for row in rows for i in row] == list(range(len(lengths)))
    assert all(len(row) <= examples and sum(lengths[i] for i in row) <= tokens for row in rows)


def test_a_packed_row_has_no_padding_and_restarts_positions_at_each_example() -> None:
    """Restarting positions are what keeps one example's tokens from seeing another's."""
    first = Encoded("a", [5, 6, 7], [False, False, True], [False, False, True], cut=False)
    second = Encoded("b", [8, 9], [False, True], [False, False], cut=False)
    row = pack([first, second], torch.device("cpu"))
    assert row.ids.tolist() == [[5, 6, 7, 8, 9]]
    assert row.positions.tolist() == [[0, 1, 2, 0, 1]]
    assert (row.predict_at.tolist(), row.targets.tolist(), row.owners.tolist()) == ([1, 3], [7, 9], [0, 1])
    assert row.is_value.tolist() == [True, False]


@given(st.integers(1, 50), st.integers(1, 12), st.integers(0, 5))
def test_each_pass_sees_every_example_once_in_an_order_of_its_own(examples: int, per_step: int, seed: int) -> None:
    """The order depends on seed and pass alone, so that a resumed run sees what the first would have seen."""
    schedule = Schedule.plan(examples, per_step, seed, epochs=2.0, steps=0)
    again = Schedule.plan(examples, per_step, seed, epochs=2.0, steps=0)
    for epoch in range(2):
        steps = range(epoch * schedule.per_epoch, (epoch + 1) * schedule.per_epoch)
        seen = [i for step in steps for i in schedule.members(step)]
        assert sorted(seen) == list(range(examples))
        assert seen == [i for step in steps for i in again.members(step)]
    assert schedule.total == 2 * schedule.per_epoch


@given(st.integers(1, 50), st.integers(1, 12), st.integers(1, 200))
def test_passes_count_from_the_step_at_which_the_examples_took_over(examples: int, per_step: int, first: int) -> None:
    """Each example once in each pass, in another order than a run that began with them."""
    schedule = Schedule.plan(examples, per_step, 0, epochs=1.0, steps=1000, first=first)
    seen = [i for step in range(first, first + schedule.per_epoch) for i in schedule.members(step)]
    assert sorted(seen) == list(range(examples))


def test_steps_override_epochs_and_part_of_an_epoch_is_at_least_one_step() -> None:
    """`steps` is exact; a fraction of an epoch is rounded up."""
    assert Schedule.plan(80, 8, 0, epochs=6, steps=7).total == 7
    assert Schedule.plan(80, 8, 0, epochs=0.01, steps=0).total == 1
