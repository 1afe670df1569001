"""Every architecture that transformers knows and the lean path does not: transformers, peft and bitsandbytes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, PeftModel, get_peft_model
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.utils import logging as transformers_logging

from agent.contract.settings import Training
from quant.shared.chat import Encoder
from quant.shared.flat_params import FlatParams
from quant.shared.packing import PackedRow
from quant.shared.sampling import Sampler
from quant.shared.streaming import Tokens

transformers_logging.disable_progress_bar()

BATCH = 32
"""Prompts answered together: at 4 bits every step dequantises the whole model once, however many rows share it."""


class HfModel:
    """A model of transformers in 4 bits, with an adapter of peft if `trainable` is set."""

    def __init__(self, network: Any, encoder: Encoder, device: torch.device, dtype: torch.dtype) -> None:
        self.network, self.encoder, self.device, self.dtype = network, encoder, device, dtype
        self.architecture = str(network.config.model_type)
        self.trainable = _flatten(network, device) if isinstance(network, PeftModel) else None

    @torch.inference_mode()
    def losses(self, row: PackedRow) -> torch.Tensor:
        """Loss of each target of a packed row in nats, (N,) float32."""
        self.network.eval()
        return self._losses(row)

    def learn(self, row: PackedRow, shares: torch.Tensor) -> torch.Tensor:
        """The same; adds the gradients of their sum, each times its share (N,), to those of the adapter."""
        self.network.train()
        losses = self._losses(row)
        (losses * shares).sum().backward()
        return losses.detach()

    def _losses(self, row: PackedRow) -> torch.Tensor:
        """Losses of a row; logits are made for the N predicting positions alone.

        Without an attention mask the model reads the restarts in `positions` as the borders between examples.
        """
        output = self.network(
            input_ids=row.ids, position_ids=row.positions, logits_to_keep=row.predict_at, use_cache=False
        )
        return functional.cross_entropy(output.logits[0].float(), row.targets, reduction="none")

    @torch.inference_mode()
    def answers(
        self, prompts: Sequence[list[int]], most: int, memory_budget: int = 0
    ) -> Iterator[tuple[int, list[int]]]:
        """Yield (index, tokens) of a greedy answer to each prompt, longest first so that a batch pads little."""
        del memory_budget
        self.network.eval()
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=most,
            eos_token_id=self.encoder.stop_ids,
            pad_token_id=self.encoder.pad_id,
        )
        order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]))
        for start in range(0, len(order), BATCH):
            members = order[start : start + BATCH]
            width = max(len(prompts[i]) for i in members)
            padding = [width - len(prompts[i]) for i in members]  # on the left
            ids = [[self.encoder.pad_id] * pad + prompts[i] for i, pad in zip(members, padding, strict=True)]
            mask = [[0] * pad + [1] * (width - pad) for pad in padding]
            output = self.network.generate(
                input_ids=torch.tensor(ids, device=self.device),
                attention_mask=torch.tensor(mask, device=self.device),
                generation_config=config,
            )
            for index, answer in zip(members, output[:, width:].tolist(), strict=True):
                stops = [i for i, token in enumerate(answer) if token in self.encoder.stop_ids]
                yield index, answer[: stops[0]] if stops else answer

    def prepare_answer(self, prompt: int, most: int, memory_budget: int) -> int:
        """All of the tokens that were asked for; there is no plan for this way."""
        del prompt, memory_budget
        return most

    @torch.inference_mode()
    def stream(self, prompt: list[int], most: int, sampler: Sampler | None = None) -> Tokens:
        """Yield the tokens of the answer to one prompt as they come, its stop token not included."""
        self.network.eval()
        ids, cache = torch.tensor([prompt], device=self.device), None
        for _ in range(most):
            output = self.network(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
            logits, cache = output.logits[0, -1:].float(), output.past_key_values
            ids = (sampler.add_noise(logits) if sampler else logits).argmax(1, keepdim=True)
            if int(ids) in self.encoder.stop_ids:
                return
            yield int(ids)

    def add_adapter(self, settings: Training) -> None:
        """A fresh LoRA adapter on every linear layer of the top blocks; its start depends on the seed alone."""
        blocks = self.network.config.num_hidden_layers
        top = list(range(blocks - max(1, round(settings.top_layers * blocks)), blocks))
        # peft takes a choice of blocks only beside a list of names.
        linears = {n.rpartition(".")[2] for n, module in self.network.named_modules() if isinstance(module, Linear4bit)}
        torch.manual_seed(settings.seed)
        config = LoraConfig(
            r=settings.rank,
            lora_alpha=settings.alpha,
            target_modules="all-linear" if len(top) == blocks else sorted(linears),
            layers_to_transform=top if len(top) < blocks else None,
            lora_dropout=0.0,
            task_type="CAUSAL_LM",
        )
        self.network = get_peft_model(self.network, config)
        self.trainable = _flatten(self.network, self.device)

    def prepare_training(self, settings: Training, scratch: Path) -> None:
        """Activations are computed again in the backward pass, whatever memory there is."""
        del settings, scratch
        self.network.gradient_checkpointing_enable({"use_reentrant": False})

    def end_training(self) -> None:
        """Nothing is kept between steps."""

    def save(self, folder: Path) -> None:
        """Write the adapter as peft does into `folder`."""
        self.network.save_pretrained(folder, safe_serialization=True)


def open_model(folder: Path, adapter: Path | None, device: torch.device, dtype: torch.dtype) -> HfModel:
    """Load a prepared base model and, if given, a PEFT adapter on top of it."""
    config = AutoConfig.from_pretrained(folder)
    config.quantization_config["bnb_4bit_compute_dtype"] = str(dtype).removeprefix("torch.")
    network = AutoModelForCausalLM.from_pretrained(folder, config=config, device_map={"": device}, use_safetensors=True)
    _freeze(network, dtype)
    if adapter is not None:
        network = PeftModel.from_pretrained(network, adapter, is_trainable=True)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    # Text that was said must not change with the token after it.
    tokenizer.clean_up_tokenization_spaces = False
    return HfModel(network, Encoder(tokenizer), device, dtype)


def _freeze(network: Any, dtype: torch.dtype) -> None:
    """Freeze the base; everything that is not 4-bit becomes float32, whatever type it was stored in.

    So the residual stream is exact and only the matrix products run in the compute dtype, as in QLoRA. With all of
    it in bfloat16 the 24 facts of the example stayed at 0.44 where float32 reached 0.9 (docs/lab-log.md).
    """
    network.requires_grad_(requires_grad=False)
    for parameter in network.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.float()
    for module in network.modules():
        if isinstance(module, Linear4bit):
            module.weight.quant_state.dtype = dtype
            # On CPUs with AVX512-BF16 the first answer would repack the weights in place for a kernel that has no
            # backward: training after it would silently learn nothing.
            module.support_avx512bf16_for_cpu = False


def _flatten(network: Any, device: torch.device) -> FlatParams:
    """The adapter's parameters moved into one vector, where peft goes on reading them."""
    parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
    flat = FlatParams.zeros({name: tuple(p.shape) for name, p in parameters.items()}, device)
    values, grads = flat.views(flat.values), flat.views(flat.grads)
    for name, parameter in parameters.items():
        values[name].copy_(parameter.data)
        parameter.data, parameter.grad = values[name], grads[name]
    return flat
