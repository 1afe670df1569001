"""The lean path as the worker sees it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from agent.contract.errors import BaseModelError, DataError
from agent.contract.settings import Training
from quant.lean import adapter as adapters
from quant.lean import memory
from quant.lean.adapter import Adapter
from quant.lean.answer import answers, cache_bytes, stream
from quant.lean.architecture import architecture
from quant.lean.decoder import Decoder, open_decoder
from quant.lean.prefix import PrefixCache
from quant.lean.tokens import Tokenizer
from quant.shared.chat import Encoder
from quant.shared.flat_params import FlatParams
from quant.shared.packing import PackedRow
from quant.shared.sampling import Sampler
from quant.shared.streaming import Tokens


class LeanModel:
    """A decoder of the lean path with its tokenizer."""

    def __init__(self, folder: Path, decoder: Decoder) -> None:
        self.folder, self.decoder = folder, decoder
        self.encoder = Encoder(Tokenizer(folder))
        self.architecture = decoder.arch.kind
        self.device, self.dtype = decoder.device, decoder.dtype

    @property
    def adapter(self) -> Adapter | None:
        """The adapter, if there is one."""
        return self.decoder.adapter

    @property
    def trainable(self) -> FlatParams | None:
        """The adapter's parameters and gradients."""
        return self.adapter.flat if self.adapter else None

    def losses(self, row: PackedRow) -> torch.Tensor:
        """Loss of each target of a packed row in nats, (N,) float32."""
        return self.decoder.losses(row)

    def learn(self, row: PackedRow, shares: torch.Tensor) -> torch.Tensor:
        """The same; adds the gradients of their sum, each times its share (N,), to those of the adapter."""
        return self.decoder.learn(row, shares)

    def answers(
        self, prompts: Sequence[list[int]], most: int, memory_budget: int = 0
    ) -> Iterator[tuple[int, list[int]]]:
        """Yield (index, tokens) of a greedy answer of at most `most` tokens to each prompt, without its stop token."""
        wanted = cache_bytes(self.decoder.arch, max(map(len, prompts), default=0) + most, len(prompts))
        plan = memory.plan_answers(self.decoder.arch, self.dtype, self._budget(memory_budget), wanted)
        self.decoder.apply(plan)
        return answers(self.decoder, prompts, most, self.encoder.stop_ids, plan.cache)

    def prepare_answer(self, prompt: int, most: int, memory_budget: int) -> int:
        """The tokens, `most` at most, that an answer to a prompt of so many may have within a budget in MB."""
        plan, room = memory.plan_one_answer(self.decoder.arch, self.dtype, self._budget(memory_budget), prompt, most)
        if room < 1:
            told = f"there is no memory for an answer to {prompt} tokens"
            raise DataError(f"{told}: begin a new conversation, close other programs, or raise memory_budget")
        self.decoder.apply(plan)
        return room

    def stream(self, prompt: list[int], most: int, sampler: Sampler | None = None) -> Tokens:
        """Yield the tokens of the answer to one prompt as they come, its stop token not included."""
        return stream(self.decoder, prompt, most, self.encoder.stop_ids, sampler)

    def add_adapter(self, settings: Training) -> None:
        """A fresh LoRA adapter on every linear layer of the top blocks; its start depends on the seed alone."""
        blocks = self.decoder.arch.layers
        layers = list(range(blocks - max(1, round(settings.top_layers * blocks)), blocks))
        self.decoder.attach(adapters.new_adapter(self.decoder.arch, settings, layers, self.device))

    def prepare_training(self, settings: Training, scratch: Path) -> None:
        """Keep what the backward pass needs, and matrices unpacked, of as many blocks as the budget has room for.

        What the blocks below the adapter make of each example is kept in the folder `scratch`.
        """
        trainable = len(self.adapter.flat.values) if self.adapter else 0
        budget = self._budget(settings.memory_budget)
        self.decoder.apply(memory.plan_training(self.decoder.arch, self.dtype, settings, trainable, budget))
        is_partial = self.adapter is not None and self.adapter.layers[0] > 0
        if is_partial and settings.prefix_cache and self.decoder.prefix is None:
            self.decoder.prefix = PrefixCache(scratch, settings.prefix_cache * 10**6)

    def end_training(self) -> None:
        """Give the scratch memory back: what reading the tokenizer takes for a moment must not come on top of it."""
        self.decoder.arena.release()

    def _budget(self, megabytes: int) -> float:
        """Bytes; what is held already counts as free."""
        return memory.budget(megabytes, self.device, self.decoder.bytes_unpacked)

    def save(self, folder: Path) -> None:
        """Write the adapter as peft does into `folder`. Raises ValueError without an adapter."""
        if self.adapter is None:
            raise ValueError("there is no adapter to save")
        adapters.write(self.adapter, self.decoder.arch, str(self.folder), folder)


def open_model(folder: Path, adapter: Path | None, device: torch.device, dtype: torch.dtype) -> LeanModel:
    """Map a prepared base model of the family; raises BaseModelError if it or its adapter is not what it should be."""
    arch = architecture(json.loads((folder / "config.json").read_text()))
    if arch is None:
        raise BaseModelError(f"{folder}: not an architecture of the lean path")
    try:
        decoder = open_decoder(folder, arch, device, dtype)
    except KeyError as fault:
        raise BaseModelError(f"the base model lacks {fault}; run `nslora-agent init --again`") from fault
    if adapter is not None:
        decoder.attach(adapters.read(arch, adapter, device))
    return LeanModel(folder, decoder)
