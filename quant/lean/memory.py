"""How much memory a training step and answers take, in bytes, and what the rest of a budget is used for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from agent.settings import Training
from quant.lean.architecture import Architecture
from quant.lean.head import CHUNK

NUMBER = 4
"""Bytes of a float32."""
SHARE = 0.5
"""Of the memory that is free on the box, how much a job may take where no budget is set."""
PREFILL_TOKENS = 512
"""Prompt tokens read in one pass."""
LEAST_CACHE, MOST_CACHE = 32 << 20, 384 << 20
"""Bytes of keys and values of prompts that are answered together."""


def block_input(arch: Architecture, tokens: int) -> int:
    """What every block keeps: its input."""
    return NUMBER * tokens * arch.width


def remembered_block(arch: Architecture, tokens: int) -> int:
    """What a block keeps that is not computed again; attention keeps its outcome twice."""
    heads = 3 * arch.queries + 2 * arch.keys
    if arch.kind in {"qwen3", "gemma3_text"}:
        heads += arch.queries + arch.keys
    return NUMBER * tokens * (heads + 2 * arch.inner + (3 if arch.is_gemma else 2) * arch.width)


def scratch(arch: Architecture, tokens: int) -> int:
    """The deepest stack of a step besides: a block on its way back, or the head, whichever is more."""
    block = remembered_block(arch, tokens) + NUMBER * tokens * (2 * arch.inner + 3 * arch.width)
    weight = NUMBER * max(outputs * inputs for outputs, inputs in arch.linears.values())
    head = NUMBER * min(CHUNK, arch.vocabulary) * (tokens + arch.width)
    return max(block + weight, head) + NUMBER * tokens * arch.width


@dataclass(frozen=True)
class Plan:
    """How many blocks, from the last, keep what is otherwise computed or unpacked again; bytes for keys and values."""

    remembered: int = 0
    unpacked: int = 0
    cache: int = 0


def unpacked_block(arch: Architecture, dtype: torch.dtype) -> int:
    """The matrices of a block, unpacked."""
    return dtype.itemsize * sum(outputs * inputs for outputs, inputs in arch.linears.values())


def training(arch: Architecture, dtype: torch.dtype, settings: Training, tuned: int, budget: float) -> Plan:
    """For steps of a full sequence with `tuned` parameters: blocks are remembered first, which saves more."""
    tokens = settings.sequence_length
    a_number = 2 * NUMBER + (2 if settings.optimizer == "adamw8bit" else 2 * NUMBER)
    left = budget - a_number * tuned - arch.layers * block_input(arch, tokens) - scratch(arch, tokens)
    remembered = _fitting(arch, left, remembered_block(arch, tokens))
    left -= remembered * remembered_block(arch, tokens)
    return Plan(remembered, _fitting(arch, left, unpacked_block(arch, dtype)))


def answering(arch: Architecture, dtype: torch.dtype, budget: float) -> Plan:
    """For answers to many prompts: a quarter of the budget, within bounds, for keys and values."""
    cache = min(MOST_CACHE, max(LEAST_CACHE, int(budget / 4)))
    left = budget - cache - scratch(arch, PREFILL_TOKENS)
    return Plan(0, _fitting(arch, left, unpacked_block(arch, dtype)), cache)


def _fitting(arch: Architecture, left: float, each: int) -> int:
    return max(0, min(arch.layers, int(left // each)))


def budget(megabytes: int, device: torch.device, held: int) -> float:
    """Bytes that a setting in MB allows; 0 stands for half of what the device can give and `held` bytes."""
    if megabytes:
        return 1e6 * megabytes
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available()
    return SHARE * (free + held)


def available() -> float:
    """Bytes that the box can give, within this process's control group."""
    free = _number(Path("/proc/meminfo"), "MemAvailable:") * 1024
    return min([free, *_group_room()])


def _group_room() -> list[float]:
    """Bytes left in each control group that this process is in and that has a limit (cgroup v2)."""
    try:
        (line,) = [line for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")]
    except (OSError, ValueError):
        return []
    folder = Path("/sys/fs/cgroup") / line[3:].strip("/")
    limits = {group: group / "memory.max" for group in (folder, *folder.parents)}
    told = {group: path.read_text().strip() for group, path in limits.items() if path.exists()}
    used = {group: float((group / "memory.current").read_text()) for group, limit in told.items() if limit != "max"}
    return [float(told[group]) - taken for group, taken in used.items()]


def _number(path: Path, name: str) -> float:
    return next(float(line.split()[1]) for line in path.read_text().splitlines() if line.startswith(name))
