"""The loss: negative log-likelihood of assistant tokens, computed on those positions only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from quant.batches import Row, fill_rows, pack
from quant.chat import Encoded


def token_losses(model: Any, row: Row) -> torch.Tensor:
    """Loss of each target of a packed row in nats, shape (N,), float32.

    Without an attention mask the model reads the restarts in `positions` as the borders between examples;
    logits are made for the N predicting positions alone.
    """
    output = model(input_ids=row.ids, position_ids=row.positions, logits_to_keep=row.predict_at, use_cache=False)
    return functional.cross_entropy(output.logits[0].float(), row.targets, reduction="none")


@torch.inference_mode()
def mean_losses(
    model: Any, examples: Sequence[Encoded], most_tokens: int, device: torch.device
) -> list[tuple[float, float | None]]:
    """Mean loss of each example in nats per token, in order: over its targets, of which it needs one, and its value.

    The second is None where the example has no value.
    """
    losses: list[tuple[float, float | None]] = []
    for members in fill_rows([len(e.ids) for e in examples], len(examples), most_tokens):
        row = pack([examples[i] for i in members], device)
        each = token_losses(model, row)
        whole = _means(each, row.owners, len(members))
        values = _means(each[row.is_value], row.owners[row.is_value], len(members))
        losses += [(all_, None if math.isnan(value) else value) for all_, value in zip(whole, values, strict=True)]
    return losses


def _means(losses: torch.Tensor, owners: torch.Tensor, members: int) -> list[float]:
    """Mean loss of each owner; NaN for one without any."""
    summed = torch.zeros(members, device=losses.device).index_add_(0, owners, losses)
    return (summed / owners.bincount(minlength=members)).tolist()
