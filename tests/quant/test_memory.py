"""The plan of a training step's memory, held to what the arena really hands out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import LEAN, each

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
    row = pack([example], torch.device("cpu"))
    model.learn(row, torch.ones_like(row.targets, dtype=torch.float32))
    return max(most)


@pytest.mark.parametrize("architecture", each(LEAN))
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
    """None for a budget of nothing, all for plenty; what is too little to remember one more may still be unpacked."""
    arch, exact = opened(tiny_base("llama")).decoder.arch, torch.float32
    settings = dataclasses.replace(SETTINGS, sequence_length=4096)
    plans = [memory.training(arch, exact, settings, 10_000, budget) for budget in (1e6, 3e7, 4e7, 4e9)]
    counts = [(plan.remembered, plan.unpacked) for plan in plans]
    assert counts[0] == (0, 0)
    assert counts == sorted(counts)
    assert counts[-1] == (arch.layers, arch.layers)
    less, more = (memory.answering(arch, exact, budget) for budget in (1e6, 4e9))
    assert (less.unpacked, less.cache) == (0, memory.LEAST_CACHE)
    assert (more.unpacked, more.cache) == (arch.layers, memory.MOST_CACHE)


def test_half_of_what_is_free_is_spared(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held already counts as free; a number in MB is taken as it is."""
    monkeypatch.setattr(memory, "available", lambda: 600.0)
    assert memory.budget(0, torch.device("cpu"), held=400) == 500.0
    assert memory.budget(7, torch.device("cpu"), held=400) == 7e6


@pytest.mark.parametrize("unpacked", [1, 9])
def test_unpacked_matrices_change_no_number(tiny_base: Callable[[str], Path], unpacked: int) -> None:
    """They are what is otherwise unpacked for each use; given up again they take no memory."""
    model = opened(tiny_base("llama"))
    ids = list(range(5, 40))
    row = pack([Encoded("x", ids, [False] + [True] * 34, [False] * 35, cut=False)], torch.device("cpu"))
    assert model.tuned
    before = model.learn(row, torch.ones(len(row.targets)))
    grads = model.tuned.grads.clone()
    model.tuned.grads.zero_()
    model.decoder.apply(memory.Plan(unpacked=unpacked))
    assert model.decoder.held > 0
    assert torch.equal(model.learn(row, torch.ones(len(row.targets))), before)
    assert torch.equal(model.tuned.grads, grads)
    model.decoder.apply(memory.Plan())
    assert model.decoder.held == 0


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
