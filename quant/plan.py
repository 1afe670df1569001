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
    fault = _find_fault(folder, request.whole)
    if fault:
        raise BaseModelError(f"the base model is damaged: {fault}; run `nslora-agent init --again`")
    arch = architecture(json.loads((folder / "config.json").read_text()))
    compute = choose(settings.device, settings.dtype, folder.parent)
    on_gpu = compute.device.type == "cuda"
    free = torch.cuda.mem_get_info(compute.device)[0] if on_gpu else memory.available_bytes()
    now = 0.0 if on_gpu else rss_mb()
    if arch is None:
        return Peaks(known=False, free_mb=free / 1e6, now_mb=now)
    budget = memory.budget(settings.memory_budget, compute.device, 0)
    found = _peak_bytes(folder, arch, settings, compute, budget)
    return Peaks(
        known=True,
        free_mb=round(free / 1e6, 1),
        now_mb=now,
        answers_mb=round(found.pop("answers") / 1e6, 1),
        **{f"{phase}_mb": round(now + each / 1e6, 1) for phase, each in found.items()},
    )


def _peak_bytes(
    folder: Path, arch: Architecture, settings: Training, compute: Compute, budget: float
) -> dict[str, float]:
    """By phase; and of answers alone. A GPU has a copy of the whole file, a CPU the pages that are in use."""
    on_gpu = compute.device.type == "cuda"
    file = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    tokenizer = 0 if on_gpu else (folder / TOKENIZER).stat().st_size
    trainable = memory.adapter_parameters(arch, settings.rank, settings.top_layers)
    training = memory.plan_training(arch, compute.dtype, settings, trainable, budget)
    answering = memory.plan_answers(arch, compute.dtype, budget)

    def base(plan: memory.Plan) -> float:
        if on_gpu:
            return file
        # Not in use are an embedding that is only looked up, and the pages that a sparing head lets go.
        lets_go = plan.unpacked < arch.layers and compute.dtype == torch.float32
        return LIBRARIES + file - 2 * arch.vocabulary * arch.width * ((not arch.tied) + lets_go)

    adapter, answers = 2 * memory.NUMBER * trainable, memory.answer_bytes(arch, compute.dtype, answering)
    # Training lets the tokenizer go, so that it is read again for the answers.
    generate = base(answering) + adapter + max(answers + READ * tokenizer, READING * tokenizer)
    largest = max(outputs * inputs for outputs, inputs in arch.linears.values())
    return {
        "load": file if on_gpu else LIBRARIES / 2 + READING * tokenizer,
        "train": base(training) + memory.step_bytes(arch, compute.dtype, settings, trainable, budget),
        "generate": generate,
        "save": generate,
        "export": LIBRARIES + file + adapter + (memory.NUMBER + 2) * largest,
        "answers": answers,
    }


@functools.cache
def _find_fault(folder: Path, contents: bool) -> str | None:  # noqa: FBT001  cache takes no keywords apart
    """Say what is wrong with a model's files; read once a process, for every rung of the ladder asks."""
    return folder_fault(folder, contents=contents)
