"""The plan of a training step's memory, held to what the arena really hands out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import LEAN

from agent.settings import Training
from quant.batches import pack
from quant.chat import Encoded
from quant.lean import memory
from quant.lean.arena import Arena
from quant.lean.model import LeanModel, open_model

SETTINGS = Training(rank=2, sequence_length=96, memory_budget=1)


def opened(base: Path) -> LeanModel:
    model = open_model(base, None, torch.device("cpu"), torch.float32)
    model.add_adapter(SETTINGS)
    return model


def deepest(model: LeanModel, monkeypatch: pytest.MonkeyPatch) -> int:
    """Bytes of the deepest stack in one step of a full sequence."""
    most, plain = [0], Arena.take

    def take(self: Arena, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        found = plain(self, *shape, dtype=dtype)
        most.append(self._at[1])
        return found

    monkeypatch.setattr(Arena, "take", take)
    ids = [5] * SETTINGS.sequence_length
    example = Encoded("x", ids, [False] + [True] * (len(ids) - 1), [False] * len(ids), cut=False)
    model.learn(pack([example], torch.device("cpu")), 1.0)
    return max(most)


@pytest.mark.parametrize("architecture", LEAN)
@pytest.mark.parametrize("remembered", [0, 2])
def test_the_plan_is_what_a_step_takes(
    tiny_base: Callable[[str], Path], architecture: str, remembered: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never too little, and not by far too much: attention's outcome, which torch allocates, is planned for too."""
    model = opened(tiny_base(architecture))
    model.decoder.remembered = remembered
    arch, tokens = model.decoder.arch, SETTINGS.sequence_length
    planned = arch.layers * memory.block_input(arch, tokens) + memory.scratch(arch, tokens)
    planned += remembered * memory.remembered_block(arch, tokens)
    taken = deepest(model, monkeypatch)
    assert taken <= planned
    assert planned < 2 * taken


def test_more_memory_keeps_more_blocks(tiny_base: Callable[[str], Path]) -> None:
    """None for a budget of nothing, all for plenty, and by default as many as half of the free memory has room for."""
    decoder = opened(tiny_base("llama")).decoder
    counts = [
        memory.blocks_to_remember(decoder, dataclasses.replace(SETTINGS, memory_budget=megabytes, sequence_length=4096))
        for megabytes in (1, 10, 20, 40, 4000, 0)
    ]
    assert counts[0] == 0
    assert counts[:5] == sorted(counts[:5])
    assert counts[4:] == [decoder.arch.layers] * 2


def test_a_control_groups_limit_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is free on the box is not free for a process in a group with a limit."""
    group = tmp_path / "sys/fs/cgroup/slice/service"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    (group.parent / "memory.max").write_text("1000000\n")
    (group.parent / "memory.current").write_text("400000\n")
    own = tmp_path / "cgroup"
    own.write_text("0::/slice/service\n")
    places = {"/proc/self/cgroup": own, "/sys/fs/cgroup": tmp_path / "sys/fs/cgroup"}
    monkeypatch.setattr(memory, "Path", lambda name: places.get(name, Path(name)))
    assert memory.available() == 600000
