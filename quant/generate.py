"""Greedy answers to many prompts at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import GenerationConfig

from quant.base import Model

BATCH = 32
"""Prompts answered together: at 4 bits every step dequantises the whole model once, however many rows share it."""


@dataclass(frozen=True)
class Generated:
    """One answer: the text without its end token, and how many tokens it took."""

    text: str
    tokens: int


@torch.inference_mode()
def greedy(model: Model, prompts: Sequence[list[int]], max_new_tokens: int) -> Iterator[tuple[int, Generated]]:
    """Yield (index, answer) for every prompt, longest prompts first so that a batch pads little."""
    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=model.encoder.stop_ids,
        pad_token_id=model.encoder.pad_id,
    )
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
    for start in range(0, len(order), BATCH):
        members = order[start : start + BATCH]
        ids, mask = _left_padded([prompts[i] for i in members], model.encoder.pad_id, model.device)
        output = model.network.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        for index, answer in zip(members, output[:, ids.shape[1] :].tolist(), strict=True):
            yield index, _decode(model, answer)


def _left_padded(prompts: list[list[int]], pad: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(p) for p in prompts)
    ids = [[pad] * (width - len(p)) + p for p in prompts]
    mask = [[0] * (width - len(p)) + [1] * len(p) for p in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _decode(model: Model, answer: list[int]) -> Generated:
    stops = [i for i, token in enumerate(answer) if token in model.encoder.stop_ids]
    kept = answer[: stops[0]] if stops else answer
    return Generated(model.encoder.tokenizer.decode(kept, skip_special_tokens=True).strip(), len(kept))
