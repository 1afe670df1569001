"""A model as the worker's commands use it, whichever way it computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import torch

from agent.contract.errors import AgentError, BaseModelError
from agent.contract.settings import Training
from quant.shared.chat import Encoder
from quant.shared.devices import is_out_of_memory
from quant.shared.flat_params import FlatParams
from quant.shared.packing import PackedRow
from quant.shared.sampling import Sampler
from quant.shared.streaming import Tokens


@contextmanager
def foreign_faults(what: str) -> Iterator[None]:
    """Turn whatever libraries raise over files of strangers into BaseModelError, one line; want of memory stays."""
    try:
        yield
    except AgentError:
        raise
    except Exception as fault:
        if is_out_of_memory(fault):
            raise
        words = " ".join(str(fault).split())[:300]
        raise BaseModelError(f"{what}: {words or type(fault).__name__}") from fault


class Model(Protocol):
    """A prepared base model in 4 bits, with or without an adapter."""

    architecture: str
    encoder: Encoder
    device: torch.device
    dtype: torch.dtype
    trainable: FlatParams | None
    """The adapter's parameters and gradients; None without an adapter."""

    def losses(self, row: PackedRow) -> torch.Tensor:
        """Loss of each target of a packed row in nats, (N,) float32."""
        ...

    def learn(self, row: PackedRow, shares: torch.Tensor) -> torch.Tensor:
        """The same; adds the gradients of their sum, each times its share (N,), to those of the adapter."""
        ...

    def answers(
        self, prompts: Sequence[list[int]], most: int, memory_budget: int = 0
    ) -> Iterator[tuple[int, list[int]]]:
        """Yield (index, tokens) of a greedy answer of at most `most` tokens to each prompt, without its stop token.

        `memory_budget` is in MB, 0 for half of what is free.
        """
        ...

    def prepare_answer(self, prompt: int, most: int, memory_budget: int) -> int:
        """Make room for an answer to a prompt of so many tokens, within a budget in MB; returns its longest length.

        That is `most`, or less where the budget has no room for so many. Raises DataError if it has none at all.
        """
        ...

    def stream(self, prompt: list[int], most: int, sampler: Sampler | None = None) -> Tokens:
        """Yield the tokens of the answer to one prompt as they come, without its stop token.

        They are drawn by `sampler`; without one, each is the likeliest.
        """
        ...

    def add_adapter(self, settings: Training) -> None:
        """A fresh LoRA adapter on every linear layer of the top blocks; its start depends on the seed alone."""
        ...

    def prepare_training(self, settings: Training, scratch: Path) -> None:
        """Choose what to keep for the backward pass and what to compute again; `scratch` is a folder for the run."""
        ...

    def end_training(self) -> None:
        """Give back what only training needs."""
        ...

    def save(self, folder: Path) -> None:
        """Write the adapter as peft does into `folder`."""
        ...
