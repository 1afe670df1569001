"""The memory of a training step and of answers, in bytes, and the use of what is left of a budget."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from agent.contract.settings import Training
from quant.lean.architecture import Architecture
from quant.lean.block import ROWS
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
    """Bytes of the input that every block keeps for its backward pass."""
    return NUMBER * tokens * arch.width


def activation_bytes(arch: Architecture, tokens: int) -> int:
    """Bytes that a block keeps where its backward pass computes nothing again; attention keeps its output twice."""
    heads = 3 * arch.queries + 2 * arch.keys
    if arch.kind in {"qwen3", "gemma3_text"}:
        heads += arch.queries + arch.keys
    return NUMBER * tokens * (heads + 2 * arch.inner + (3 if arch.is_gemma else 2) * arch.width)


def scratch_bytes(arch: Architecture, tokens: int) -> int:
    """Bytes of a step's deepest stack besides: a block on its way back, or the head, whichever is more.

    Five times the queries is what autograd takes for attention, outside the arena.
    """
    block = activation_bytes(arch, tokens) + NUMBER * (tokens * (arch.inner + 5 * arch.queries) + ROWS * arch.inner)
    weight = NUMBER * max(outputs * inputs for outputs, inputs in arch.linears.values())
    head = NUMBER * min(CHUNK, arch.vocabulary) * (tokens + arch.width)
    return max(block + weight, head) + NUMBER * tokens * arch.width


@dataclass(frozen=True)
class Plan:
    """The blocks, from the last, that keep what others compute or unpack again; bytes for keys and values."""

    remembered: int = 0
    unpacked: int = 0
    cache: int = 0


def weight_bytes(arch: Architecture, dtype: torch.dtype) -> int:
    """Bytes of a block's matrices, unpacked to `dtype`."""
    return dtype.itemsize * sum(outputs * inputs for outputs, inputs in arch.linears.values())


def adapter_parameters(arch: Architecture, rank: int, share: float) -> int:
    """The number of parameters of an adapter on that share of the blocks."""
    blocks = max(1, round(share * arch.layers))
    return blocks * rank * sum(outputs + inputs for outputs, inputs in arch.linears.values())


def parameter_bytes(settings: Training) -> int:
    """Bytes for each parameter of an adapter: itself, its gradient and two moments."""
    return 2 * NUMBER + (2 if settings.optimizer == "adamw8bit" else 2 * NUMBER)


def least_step_bytes(arch: Architecture, settings: Training, trainable: int) -> int:
    """Bytes of a step of a full sequence with `trainable` parameters where everything is computed again."""
    tokens = settings.sequence_length
    return parameter_bytes(settings) * trainable + arch.layers * block_input(arch, tokens) + scratch_bytes(arch, tokens)


def plan_training(arch: Architecture, dtype: torch.dtype, settings: Training, trainable: int, budget: float) -> Plan:
    """The plan for steps of a full sequence: remembering blocks comes first, for it saves more."""
    each = activation_bytes(arch, settings.sequence_length)
    left = budget - least_step_bytes(arch, settings, trainable)
    remembered = _blocks_that_fit(arch, left, each)
    return Plan(remembered, _blocks_that_fit(arch, left - remembered * each, weight_bytes(arch, dtype)))


def step_bytes(arch: Architecture, dtype: torch.dtype, settings: Training, trainable: int, budget: float) -> int:
    """Bytes that steps take by that plan."""
    plan = plan_training(arch, dtype, settings, trainable, budget)
    kept = plan.remembered * activation_bytes(arch, settings.sequence_length)
    return least_step_bytes(arch, settings, trainable) + kept + plan.unpacked * weight_bytes(arch, dtype)


def answer_bytes(arch: Architecture, dtype: torch.dtype, plan: Plan) -> int:
    """Bytes that answers take by a plan whose cache is filled."""
    return plan.cache + scratch_bytes(arch, PREFILL_TOKENS) + plan.unpacked * weight_bytes(arch, dtype)


def plan_answers(arch: Architecture, dtype: torch.dtype, budget: float, wanted: int = MOST_CACHE) -> Plan:
    """The plan for answers to many prompts, whose keys and values take `wanted` bytes if all are answered together.

    Keys and values come first: a matrix is unpacked once a token for all prompts that are answered together.
    """
    left = budget - scratch_bytes(arch, PREFILL_TOKENS)
    cache = min(wanted, MOST_CACHE, max(LEAST_CACHE, int(left)))
    return Plan(0, _blocks_that_fit(arch, left - cache, weight_bytes(arch, dtype)), cache)


def cache_bytes_per_token(arch: Architecture) -> int:
    """Bytes of the keys and values of one token in all layers."""
    return 2 * NUMBER * arch.layers * arch.keys


def plan_one_answer(arch: Architecture, dtype: torch.dtype, budget: float, prompt: int, most: int) -> tuple[Plan, int]:
    """The plan for one answer to a prompt of so many tokens, read in one pass, and the tokens there is room for."""
    left = budget - scratch_bytes(arch, prompt)
    each = cache_bytes_per_token(arch)
    room = min(most, int(left // each) - prompt)
    cache = (prompt + room) * each
    return Plan(0, _blocks_that_fit(arch, left - cache, weight_bytes(arch, dtype)), cache), room


def _blocks_that_fit(arch: Architecture, left: float, each: int) -> int:
    return max(0, min(arch.layers, int(left // each)))


def budget(megabytes: int, device: torch.device, held: int) -> float:
    """Bytes that a setting in MB allows; 0 stands for half of what the device can give and `held` bytes."""
    if megabytes:
        return 1e6 * megabytes
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available_bytes()
    return SHARE * (free + held)


def available_bytes() -> float:
    """Bytes that the box can give, within the limits of each control group that this process is in (v1 and v2)."""
    (free,) = (line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemAvailable:"))
    room = [float(free.split()[1]) * 1024]
    try:
        lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    except OSError:
        return room[0]
    paths = {controllers: path.strip("/") for _, controllers, path in lines}
    if "" in paths:
        room += _group_bytes(Path("/sys/fs/cgroup"), paths[""], "memory.max", "memory.current")
    if "memory" in paths:
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        room += _group_bytes(Path("/sys/fs/cgroup/memory"), paths["memory"], *names)
    return min(room)


def _group_bytes(root: Path, path: str, limit: str, used: str) -> list[float]:
    """The memory that each group from `path` up has left; its pages of files count, for they can be dropped."""
    room = []
    for group in (root / path, *(root / path).parents):
        if not (group / limit).exists() or (most := (group / limit).read_text().strip()) == "max":
            continue
        stat = group / "memory.stat"
        lines = stat.read_text().splitlines() if stat.exists() else []
        files = [float(line.split()[1]) for line in lines if line.startswith(("inactive_file ", "active_file "))]
        room.append(float(most) - float((group / used).read_text()) + sum(files))
    return room
