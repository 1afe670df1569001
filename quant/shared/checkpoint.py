"""Checkpoints: adapter, optimizer and random state in safetensors and JSON, visible only once whole."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from agent.contract.atomic_io import TEMPORARY, publish_folder, remove_tree
from quant.shared.flat_params import FlatParams
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


def save(folder: Path, trainable: FlatParams, optimizer: AdamW, done: Progress) -> Path:
    """Write checkpoint `folder`/step-<n> and drop all but the newest two; returns its path."""
    final = path(folder, done.step)
    work = folder / f"{TEMPORARY}{final.name}-{os.getpid()}"
    work.mkdir(parents=True)
    write(work / "adapter.safetensors", trainable.views(trainable.values))
    # The random state is for models of transformers that drop out.
    state = {"rng/cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["rng/cuda"] = torch.cuda.get_rng_state()
    state |= {name: tensor.cpu() for name, tensor in optimizer.moments.tensors().items()}
    write(work / "optimizer.safetensors", state)
    (work / "progress.json").write_text(json.dumps(done.__dict__))
    publish_folder(work, final, {"step": done.step})
    for old in sorted(folder.glob("step-*"))[:-KEPT]:
        remove_tree(old)
    return final


def restore(folder: Path, trainable: FlatParams, optimizer: AdamW) -> Progress:
    """Put a checkpoint's adapter, optimizer and random state back; the caller has verified the folder."""
    adapter = load_file(folder / "adapter.safetensors")
    state = load_file(folder / "optimizer.safetensors")
    with torch.no_grad():
        for name, parameter in trainable.views(trainable.values).items():
            parameter.copy_(adapter[name])
        for name, tensor in optimizer.moments.tensors().items():
            if name not in state:  # a checkpoint of 0.1.0, which kept the moments of each parameter apart
                state[name] = torch.cat([state[f"{name}/{each}"].flatten() for each in trainable.shapes])
            tensor.copy_(state[name])
    torch.set_rng_state(state["rng/cpu"])
    if "rng/cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["rng/cuda"])
    return Progress(**json.loads((folder / "progress.json").read_text()))
