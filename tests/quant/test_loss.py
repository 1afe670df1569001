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
    assert together == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_the_loss_is_what_transformers_itself_computes(tiny_base: Callable[[str], Path], architecture: str) -> None:
    """Held to the library's own labels path, with everything but the assistant masked out."""
    model = load(tiny_base(architecture), None, "cpu", "float32")
    example = model.encoder.example("x", ROWS[0], 512)
    labels = [token if target else -100 for token, target in zip(example.ids, example.target, strict=True)]
    theirs = model.network(input_ids=torch.tensor([example.ids]), labels=torch.tensor([labels])).loss
    assert mean_losses(model.network, [example], 512, model.device) == pytest.approx([float(theirs)], rel=1e-5)
