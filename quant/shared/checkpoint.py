"""Checkpoints: adapter, optimizer and random state in safetensors and JSON, visible only once whole."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from agent.contract.atomic_io import TEMPORARY, publish_folder, remove_tree
from quant.shared.flat_params import Flat
from quant.shared.optimizer import AdamW
from quant.shared.writer import write

KEPT = 2
"""Checkpoints kept: the newest, and the one before it in case the newest is damaged by the disk."""


@dataclass(frozen=True)
class Progress:
    """The progress of training; everything else follows from the settings and the step."""

    step: int
    tokens: int
    seconds: float


def path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return folder / f"step-{step:08d}"


def save(folder: Path, tuned: Flat, optimizer: AdamW, done: Progress) -> Path:
    """Write checkpoint `folder`/step-<n> and drop all but the newest two; returns its path."""
    final = path(folder, done.step)
    work = folder / f"{TEMPORARY}{final.name}-{os.getpid()}"
    work.mkdir(parents=True)
    write(work / "adapter.safetensors", tuned.views(tuned.values))
    write(work / "optimizer.safetensors", _state(optimizer))
    (work / "progress.json").write_text(json.dumps(done.__dict__))
    publish_folder(work, final, {"step": done.step})
    for old in sorted(folder.glob("step-*"))[:-KEPT]:
        remove_tree(old)
    return final


def _state(optimizer: AdamW) -> dict[str, torch.Tensor]:
    """Moments and random state; the latter for models of transformers that drop out."""
    tensors = {"rng/cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["rng/cuda"] = torch.cuda.get_rng_state()
    return tensors | {name: tensor.cpu() for name, tensor in optimizer.moments.tensors().items()}


def restore(folder: Path, tuned: Flat, optimizer: AdamW) -> Progress:
    """Put a checkpoint's adapter, optimizer and random state back; the caller has verified the folder."""
    adapter = load_file(folder / "adapter.safetensors")
    state = load_file(folder / "optimizer.safetensors")
    with torch.no_grad():
        for name, parameter in tuned.views(tuned.values).items():
            parameter.copy_(adapter[name])
        for name, tensor in optimizer.moments.tensors().items():
            tensor.copy_(state[name] if name in state else _joined(state, name, tuned))
    torch.set_rng_state(state["rng/cpu"])
    if "rng/cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["rng/cuda"])
    return Progress(**json.loads((folder / "progress.json").read_text()))


def _joined(state: dict[str, torch.Tensor], moment: str, tuned: Flat) -> torch.Tensor:
    """A moment in a checkpoint of 0.1.0, which kept that of each parameter apart."""
    return torch.cat([state[f"{moment}/{name}"].flatten() for name in tuned.shapes])
