"""A box that can answer: a tiny prepared base model and two versions of it, the second with a system prompt."""

from __future__ import annotations

from pathlib import Path

import torch
from tiny import add_random_adapter

from agent.contract.settings import Training
from agent.queue.store import Store
from agent.system.paths import Home
from agent.versions.registry import Registry
from quant.lean.model import open_model

SYSTEM = "Answer in one word."


def make_box(folder: Path, base: Path) -> Home:
    """Version 1 is active."""
    home = Home(folder).create()
    home.config.write_text('base = "tiny"\n')
    home.model("tiny").symlink_to(base)
    with Store(home.database) as store:
        registry = Registry(home.path, store)
        for seed, system in ((1, ""), (2, SYSTEM)):
            publish(registry, base, seed, system)
        registry.promote(1)
    return home


def publish(registry: Registry, base: Path, seed: int, system: str = "") -> int:
    """A version whose adapter does something, as its seed has it."""
    about = {"job": seed, "base": "tiny", "parent": 0, "verdict": {"reason": "a test"}}
    with registry.draft(about) as draft:
        model = open_model(base, None, torch.device("cpu"), torch.float32)
        add_random_adapter(model, Training(rank=4, alpha=8), 0.2, seed)
        model.save(draft.folder)
        if system:
            (draft.folder / "system_prompt.txt").write_text(system)
    return draft.number
