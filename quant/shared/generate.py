"""Greedy answers as text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from quant.shared.model import Model


@dataclass(frozen=True)
class Generated:
    """One answer: the text without its end token, and how many tokens it took."""

    text: str
    tokens: int


def greedy(
    model: Model, prompts: Sequence[list[int]], max_new_tokens: int, memory_budget: int = 0
) -> Iterator[tuple[int, Generated]]:
    """Yield (index, answer) for every prompt, in whatever order they are ready."""
    for index, answer in model.answers(prompts, max_new_tokens, memory_budget):
        text = model.encoder.tokenizer.decode(answer, skip_special_tokens=True).strip()
        yield index, Generated(text, len(answer))
