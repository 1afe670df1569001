"""Mean losses of examples, many in a row."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from quant.shared.chat import Encoded
from quant.shared.model import Model
from quant.shared.packing import fill_rows, pack


def mean_losses(model: Model, examples: Sequence[Encoded], most_tokens: int) -> list[tuple[float, float | None]]:
    """Mean loss of each example in nats per token, in order: over its targets, of which it needs one, and its value.

    The second is None where the example has no value.
    """
    losses: list[tuple[float, float | None]] = []
    for members in fill_rows([len(e.ids) for e in examples], len(examples), most_tokens):
        row = pack([examples[i] for i in members], model.device)
        each = model.losses(row)
        whole = _means(each, row.owners, len(members))
        values = _means(each[row.is_value], row.owners[row.is_value], len(members))
        losses += [(all_, None if math.isnan(value) else value) for all_, value in zip(whole, values, strict=True)]
    return losses


def _means(losses: torch.Tensor, owners: torch.Tensor, members: int) -> list[float]:
    """Mean loss of each owner; NaN for one without any."""
    summed = torch.zeros(members, device=losses.device).index_add_(0, owners, losses)
    return (summed / owners.bincount(minlength=members)).tolist()
