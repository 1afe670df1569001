"""How much memory a training step takes, in bytes, and how many blocks may keep what their backward pass needs."""

from __future__ import annotations

from pathlib import Path

from agent.settings import Training
from quant.lean.architecture import Architecture
from quant.lean.decoder import Decoder
from quant.lean.head import CHUNK

NUMBER = 4
"""Bytes of a float32."""
SHARE = 0.5
"""Of the memory that is free on the box, how much a job may take where no budget is set."""


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


def blocks_to_remember(decoder: Decoder, settings: Training) -> int:
    """How many blocks, from the last, the budget has room for; none on a device whose memory is not this one's."""
    arch, tokens = decoder.arch, settings.sequence_length
    budget = 1e6 * settings.memory_budget or SHARE * available()
    blocks = len(decoder.adapter.layers) if decoder.adapter else 0
    a_number = 2 * NUMBER + (2 if settings.optimizer == "adamw8bit" else 2 * NUMBER)
    optimizer = a_number * len(decoder.adapter.flat.values) if decoder.adapter else 0
    left = budget - optimizer - blocks * block_input(arch, tokens) - scratch(arch, tokens)
    return max(0, min(blocks, int(left // remembered_block(arch, tokens))))


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
