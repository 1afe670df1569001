"""Checkpoints: adapter, optimizer and random state in safetensors and JSON, visible only once whole."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from agent.durable import TEMPORARY, publish_folder, remove_tree

KEPT = 2
"""Checkpoints kept: the newest, and the one before it in case the newest is damaged by the disk."""


@dataclass(frozen=True)
class Progress:
    """What training has done so far; everything else follows from the settings and the step."""

    step: int
    tokens: int
    seconds: float


def path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step is."""
    return folder / f"step-{step:08d}"


def save(folder: Path, parameters: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer, done: Progress) -> Path:
    """Write checkpoint `folder`/step-<n> and drop all but the newest two; returns its path."""
    final = path(folder, done.step)
    work = folder / f"{TEMPORARY}{final.name}-{os.getpid()}"
    work.mkdir(parents=True)
    save_file({name: p.detach().cpu().contiguous() for name, p in parameters.items()}, work / "adapter.safetensors")
    save_file(_optimizer_tensors(parameters, optimizer), work / "optimizer.safetensors")
    (work / "progress.json").write_text(json.dumps(done.__dict__))
    publish_folder(work, final, {"step": done.step})
    for old in sorted(folder.glob("step-*"))[:-KEPT]:
        remove_tree(old)
    return final


def _optimizer_tensors(parameters: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    tensors = {"rng/cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        tensors["rng/cuda"] = torch.cuda.get_rng_state()
    for name, parameter in parameters.items():
        for key, value in optimizer.state[parameter].items():
            tensors[f"{key}/{name}"] = value.detach().cpu().contiguous()
    return tensors


def restore(folder: Path, parameters: dict[str, torch.Tensor], optimizer: torch.optim.Optimizer) -> Progress:
    """Put a checkpoint's adapter, optimizer and random state back; the caller has verified the folder."""
    adapter = load_file(folder / "adapter.safetensors")
    tensors = load_file(folder / "optimizer.safetensors")
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(adapter[name])
    for name, parameter in parameters.items():
        optimizer.state[parameter] = {
            key: tensors[f"{key}/{name}"].to("cpu" if key == "step" else parameter.device)
            for key in ("step", "exp_avg", "exp_avg_sq")
        }
    torch.set_rng_state(tensors["rng/cpu"])
    if "rng/cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["rng/cuda"])
    return Progress(**json.loads((folder / "progress.json").read_text()))
