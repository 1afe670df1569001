"""Predict the peaks of a job's memory: loading, training, answering and saving."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import torch

from agent.contract.atomic_io import folder_fault
from agent.contract.errors import BaseModelError
from agent.contract.protocol import Peaks, Plan
from agent.contract.settings import Training
from agent.contract.worker_server import rss_mb
from quant.lean import memory
from quant.lean.architecture import Architecture, architecture
from quant.shared.devices import Compute, choose

LIBRARIES = 43e6
"""Bytes that torch and MKL take once they compute, code and buffers, whatever the model (measured, docs/lab-log.md)."""
TOKENIZER = "tokenizer.json"
READING, READ = 12, 4
"""Bytes for each of tokenizer.json, while it is read and from then on (measured)."""


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
    compute = choose(settings.device, settings.dtype, folder.parent)
    on_gpu = compute.device.type == "cuda"
    free = torch.cuda.mem_get_info(compute.device)[0] if on_gpu else memory.available()
    now = 0.0 if on_gpu else rss_mb()
    if arch is None:
        return Peaks(known=False, free_mb=free / 1e6, now_mb=now)
    budget = memory.budget(settings.memory_budget, compute.device, 0)
    found = _bytes(folder, arch, settings, compute, budget)
    return Peaks(
        known=True,
        free_mb=round(free / 1e6, 1),
        now_mb=now,
        answers_mb=round(found.pop("answers") / 1e6, 1),
        **{f"{phase}_mb": round(now + each / 1e6, 1) for phase, each in found.items()},
    )


def _bytes(folder: Path, arch: Architecture, settings: Training, compute: Compute, budget: float) -> dict[str, float]:
    """By phase; and of answers alone. A GPU has a copy of the whole file, a CPU the pages that are in use."""
    file, on_gpu = _size(folder), compute.device.type == "cuda"
    tokenizer = 0 if on_gpu else (folder / TOKENIZER).stat().st_size
    tuned = memory.parameters(arch, settings.rank, settings.top_layers)
    training = memory.training(arch, compute.dtype, settings, tuned, budget)
    answering = memory.answering(arch, compute.dtype, budget)

    def held(plan: memory.Plan) -> float:
        return file if on_gpu else LIBRARIES + file - _unmapped(arch, plan, compute.dtype)

    adapter, answers = 2 * memory.NUMBER * tuned, memory.of_answers(arch, compute.dtype, answering)
    # Training lets the tokenizer go, so that it is read again for the answers.
    answered = held(answering) + adapter + max(answers + READ * tokenizer, READING * tokenizer)
    largest = max(outputs * inputs for outputs, inputs in arch.linears.values())
    return {
        "load": file if on_gpu else LIBRARIES / 2 + READING * tokenizer,
        "train": held(training) + memory.of_training(arch, compute.dtype, settings, tuned, budget),
        "generate": answered,
        "save": answered,
        "export": LIBRARIES + file + adapter + (memory.NUMBER + 2) * largest,
        "answers": answers,
    }


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _unmapped(arch: Architecture, plan: memory.Plan, dtype: torch.dtype) -> int:
    """Bytes of the file that are not in use: an embedding that is only looked up, and what a sparing head lets go."""
    lets_go = plan.unpacked < arch.layers and dtype == torch.float32
    return 2 * arch.vocabulary * arch.width * ((not arch.tied) + lets_go)


@functools.cache
def _fault(folder: Path, contents: bool) -> str | None:  # noqa: FBT001  cache takes no keywords apart
    """Say what is wrong with a model's files; read once a process, for every rung of the ladder asks."""
    return folder_fault(folder, contents=contents)
