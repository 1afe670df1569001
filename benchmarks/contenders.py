"""One run of one contender in a process of its own, watched: ours through the worker's protocol, peers as they come."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.protocol import Generate, Load, Prepare, Save, Step, Train
from agent.settings import Training
from agent.workers import Worker
from benchmarks.peers import NEW_TOKENS, PROMPTS, WARM_UP
from benchmarks.watching import Group, Watch, started

ROOT = Path(__file__).resolve().parent.parent
TUNED_MALLOC = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "131072",
    "MALLOC_TRIM_THRESHOLD_": "131072",
}


@dataclass(frozen=True)
class Case:
    """What all contenders are given: a model (its folder, and prepared for us), texts, lengths."""

    name: str
    plain: Path
    prepared: Path
    data: Path
    sequence: int
    steps: int


@dataclass
class Run:
    """What one contender took: by phase, and in tokens a second; `fault` is why there is no more."""

    contender: str
    phases: dict[str, dict[str, float | None]] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    fault: str = ""

    @property
    def over_imports(self) -> float:
        """Anonymous memory of a step over that of the imports, MiB."""
        return round((self.phases["step"]["anonymous"] or 0) - (self.phases["import"]["anonymous"] or 0), 1)


def peer(case: Case, kind: str, dtype: str, malloc: dict[str, str], log: Path, limit: int = 0) -> Run:
    """A peer in a control group, limited to `limit` bytes if that is not 0."""
    run = Run(f"{kind}, {dtype}{', tuned malloc' if malloc else ''}")
    command = [sys.executable, "-m", "benchmarks.peers", kind, str(case.plain), str(case.data), "--dtype", dtype]
    command += ["--sequence", str(case.sequence), "--steps", str(case.steps)]
    group = Group(limit)
    with started(command, {**os.environ, **malloc, "PYTHONPATH": str(ROOT)}, log) as process:
        group.add(process.pid)
        watch = Watch(process.pid, group)
        assert process.stdout is not None  # noqa: S101
        assert process.stdin is not None  # noqa: S101
        for line in process.stdout:
            told = json.loads(line) if line.startswith("{") else {}
            if "phase" in told:
                watch.phase(told["phase"])
                process.stdin.write("\n")
                process.stdin.flush()
            run.figures |= told.get("figures", {})
        run.phases = watch.close()
    group.close()
    if process.returncode:
        run.fault = f"ended with {process.returncode}"
    return run


def ours(case: Case, folder: Path, budget: int, log: Path, limit: int = 0) -> Run:
    """Our worker, asked as a job asks it; `budget` is memory_budget in MB."""
    run, began = Run(f"ours, {budget} MB" if budget else "ours"), time.monotonic()
    group, steps, first = Group(limit), [], 0.0
    folder.mkdir(parents=True, exist_ok=True)
    settings = Training(
        rank=8, alpha=16, learning_rate=5e-5, steps=case.steps, micro_batch=1, sequence_length=case.sequence,
        memory_budget=budget, checkpoint_every=1000,
    )  # fmt: skip
    with Worker("quant.worker", log) as worker:
        group.add(worker.process.pid)
        watch = Watch(worker.process.pid, group)
        watch.phase("import")
        # The worker imports at its first request: one that fails tells nothing but that.
        _imported(worker)
        watch.phase("load")
        worker.ask(Load(str(case.prepared), None, "cpu", "float32"))
        watch.phase("step")
        events: list[tuple[float, Step]] = []
        note = lambda event: events.append((time.monotonic(), event)) if isinstance(event, Step) else None  # noqa: E731
        data = _messages(case.data, folder / "data.jsonl")
        worker.ask(Train(str(data), str(folder / "checkpoints"), settings), note)
        steps = [event for _, event in events]
        first = events[0][0] - began - steps[0].tokens / steps[0].tokens_per_s
        watch.phase("generate")
        started_at = time.monotonic()
        told = worker.ask(Generate(str(_prompts(case.data, folder / "prompts.jsonl")), str(folder / "out"), NEW_TOKENS))
        rate = told.tokens / (time.monotonic() - started_at)  # type: ignore[union-attr]
        watch.phase("save")
        (folder / "adapter").mkdir(exist_ok=True)
        worker.ask(Save(str(folder / "adapter")))
        run.phases = watch.close()
    group.close()
    run.figures = {
        "tokens_per_s": round(statistics.median(step.tokens_per_s for step in steps[WARM_UP:]), 1),
        "first_step_s": round(first, 2),
        "generated_per_s": round(rate, 1),
        "losses": [round(step.loss, 4) for step in steps],
        "norms": [round(step.grad_norm, 4) for step in steps],
    }
    return run


def prepare(plain: Path, target: Path, log: Path) -> Run:
    """Quantise a model once, watched."""
    run, group = Run("prepare"), Group()
    with Worker("quant.worker", log) as worker:
        group.add(worker.process.pid)
        watch = Watch(worker.process.pid, group)
        watch.phase("import")
        _imported(worker)
        watch.phase("step")
        run.figures = worker.ask(Prepare(str(plain), str(target))).__dict__
        run.phases = watch.close()
    group.close()
    return run


def _imported(worker: Worker) -> None:
    """Make the worker import what it computes with."""
    from agent.errors import AgentError  # noqa: PLC0415

    try:
        worker.ask(Save("/nowhere"))
    except AgentError:
        return


def _messages(data: Path, target: Path) -> Path:
    """The texts as a job's rows: a lone assistant message is learned as plain text."""
    rows = [json.loads(line)["text"] for line in data.read_text().splitlines()]
    lines = ({"id": str(n), "messages": [{"role": "assistant", "content": text}]} for n, text in enumerate(rows))
    target.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return target


def _prompts(data: Path, target: Path) -> Path:
    rows = [json.loads(line)["text"] for line in data.read_text().splitlines()][:PROMPTS]
    lines = ({"id": str(n), "messages": [{"role": "user", "content": text[:200]}]} for n, text in enumerate(rows))
    target.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return target
