"""The adapter of the lean path: one flat vector of parameters, one of gradients; saved as plain peft saves it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from agent.errors import BaseModelError
from agent.settings import Training
from quant.lean.architecture import Architecture
from quant.lean.linear import Lora

PREFIX = "base_model.model.model.layers"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass
class Adapter:
    """LoRA matrices on every linear layer of the blocks in `layers`.

    Attributes:
        rank, alpha: of LoRA (arXiv 2106.09685).
        layers: indices of the blocks that have it.
        values, grads: all parameters and their gradients in one float32 vector each.
        loras: by block and name of the linear layer.
    """

    rank: int
    alpha: float
    layers: list[int]
    values: torch.Tensor
    grads: torch.Tensor
    loras: dict[tuple[int, str], Lora]

    @property
    def parameters(self) -> dict[str, torch.Tensor]:
        """The matrices by the names that peft gives them."""
        return dict(self._named(self.loras))

    @staticmethod
    def _named(loras: dict[tuple[int, str], Lora]) -> Iterator[tuple[str, torch.Tensor]]:
        for (layer, name), lora in loras.items():
            yield f"{PREFIX}.{layer}.{name}.lora_A.default.weight", lora.a
            yield f"{PREFIX}.{layer}.{name}.lora_B.default.weight", lora.b


def blank(arch: Architecture, rank: int, alpha: float, layers: list[int], device: torch.device) -> Adapter:
    """An adapter with nothing in it yet."""
    shapes = {(layer, name): shape for layer in layers for name, shape in arch.linears.items()}
    count = sum(rank * (outputs + inputs) for outputs, inputs in shapes.values())
    values, grads = (torch.zeros(count, device=device) for _ in range(2))
    loras, at = {}, 0
    for key, (outputs, inputs) in shapes.items():
        sizes = (rank, inputs), (outputs, rank)
        matrices = []
        for vector in (values, grads):
            start = at
            for rows, columns in sizes:
                matrices.append(vector[start : start + rows * columns].view(rows, columns))
                start += rows * columns
        at = start
        loras[key] = Lora(matrices[0], matrices[1], matrices[2], matrices[3], alpha / rank)
    return Adapter(rank, alpha, layers, values, grads, loras)


def fresh(arch: Architecture, settings: Training, layers: list[int], device: torch.device) -> Adapter:
    """A new adapter as peft starts one: A uniform after Kaiming, B zero; its start depends on the seed alone."""
    adapter = blank(arch, settings.rank, settings.alpha, layers, device)
    generator = torch.Generator().manual_seed(settings.seed)
    for lora in adapter.loras.values():
        start = torch.empty(lora.a.shape)
        torch.nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
        lora.a.copy_(start)
    return adapter


def read(arch: Architecture, folder: Path, device: torch.device) -> Adapter:
    """An adapter that was saved; raises BaseModelError if it is of another shape than the base model."""
    config = json.loads((folder / CONFIG).read_text())
    layers = config.get("layers_to_transform") or list(range(arch.layers))
    adapter = blank(arch, config["r"], config["lora_alpha"], layers, device)
    tensors = load_file(folder / WEIGHTS)
    for name, matrix in adapter.parameters.items():
        saved = tensors.get(name.replace(".default", ""))
        if saved is None or saved.shape != matrix.shape:
            raise BaseModelError(f"{folder}: the adapter does not fit this base model ({name})")
        matrix.copy_(saved)
    return adapter


def write(adapter: Adapter, arch: Architecture, base: str, folder: Path) -> None:
    """Save the adapter into `folder`, so that `PeftModel.from_pretrained` loads it."""
    folder.mkdir(parents=True, exist_ok=True)
    everywhere = adapter.layers == list(range(arch.layers))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "inference_mode": True,
        "target_modules": sorted({name.rpartition(".")[2] for name in arch.linears}),
        "layers_to_transform": None if everywhere else adapter.layers,
    }
    (folder / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    tensors = {name.replace(".default", ""): p.cpu().contiguous() for name, p in adapter.parameters.items()}
    save_file(tensors, folder / WEIGHTS, {"format": "pt"})
