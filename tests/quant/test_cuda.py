"""The same path on an NVIDIA GPU; run with `pytest -m cuda` on a machine that has one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from agent.contract.protocol import Event, Step
from agent.contract.settings import Training
from quant.check import check
from quant.load import load
from quant.shared.generate import greedy
from quant.shared.loss import mean_losses
from quant.shared.train import start, train

pytestmark = pytest.mark.cuda
ROWS = [
    [{"role": "user", "content": f"port of pump {i}?"}, {"role": "assistant", "content": f"it is {i * 37}"}]
    for i in range(10)
]
SETTINGS = Training(rank=4, alpha=8, steps=8, micro_batch=4, checkpoint_every=3, learning_rate=1e-2)


def losses(base: Path, folder: Path, resume: Path | None = None, stop_after: int = 0) -> list[float]:
    model = load(base, None, "cuda", "float32")
    examples = [model.encoder.example(str(i), row, 512) for i, row in enumerate(ROWS)]
    events: list[Event] = []
    stopping = lambda: bool(stop_after) and sum(isinstance(e, Step) for e in events) >= stop_after  # noqa: E731
    train(start(model, examples, SETTINGS, resume), folder, events.append, stopping)
    return [e.loss for e in events if isinstance(e, Step)]


def test_the_four_bit_kernels_work_forward_and_backward() -> None:
    """What doctor runs."""
    found = check("cuda")
    assert found.ok, found.detail


def test_losses_on_the_gpu_are_those_on_the_cpu(tiny_base: Callable[[str], Path]) -> None:
    """One set of stored bytes, one loss, whatever computes it."""
    found = []
    for device in ("cpu", "cuda"):
        model = load(tiny_base("llama"), None, device, "float32")
        examples = [model.encoder.example(str(i), row, 512) for i, row in enumerate(ROWS)]
        found.append([loss for loss, _ in mean_losses(model, examples, 512)])
    assert found[0] == pytest.approx(found[1], rel=1e-3)


def test_training_learns_and_resumes(tiny_base: Callable[[str], Path], tmp_path: Path) -> None:
    """A stop at step five and a new start give the losses of a run without them."""
    whole = losses(tiny_base("llama"), tmp_path / "whole")
    first = losses(tiny_base("llama"), tmp_path / "parts", stop_after=5)
    rest = losses(tiny_base("llama"), tmp_path / "rest", tmp_path / "parts" / "step-00000005")
    assert first + rest == pytest.approx(whole, rel=1e-2)
    assert whole[-1] < whole[0]


def test_a_batch_is_answered(tiny_base: Callable[[str], Path]) -> None:
    """In the number format that the card computes in."""
    model = load(tiny_base("llama"), None, "cuda", "auto")
    prompts = [model.encoder.prompt(row[:1]) for row in ROWS]
    assert sorted(dict(greedy(model, prompts, 8))) == list(range(len(ROWS)))
