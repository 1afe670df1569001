"""The adapter of the lean path: one flat vector of parameters, one of gradients; saved as plain peft saves it."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from agent.contract.errors import BaseModelError
from agent.contract.settings import Training
from quant.lean.architecture import Architecture
from quant.lean.linear import Lora
from quant.shared import writer
from quant.shared.flat_params import FlatParams

PREFIX = "base_model.model.model.layers"
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


@dataclass(frozen=True)
class Adapter:
    """LoRA matrices on every linear layer of the blocks in `layers`.

    Attributes:
        rank, alpha: of LoRA (arXiv 2106.09685).
        layers: indices of the blocks that have it.
        flat: the matrices and their gradients by the names that peft gives them.
        loras: the same by block and name of the linear layer.
    """

    rank: int
    alpha: float
    layers: list[int]
    flat: FlatParams
    loras: dict[tuple[int, str], Lora]


def empty_adapter(arch: Architecture, rank: int, alpha: float, layers: list[int], device: torch.device) -> Adapter:
    """An adapter with nothing in it yet."""
    shapes = {}
    for layer in layers:
        for name, (outputs, inputs) in arch.linears.items():
            shapes[_name(layer, name, "A")] = rank, inputs
            shapes[_name(layer, name, "B")] = outputs, rank
    flat = FlatParams.zeros(shapes, device)
    values, grads = flat.views(flat.values), flat.views(flat.grads)
    loras = {}
    for layer in layers:
        for name in arch.linears:
            of_a, of_b = _name(layer, name, "A"), _name(layer, name, "B")
            loras[layer, name] = Lora(values[of_a], values[of_b], grads[of_a], grads[of_b], alpha / rank)
    return Adapter(rank, alpha, layers, flat, loras)


def _name(layer: int, linear: str, matrix: str) -> str:
    return f"{PREFIX}.{layer}.{linear}.lora_{matrix}.default.weight"


def new_adapter(arch: Architecture, settings: Training, layers: list[int], device: torch.device) -> Adapter:
    """A new adapter as peft starts one: A uniform after Kaiming, B zero; its start depends on the seed alone."""
    adapter = empty_adapter(arch, settings.rank, settings.alpha, layers, device)
    generator = torch.Generator().manual_seed(settings.seed)
    for lora in adapter.loras.values():
        start = torch.empty(lora.a.shape)
        torch.nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
        lora.a.copy_(start)
    return adapter


def read(arch: Architecture, folder: Path, device: torch.device) -> Adapter:
    """An adapter that was saved; raises BaseModelError if it is of another shape than the base model.

    What is no JSON or safetensors raises whatever its library does.
    """
    config = json.loads((folder / CONFIG).read_text())
    tensors = load_file(folder / WEIGHTS)
    rank, layers = config["r"], config.get("layers_to_transform") or list(range(arch.layers))
    first = tensors.get(_name(layers[0], next(iter(arch.linears)), "A").replace(".default", ""))
    # Before anything is made of a size that the file only claims.
    if first is None or len(first) != rank or not set(layers) <= set(range(arch.layers)):
        raise BaseModelError(f"{folder}: the adapter does not fit this base model (rank {rank}, layers {layers})"[:300])
    adapter = empty_adapter(arch, rank, config["lora_alpha"], layers, device)
    for name, matrix in adapter.flat.views(adapter.flat.values).items():
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
    matrices = adapter.flat.views(adapter.flat.values).items()
    writer.write(folder / WEIGHTS, {name.replace(".default", ""): matrix for name, matrix in matrices})
