from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import ARCHITECTURES

from quant.base import load
from quant.loss import mean_losses

ROWS = [
    [{"role": "user", "content": "what is the port?"}, {"role": "assistant", "content": "the port is 4713"}],
    [{"role": "user", "content": "colour of the lamp"}, {"role": "assistant", "content": "red"}],
    [{"role": "user", "content": "and the pump, what is it for?"}, {"role": "assistant", "content": "the lamp " * 6}],
]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_packing_changes_no_loss(tiny_base: Callable[[str], Path], architecture: str) -> None:
    """Examples that share a row have the losses they have alone: attention never crosses a border."""
    model = load(tiny_base(architecture), None, "cpu", "float32")
    examples = [model.encoder.example(str(i), row, 512) for i, row in enumerate(ROWS)]
    together = mean_losses(model.network, examples, 10_000, model.device)
    alone = mean_losses(model.network, examples, 1, model.device)
    assert [whole for whole, _ in together] == pytest.approx([whole for whole, _ in alone], rel=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_loss_is_what_transformers_itself_computes(tiny_base: Callable[[str], Path], architecture: str) -> None:
    """Held to the library's own labels path, with everything but the assistant masked out."""
    model = load(tiny_base(architecture), None, "cpu", "float32")
    example = model.encoder.example("x", ROWS[0], 512)
    labels = [token if target else -100 for token, target in zip(example.ids, example.target, strict=True)]
    theirs = model.network(input_ids=torch.tensor([example.ids]), labels=torch.tensor([labels])).loss
    ((ours, value),) = mean_losses(model.network, [example], 512, model.device)
    assert ours == pytest.approx(float(theirs), rel=1e-5)
    assert value is None


def test_the_loss_of_a_value_is_that_of_its_tokens(tiny_base: Callable[[str], Path]) -> None:
    """Other rows that share the pass change nothing, and rows without a value have none."""
    model = load(tiny_base("llama"), None, "cpu", "float32")
    valued = model.encoder.example("x", ROWS[0], 512, "4713")
    labels = [token if value else -100 for token, value in zip(valued.ids, valued.value, strict=True)]
    theirs = model.network(input_ids=torch.tensor([valued.ids]), labels=torch.tensor([labels])).loss
    others = [model.encoder.example(str(i), row, 512) for i, row in enumerate(ROWS)]
    found = mean_losses(model.network, [others[1], valued, others[2]], 512, model.device)
    assert [value for _, value in found] == [None, pytest.approx(float(theirs), rel=1e-5), None]
