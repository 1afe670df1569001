"""One run of one contender in a process of its own, watched: ours through the worker's protocol, peers as they come."""

from __future__ import annotations

import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agent.contract.errors import AgentError
from agent.contract.lines import read_json_lines
from agent.contract.protocol import Generate, Load, Plan, Prepare, Save, Step, Train, Trained, Written
from agent.contract.settings import Training
from agent.system.worker_client import Worker, how_it_ended, last_words
from benchmarks.peers import NEW_TOKENS, WARM_UP
from benchmarks.running import ROOT, clean, write_lines
from benchmarks.watching import Group, Watch, started

LEAST = 1
"""MB of memory_budget: everything is computed again."""
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
    """The task of all contenders: a model (its folder, and prepared for us), texts, lengths."""

    name: str
    plain: Path
    prepared: Path
    data: Path
    sequence: int
    steps: int
    device: str = "cpu"

    @property
    def dtype(self) -> str:
        """The number format of all, unless another one is named."""
        return "float32" if self.device == "cpu" else "bfloat16"


@dataclass
class Run:
    """Figures of one contender: by phase, and in tokens a second; `fault` is why there is no more."""

    phases: dict[str, dict[str, float | None]] = field(default_factory=dict)
    figures: dict[str, Any] = field(default_factory=dict)
    fault: str = ""

    @property
    def row(self) -> dict[str, Any]:
        """As it is kept."""
        return {**self.figures, "phases": self.phases, "fault": self.fault}


def peer_name(kind: str, dtype: str, malloc: dict[str, str]) -> str:
    """A peer's name in tables."""
    return f"{kind}, {dtype}{', tuned malloc' if malloc else ''}"


def our_name(budget: int, dtype: str) -> str:
    """The name in tables of ours with a memory_budget in MB."""
    return f"ours, {({0: 'free', LEAST: 'least memory'}).get(budget, f'{budget} MB')}, {dtype}"


def peer(  # noqa: PLR0913
    case: Case,
    kind: str,
    dtype: str,
    malloc: dict[str, str],
    log: Path,
    *,
    limit: int = 0,
    prompts: int = PROMPTS,
    seconds: float = math.inf,
) -> Run:
    """A peer in a control group, limited to `limit` bytes if that is not 0; ended once it has trained for `seconds`."""
    run = Run()
    command = [sys.executable, "-m", "benchmarks.peers", kind, str(case.plain), str(case.data), "--dtype", dtype]
    command += ["--sequence", str(case.sequence), "--steps", str(case.steps), "--device", case.device]
    command += ["--prompts", str(prompts), "--parent", str(os.getpid())]
    log.parent.mkdir(parents=True, exist_ok=True)
    with closing(Group(limit)) as group, started(command, {**os.environ, **malloc, "PYTHONPATH": str(ROOT)}, log) as it:
        group.add(it.pid)
        watch = Watch(it.pid, group)
        with closing(watch):
            late = _read(it, watch, run.figures, seconds)
        run.phases = watch.phases
        it.wait()
    if it.returncode and not late:
        run.fault = f"{how_it_ended(it.returncode)}{last_words(log)}"
    return run


def _read(process: subprocess.Popen[bytes], watch: Watch, figures: dict[str, Any], seconds: float) -> bool:
    """Take what a peer tells; True if it was killed after training for `seconds`. Its steps' times are added."""
    assert process.stdout is not None  # noqa: S101  tells the type checker that there are pipes
    assert process.stdin is not None  # noqa: S101
    times: list[float] = []
    late = threading.Event()

    def end() -> None:
        late.set()
        process.kill()

    timer = threading.Timer(min(seconds, threading.TIMEOUT_MAX), end)
    timer.daemon = True
    try:
        with suppress(BrokenPipeError):  # killed for memory
            for line in process.stdout:
                told = json.loads(line)
                if "step" in told:
                    times.append(told["seconds"])
                if "phase" in told:
                    watch.phase(told["phase"])
                    if told["phase"] == "step" and seconds < math.inf:
                        timer.start()
                    process.stdin.write(b"\n")
                    process.stdin.flush()
                figures |= told.get("figures", {})
    finally:
        timer.cancel()
    figures["step_s"] = [round(each, 3) for each in times]
    return late.is_set()


@contextmanager
def watched(log: Path, limit: int = 0) -> Iterator[tuple[Worker, Watch]]:
    """Our training worker in a control group, after its imports; the watch is in phase "import"."""
    log.parent.mkdir(parents=True, exist_ok=True)
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
    """Settings of our training."""
    return Training(**{
        "rank": 8, "alpha": 16, "learning_rate": 5e-5, "steps": case.steps, "micro_batch": 1,
        "sequence_length": case.sequence, "memory_budget": budget, "checkpoint_every": 1_000_000, "device": case.device,
        "dtype": case.dtype, **changed,
    })  # fmt: skip


def ours(case: Case, folder: Path, how: Training, log: Path, limit: int = 0) -> Run:
    """Our worker, asked as a job asks it, in a folder that is emptied first."""
    run, began = Run(), time.monotonic()
    clean(folder)
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
    worker.ask(Load(str(case.prepared), None, how.device, how.dtype))
    watch.phase("step")
    steps: list[tuple[float, Step]] = []
    trained = train(worker, messages(case.data, folder), folder, how, steps)
    watch.phase("generate")
    figures["generated_per_s"] = generated(worker, prompts(case.data, folder, PROMPTS), folder, how.memory_budget)
    filling = prompts(case.data, folder, FEW if how.memory_budget == LEAST else MANY, LONG)
    generated(worker, filling, folder, how.memory_budget)
    watch.phase("save")
    (folder / "adapter").mkdir()
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
    run = Run()
    with watched(log) as (worker, watch):
        run.phases = watch.phases
        watch.phase("step")
        run.figures = vars(worker.ask(Prepare(str(plain), str(target))))
    return run


def messages(data: Path, folder: Path, count: int | None = None) -> Path:
    """The first texts as a job's rows: a lone assistant message is learned as plain text."""
    return _rows(folder / "data.jsonl", "assistant", _texts(data, count))


def prompts(data: Path, folder: Path, count: int, characters: int = 200) -> Path:
    """The first texts, cut, as questions."""
    return _rows(folder / "prompts.jsonl", "user", [text[:characters] for text in _texts(data, count)])


def _texts(data: Path, count: int | None) -> list[str]:
    return [row["text"] for row in itertools.islice(read_json_lines(data), count)]


def _rows(path: Path, role: str, texts: list[str]) -> Path:
    rows = ({"id": str(number), "messages": [{"role": role, "content": text}]} for number, text in enumerate(texts))
    return write_lines(path, rows)
