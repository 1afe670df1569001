"""One run of one contender in a process of its own, watched: ours through the worker's protocol, peers as they come."""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.errors import AgentError
from agent.protocol import Generate, Load, Plan, Prepare, Save, Step, Train, Trained, Written
from agent.settings import Training
from agent.workers import Worker
from benchmarks.peers import NEW_TOKENS, WARM_UP
from benchmarks.watching import Group, Watch, started

ROOT = Path(__file__).resolve().parent.parent
PROMPTS = 1
"""Answers whose speed is measured."""
FEW, MANY, LONG = 4, 20, 1_600
"""Prompts of so many characters that fill what a budget of 1 MB, and a larger one, has for keys and values."""
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
    device: str = "cpu"

    @property
    def dtype(self) -> str:
        """What all compute in, unless it is said otherwise."""
        return "float32" if self.device == "cpu" else "bfloat16"


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


def peer(  # noqa: PLR0913
    case: Case, kind: str, dtype: str, malloc: dict[str, str], log: Path, *, limit: int = 0, prompts: int = PROMPTS
) -> Run:
    """A peer in a control group, limited to `limit` bytes if that is not 0."""
    run = Run(f"{kind}, {dtype}{', tuned malloc' if malloc else ''}")
    command = [sys.executable, "-m", "benchmarks.peers", kind, str(case.plain), str(case.data), "--dtype", dtype]
    command += ["--sequence", str(case.sequence), "--steps", str(case.steps), "--device", case.device]
    command += ["--prompts", str(prompts)]
    group = Group(limit)
    with started(command, {**os.environ, **malloc, "PYTHONPATH": str(ROOT)}, log) as process:
        group.add(process.pid)
        watch = Watch(process.pid, group)
        assert process.stdout is not None  # noqa: S101
        assert process.stdin is not None  # noqa: S101
        with suppress(BrokenPipeError):  # killed for memory
            for line in process.stdout:
                told = json.loads(line) if line.startswith('{"') else {}  # Trainer prints dicts
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


@contextmanager
def watched(log: Path, limit: int = 0) -> Iterator[tuple[Worker, Watch]]:
    """Our training worker in a control group, after its imports; the watch is in phase "import"."""
    with closing(Group(limit)) as group, Worker("quant.worker", log) as worker:
        group.add(worker.process.pid)
        watch = Watch(worker.process.pid, group)
        watch.phase("import")
        # The worker imports at its first request: one that fails tells nothing but that.
        with suppress(AgentError):
            worker.ask(Save("/nowhere"))
        with closing(watch):
            yield worker, watch


def settings(case: Case, budget: int, **changed: Any) -> Training:
    """What ours is asked to train with."""
    return Training(**{
        "rank": 8, "alpha": 16, "learning_rate": 5e-5, "steps": case.steps, "micro_batch": 1,
        "sequence_length": case.sequence, "memory_budget": budget, "checkpoint_every": 1_000_000, "device": case.device,
        "dtype": case.dtype, **changed,
    })  # fmt: skip


def ours(case: Case, folder: Path, how: Training, log: Path, limit: int = 0) -> Run:
    """Our worker, asked as a job asks it."""
    budget = how.memory_budget
    run, began = Run(f"ours, {budget} MB" if budget else "ours"), time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with watched(log, limit) as (worker, watch):
            run.phases = watch.phases
            _work(worker, watch, case, folder, how, run.figures, began)
    except AgentError as fault:
        run.fault = str(fault)
    return run


def _work(  # noqa: PLR0913
    worker: Worker, watch: Watch, case: Case, folder: Path, how: Training, figures: dict[str, Any], began: float
) -> None:
    """All phases after the imports."""
    figures["planned"] = vars(worker.ask(Plan(str(case.prepared), how)))
    watch.phase("load")
    worker.ask(Load(str(case.prepared), None, case.device, case.dtype))
    watch.phase("step")
    steps: list[tuple[float, Step]] = []
    trained = train(worker, messages(case.data, folder), folder, how, steps)
    watch.phase("generate")
    figures["generated_per_s"] = generated(worker, prompts(case.data, folder, PROMPTS), folder, how.memory_budget)
    filling = prompts(case.data, folder, FEW if how.memory_budget == 1 else MANY, LONG)
    generated(worker, filling, folder, how.memory_budget)
    watch.phase("save")
    (folder / "adapter").mkdir(exist_ok=True)
    worker.ask(Save(str(folder / "adapter")))
    when, first = steps[0]
    figures |= {
        "tokens_per_s": round(statistics.median(step.tokens_per_s for _, step in steps[WARM_UP:]), 1),
        "first_step_s": round(when - began - first.tokens / first.tokens_per_s, 2),
        "losses": [round(step.loss, 4) for _, step in steps],
        "norms": [round(step.grad_norm, 4) for _, step in steps],
    }
    if case.device != "cpu":
        allocated, reserved = trained.peak_cuda_mb, trained.peak_cuda_reserved_mb
        figures |= {"cuda_allocated": round(allocated / 1.048576, 1), "cuda_reserved": round(reserved / 1.048576, 1)}


def train(
    worker: Worker, data: Path, folder: Path, how: Training, steps: list[tuple[float, Step]] | None = None
) -> Trained:
    """Train; each step is added to `steps` with the time it was told."""
    note = lambda event: steps.append((time.monotonic(), event)) if isinstance(event, Step) else None  # noqa: E731
    request = Train(str(data), str(folder / "checkpoints"), how)
    answer = worker.ask(request, note if steps is not None else lambda _: None)
    assert isinstance(answer, Trained)  # noqa: S101
    return answer


def generated(worker: Worker, prompts: Path, folder: Path, budget: int) -> float:
    """Tokens a second of answers to prompts."""
    began = time.monotonic()
    answer = worker.ask(Generate(str(prompts), str(folder / "answers.jsonl"), NEW_TOKENS, budget))
    assert isinstance(answer, Written)  # noqa: S101
    return round(answer.tokens / (time.monotonic() - began), 1)


def prepare(plain: Path, target: Path, log: Path) -> Run:
    """Quantise a model once, watched."""
    run = Run("prepare")
    with watched(log) as (worker, watch):
        run.phases = watch.phases
        watch.phase("step")
        run.figures = vars(worker.ask(Prepare(str(plain), str(target))))
    return run


def messages(data: Path, folder: Path, count: int | None = None) -> Path:
    """The first texts as a job's rows: a lone assistant message is learned as plain text."""
    texts = enumerate(_texts(data)[:count])
    return _lines(folder / "data.jsonl", ((n, {"role": "assistant", "content": text}) for n, text in texts))


def prompts(data: Path, folder: Path, count: int, characters: int = 200) -> Path:
    """The first texts, cut, as questions."""
    texts = enumerate(_texts(data)[:count])
    return _lines(folder / "prompts.jsonl", ((n, {"role": "user", "content": text[:characters]}) for n, text in texts))


def _texts(data: Path) -> list[str]:
    return [json.loads(line)["text"] for line in data.read_text().splitlines()]


def _lines(path: Path, rows: Iterable[tuple[int, dict[str, str]]]) -> Path:
    with path.open("w") as stream:
        stream.writelines(json.dumps({"id": str(number), "messages": [message]}) + "\n" for number, message in rows)
    return path
