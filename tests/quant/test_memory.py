"""The plan of a training step's memory, held to what the arena really hands out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tiny import LEAN, each

from agent.contract.settings import Training
from quant.lean import memory
from quant.lean.arena import Arena
from quant.lean.model import LeanModel, open_model
from quant.shared.chat import Encoded
from quant.shared.packing import pack

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
    planned = arch.layers * memory.block_input(arch, tokens) + memory.scratch_bytes(arch, tokens)
    planned += remembered * memory.activation_bytes(arch, tokens)
    taken = deepest(model, monkeypatch)
    assert taken <= planned
    assert planned < 2 * taken


def test_more_memory_keeps_more_blocks(tiny_base: Callable[[str], Path]) -> None:
    """None for a budget of nothing, all for plenty; what is too little to remember one more may still be unpacked."""
    arch, exact = opened(tiny_base("llama")).decoder.arch, torch.float32
    settings = dataclasses.replace(SETTINGS, sequence_length=4096)
    plans = [memory.plan_training(arch, exact, settings, 10_000, budget) for budget in (1e6, 3e7, 4e7, 4e9)]
    counts = [(plan.remembered, plan.unpacked) for plan in plans]
    assert counts[0] == (0, 0)
    assert counts == sorted(counts)
    assert counts[-1] == (arch.layers, arch.layers)
    less, more = (memory.plan_answers(arch, exact, budget) for budget in (1e6, 4e9))
    assert (less.unpacked, less.cache) == (0, memory.LEAST_CACHE)
    assert (more.unpacked, more.cache) == (arch.layers, memory.MOST_CACHE)


@pytest.mark.parametrize("share", [0.01, 0.5, 1.0])
def test_parameters_are_those_of_an_adapter(tiny_base: Callable[[str], Path], share: float) -> None:
    """Counted before it is made; one block at least has one."""
    model = open_model(tiny_base("gemma3_text"), None, torch.device("cpu"), torch.float32)
    model.add_adapter(dataclasses.replace(SETTINGS, top_layers=share))
    assert model.trainable
    assert memory.adapter_parameters(model.decoder.arch, SETTINGS.rank, share) == len(model.trainable.values)


def test_what_plans_take_is_within_their_budgets(tiny_base: Callable[[str], Path]) -> None:
    """And nearly all of it, where there is more to keep than fits."""
    arch, exact = opened(tiny_base("llama")).decoder.arch, torch.float32
    settings = dataclasses.replace(SETTINGS, sequence_length=4096)
    enough = memory.least_step_bytes(arch, settings, 10_000)
    each = memory.activation_bytes(arch, 4096)
    for budget, remembered in ((enough + 1.5 * each, 1), (enough + each, 1), (enough + 0.99 * each, 0)):
        plan = memory.plan_training(arch, exact, settings, 10_000, budget)
        taken = memory.step_bytes(arch, exact, settings, 10_000, budget)
        assert plan.remembered == remembered
        assert taken == enough + remembered * each + plan.unpacked * memory.weight_bytes(arch, exact)
        assert taken <= budget
    for budget in (5e7, 1e8, 4e9):
        plan = memory.plan_answers(arch, exact, budget)
        assert memory.answer_bytes(arch, exact, plan) <= budget
    none, whole = memory.Plan(0, 0, 5), memory.Plan(0, 2, 5)
    assert memory.answer_bytes(arch, exact, none) == 5 + memory.scratch_bytes(arch, memory.PREFILL_TOKENS)
    more = memory.answer_bytes(arch, exact, whole) - memory.answer_bytes(arch, exact, none)
    assert more == 2 * 4 * sum(outputs * inputs for outputs, inputs in arch.linears.values())


def test_half_of_what_is_free_is_spared(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held already counts as free; a number in MB is taken as it is."""
    monkeypatch.setattr(memory, "available_bytes", lambda: 600.0)
    assert memory.budget(0, torch.device("cpu"), held=400) == 500.0
    assert memory.budget(7, torch.device("cpu"), held=400) == 7e6


@pytest.mark.parametrize("unpacked", [1, 9])
def test_unpacked_matrices_change_no_number(tiny_base: Callable[[str], Path], unpacked: int) -> None:
    """They are what is otherwise unpacked for each use; given up again they take no memory."""
    model = opened(tiny_base("llama"))
    ids = list(range(5, 40))
    row = pack([Encoded("x", ids, [False] + [True] * 34, [False] * 35, cut=False)], torch.device("cpu"))
    assert model.trainable
    before = model.learn(row, torch.ones(len(row.targets)))
    grads = model.trainable.grads.clone()
    model.trainable.grads.zero_()
    model.decoder.apply(memory.Plan(unpacked=unpacked))
    assert model.decoder.bytes_unpacked > 0
    assert torch.equal(model.learn(row, torch.ones(len(row.targets))), before)
    assert torch.equal(model.trainable.grads, grads)
    model.decoder.apply(memory.Plan())
    assert model.decoder.bytes_unpacked == 0


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
    assert memory.available_bytes() == 600000


def seen(monkeypatch: pytest.MonkeyPatch, root: Path, files: dict[str, str]) -> float:
    """What is available in a process that finds these files."""
    for path, text in files.items():
        (root / path[1:]).parent.mkdir(parents=True, exist_ok=True)
        (root / path[1:]).write_text(text)
    monkeypatch.setattr(memory, "Path", lambda name: root / str(name)[1:])
    return memory.available_bytes()


MEMINFO = {"/proc/meminfo": "MemTotal:  9000 kB\nMemFree:  10 kB\nMemAvailable:   300 kB\n"}


def test_what_the_box_has_is_the_most(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no group says less, or none is told."""
    assert seen(monkeypatch, tmp_path, MEMINFO) == 300 * 1024
    group = {"/proc/self/cgroup": "0::/a\n", "/sys/fs/cgroup/a/memory.max": "900000\n"}
    assert seen(monkeypatch, tmp_path, {**group, "/sys/fs/cgroup/a/memory.current": "5\n"}) == 300 * 1024


def test_pages_of_files_that_a_group_holds_can_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system drops them where somebody needs the memory."""
    stat = "anon 7000\nfile 6000\ninactive_file 3000\nactive_file 2000\nslab 50\n"
    group = "/sys/fs/cgroup/a/memory"
    files = {
        "/proc/self/cgroup": "0::/a\n",
        f"{group}.max": "20000",
        f"{group}.current": "13000",
        f"{group}.stat": stat,
    }
    assert seen(monkeypatch, tmp_path, {**MEMINFO, **files}) == 20_000 - 13_000 + 3000 + 2000


def test_a_group_of_the_first_version_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its controllers have a path each, and files of other names."""
    root = "/sys/fs/cgroup/memory/box"
    files = {
        "/proc/self/cgroup": "5:cpu,cpuacct:/else\n4:memory:/box/job\n",
        f"{root}/job/memory.limit_in_bytes": "90000",
        f"{root}/job/memory.usage_in_bytes": "1000",
        f"{root}/memory.limit_in_bytes": "50000",
        f"{root}/memory.usage_in_bytes": "8000",
    }
    assert seen(monkeypatch, tmp_path, {**MEMINFO, **files}) == 42_000
