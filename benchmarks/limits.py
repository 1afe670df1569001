"""What holds beyond one step, the further parts of `benchmarks.memory`: long sequences, little memory, long runs.

growth    anonymous memory of a step by the tokens of its sequence, ours and Trainer's
group     a control group of 0.4 times Trainer's peak: ours ends, Trainer is killed
steps     1,000 steps in one run: anonymous memory near the beginning and at the end
lines     a thousand lines of training data, and a million: anonymous memory of the worker
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

from agent.export_messages import Export
from agent.protocol import Load, Step, Train
from benchmarks.bars import ENDED_WELL
from benchmarks.contenders import Case, Run, messages, ours, peer, settings, train, watched
from benchmarks.peers import WARM_UP
from benchmarks.watching import MIB, anonymous

SHARE = 0.4
"""Of Trainer's peak: what the control group may take."""
STEPS = 1000
SETTLED = 100
"""Steps after which memory must not grow any more."""
SHORT = 64
"""Tokens of a row where many are trained on."""
VARIED: dict[str, dict[str, Any]] = {
    "sequence_length 1024": {"sequence_length": 1024},
    "sequence_length 128": {"sequence_length": 128},
    "rank 64": {"rank": 64},
    "adamw8bit": {"rank": 64, "optimizer": "adamw8bit"},
    "top quarter": {"top_layers": 0.25},
    "300 MB": {"memory_budget": 300},
}
LINES = (1_000, 1_000_000)


def growth(case: Case, runs: dict[str, Run], folder: Path) -> dict[str, float]:
    """KiB of anonymous memory that a token of sequence adds, between `case` and twice its length."""
    longer = dataclasses.replace(case, sequence=2 * case.sequence, steps=WARM_UP + 1)
    log, found = folder / "log", {}
    for run in (ours(longer, folder / "longer", settings(longer, 1), log), peer(longer, "trainer", "float32", {}, log)):
        more = run.over_imports - runs[run.contender].over_imports
        found[run.contender] = round(more * 1024 / case.sequence, 1)
    return found


def in_group(case: Case, runs: dict[str, Run], folder: Path) -> dict[str, Any]:
    """How both end in a control group that has too little for Trainer; told only where one can be made."""
    peak = max(phase["cgroup"] or 0 for phase in runs["trainer, float32"].phases.values())
    limit, log = int(SHARE * peak * MIB), folder / "log"
    if not limit:
        return {"fault": "no control group can be made here"}
    ends = (
        ours(case, folder / "limited", settings(case, 1), log, limit=limit),
        peer(case, "trainer", "float32", {}, log, limit=limit),
    )
    return {"limit_mib": round(limit / MIB), **{run.contender: run.fault or ENDED_WELL for run in ends}}


def many_steps(case: Case, folder: Path) -> dict[str, float]:
    """Anonymous memory in MiB after some steps and after many."""
    found: dict[str, float] = {}
    short = dataclasses.replace(case, sequence=SHORT, steps=STEPS)
    with watched(folder / "log") as (worker, _):
        worker.ask(Load(str(case.prepared), None, case.device, case.dtype))

        def note(event: object) -> None:
            if isinstance(event, Step) and event.step in {SETTLED, STEPS}:
                found[str(event.step)] = anonymous(worker.process.pid)

        folder.mkdir(parents=True, exist_ok=True)
        request = Train(str(messages(case.data, folder)), str(folder / "checkpoints"), settings(short, 1))
        worker.ask(request, note)
    return found


def many_lines(case: Case, folder: Path) -> dict[str, float]:
    """The most anonymous memory in MiB while the worker trains on few lines and on many."""
    found: dict[str, float] = {}
    short = dataclasses.replace(case, sequence=SHORT, steps=8)
    for lines in LINES:
        data = _write_lines(folder / f"{lines}.jsonl", lines)
        with watched(folder / "log") as (worker, watch):
            worker.ask(Load(str(case.prepared), None, case.device, case.dtype))
            watch.phase("step")
            train(worker, data, folder / str(lines), settings(short, 1))
        found[str(lines)] = watch.phases["step"]["anonymous"] or 0.0
        data.unlink()
    return found


def _write_lines(path: Path, lines: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as stream:
        for number in range(lines):
            row = {"role": "assistant", "content": f"The port of pump {number} is {number * 37 % 9973}."}
            stream.write(json.dumps({"id": f"line-{number}", "messages": [row]}) + "\n")
    return path


def planned(case: Case, folder: Path) -> dict[str, Any]:
    """Runs with other settings, for what was planned and what they took."""
    runs = {}
    for name, changed in VARIED.items():
        how = settings(case, 1, steps=WARM_UP + 1, **changed)
        run = ours(case, folder / name.replace(" ", "-"), how, folder / "log")
        run.phases["export"] = exported(case, folder / name.replace(" ", "-"), folder / "log")
        runs[name] = {"phases": run.phases, "planned": run.figures["planned"]}
    return runs


def exported(case: Case, folder: Path, log: Path) -> dict[str, float | None]:
    """What a process of its own takes to write the merged model."""
    target = folder / "merged"
    target.mkdir()
    with watched(log) as (worker, watch):
        watch.phase("export")
        worker.ask(Export(str(case.prepared), str(folder / "adapter"), "merged", str(target)))
    shutil.rmtree(target)
    return watch.phases["export"]


def all_of(case: Case, runs: list[Run], folder: Path) -> dict[str, Any]:
    """Every part, printed as it comes."""
    by_name, found = {run.contender: run for run in runs}, {}
    parts = {
        "growth": lambda: growth(case, by_name, folder / "growth"),
        "group": lambda: in_group(case, by_name, folder / "group"),
        "steps": lambda: many_steps(case, folder / "steps"),
        "lines": lambda: many_lines(case, folder / "lines"),
        "planned": lambda: planned(case, folder / "planned"),
    }
    for name, part in parts.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        found[name] = part()
        if name != "planned":
            print(f"{name:<10}{found[name]}", flush=True)
    return found
