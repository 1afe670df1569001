from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import ARCHITECTURES, each

from quant.hf.model import open_model
from quant.load import load
from quant.shared.loss import mean_losses

ROWS = [
    [{"role": "user", "content": "what is the port?"}, {"role": "assistant", "content": "the port is 4713"}],
    [{"role": "user", "content": "colour of the lamp"}, {"role": "assistant", "content": "red"}],
    [{"role": "user", "content": "and the pump, what is it for?"}, {"role": "assistant", "content": "the lamp " * 6}],
]


@pytest.mark.parametrize("architecture", each(ARCHITECTURES))
@pytest.mark.slow
def test_packing_changes_no_loss(tiny_base: Callable[[str], Path], architecture: str) -> None:
    """Examples that share a row have the losses they have alone: attention never crosses a border."""
    model = load(tiny_base(architecture), None, "cpu", "float32")
    examples = [model.encoder.example(str(i), row, 512) for i, row in enumerate(ROWS)]
    together = mean_losses(model, examples, 10_000)
    alone = mean_losses(model, examples, 1)
    assert [whole for whole, _ in together] == pytest.approx([whole for whole, _ in alone], rel=1e-5)


def in_transformers(base: Path, ids: list[int], labels: list[int]) -> float:
    """The loss that transformers' own labels path computes."""
    network = open_model(base, None, torch.device("cpu"), torch.float32).network
    return float(network(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss)


@pytest.mark.parametrize("architecture", each(ARCHITECTURES))
def test_the_loss_is_what_transformers_itself_computes(tiny_base: Callable[[str], Path], architecture: str) -> None:
    """Held to the library's own labels path, with everything but the assistant masked out."""
    model = load(tiny_base(architecture), None, "cpu", "float32")
    example = model.encoder.example("x", ROWS[0], 512)
    labels = [token if target else -100 for token, target in zip(example.ids, example.target, strict=True)]
    theirs = in_transformers(tiny_base(architecture), example.ids, labels)
    ((ours, value),) = mean_losses(model, [example], 512)
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert value is None


def test_the_loss_of_a_value_is_that_of_its_tokens(tiny_base: Callable[[str], Path]) -> None:
    """Other rows that share the pass change nothing, and rows without a value have none."""
    model = load(tiny_base("llama"), None, "cpu", "float32")
    valued = model.encoder.example("x", ROWS[0], 512, "4713")
    labels = [token if value else -100 for token, value in zip(valued.ids, valued.value, strict=True)]
    theirs = in_transformers(tiny_base("llama"), valued.ids, labels)
    others = [model.encoder.example(str(i), row, 512) for i, row in enumerate(ROWS)]
    found = mean_losses(model, [others[1], valued, others[2]], 512)
    assert [value for _, value in found] == [None, pytest.approx(theirs, rel=1e-5), None]
