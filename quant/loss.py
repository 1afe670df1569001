"""The loss: negative log-likelihood of assistant tokens, computed on those positions only."""

from __future__ import annotations

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
def mean_losses(model: Any, examples: Sequence[Encoded], most_tokens: int, device: torch.device) -> list[float]:
    """Mean loss of each example in nats per target token, in order; every example needs at least one target."""
    losses: list[float] = []
    for members in fill_rows([len(e.ids) for e in examples], len(examples), most_tokens):
        row = pack([examples[i] for i in members], device)
        summed = torch.zeros(len(members), device=device).index_add_(0, row.owners, token_losses(model, row))
        losses += (summed.cpu() / torch.tensor([examples[i].targets for i in members])).tolist()
    return losses
