"""What a job will take, before it does: the peaks of loading, training, answering and saving."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import torch

from agent.durable import folder_fault
from agent.errors import BaseModelError
from agent.protocol import Peaks, Plan
from agent.serving import rss_mb
from quant.devices import choose
from quant.lean import memory
from quant.lean.architecture import architecture

SAVED = 2
"""Copies of an adapter while it is written."""


def peaks(request: Plan) -> Peaks:
    """Predicted peaks in MB of this process on a CPU, of the device's memory on a GPU; `known` only for the lean path.

    Reads every file of the model, once a job: a bit that a disk has lost would otherwise be trained on. Raises
    BaseModelError if one differs from what was prepared.
    """
    folder, settings = Path(request.model), request.settings
    fault = _fault(folder, request.whole)
    if fault:
        raise BaseModelError(f"the base model is damaged: {fault}; run `nslora-agent init --again`")
    arch = architecture(json.loads((folder / "config.json").read_text()))
    file = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    compute = choose(settings.device, settings.dtype, folder.parent)
    on_gpu = compute.device.type == "cuda"
    free = torch.cuda.mem_get_info(compute.device)[0] if on_gpu else memory.available()
    now = 0.0 if on_gpu else rss_mb()
    if arch is None:
        return Peaks(known=False, free_mb=free / 1e6, now_mb=now)
    held = now + file / 1e6
    budget = memory.budget(settings.memory_budget, compute.device, 0)
    tuned = memory.parameters(arch, settings.rank, settings.top_layers)
    answering = memory.answering(arch, compute.dtype, budget)
    state = memory.a_number(settings) * tuned / 1e6
    return Peaks(
        known=True,
        free_mb=round(free / 1e6, 1),
        now_mb=now,
        load_mb=round(held, 1),
        train_mb=round(held + memory.of_training(arch, compute.dtype, settings, tuned, budget) / 1e6, 1),
        generate_mb=round(held + state + memory.of_answers(arch, compute.dtype, answering) / 1e6, 1),
        save_mb=round(held + state + SAVED * memory.NUMBER * tuned / 1e6, 1),
    )


@functools.cache
def _fault(folder: Path, contents: bool) -> str | None:  # noqa: FBT001  cache takes no keywords apart
    """What is wrong with a model's files; read once a process, for every rung of the ladder asks."""
    return folder_fault(folder, contents=contents)
