"""Figures beyond one step, the further parts of `benchmarks.memory`: long sequences, little memory, long runs.

growth    anonymous memory of a step by the tokens of its sequence, ours and Trainer's
group     a control group of 0.4 times Trainer's peak: ours ends, Trainer is killed
steps     1,000 steps in one run: anonymous memory near the beginning and at the end
lines     a thousand lines of training data, and a million: anonymous memory of the worker
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from agent.contract.export_messages import Export
from agent.contract.protocol import Load, Step, Train
from benchmarks.bars import ENDED_WELL, LEAST, TRAINER, over_imports
from benchmarks.contenders import Case, messages, ours, peer, settings, train, watched
from benchmarks.peers import WARM_UP
from benchmarks.running import clean, write_lines
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


def needed(rows: dict[str, Any], *names: str) -> None:
    """Raise ValueError if one of these rows failed or is not there."""
    for name in names:
        if rows.get(name, {"fault": "not measured"})["fault"]:
            raise ValueError(f"needs the row {name!r}, which failed or was not measured")


def growth(case: Case, rows: dict[str, Any], folder: Path) -> dict[str, float]:
    """KiB of anonymous memory that a token of sequence adds, between `case` and twice its length."""
    needed(rows, LEAST, TRAINER)
    longer = dataclasses.replace(case, sequence=2 * case.sequence, steps=WARM_UP + 1)
    log, found = folder / "log", {}
    runs = {
        LEAST: lambda: ours(longer, folder / "longer", settings(longer, 1), log),
        TRAINER: lambda: peer(longer, "trainer", "float32", {}, log),
    }
    for name, run in runs.items():
        row = run().row
        needed({name: row}, name)
        found[name] = round((over_imports(row) - over_imports(rows[name])) * 1024 / case.sequence, 1)
    return found


def in_group(case: Case, rows: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The end of both in a control group that has too little for Trainer; told only where one can be made."""
    needed(rows, TRAINER)
    peak = max(phase["cgroup"] or 0 for phase in rows[TRAINER]["phases"].values())
    limit, log = int(SHARE * peak * MIB), folder / "log"
    if not limit:
        return {"missing": "no control group can be made here"}
    ends = {
        LEAST: ours(case, folder / "limited", settings(case, 1), log, limit=limit),
        TRAINER: peer(case, "trainer", "float32", {}, log, limit=limit),
    }
    return {"limit_mib": round(limit / MIB), **{name: run.fault or ENDED_WELL for name, run in ends.items()}}


def many_steps(case: Case, folder: Path) -> dict[str, float]:
    """Anonymous memory in MiB after some steps and after many."""
    found: dict[str, float] = {}
    short = dataclasses.replace(case, sequence=SHORT, steps=STEPS)
    with watched(folder / "log") as (worker, watch):
        worker.ask(Load(str(case.prepared), None, case.device, case.dtype))
        watch.phase(f"{STEPS} steps")

        def note(event: object) -> None:
            if isinstance(event, Step) and event.step in {SETTLED, STEPS}:
                found[str(event.step)] = anonymous(worker.process.pid)

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
            watch.phase(f"{lines} lines")
            train(worker, data, folder / str(lines), settings(short, 1))
        found[str(lines)] = watch.phases[f"{lines} lines"]["anonymous"] or 0.0
        data.unlink()
    return found


def _write_lines(path: Path, lines: int) -> Path:
    def row(number: int) -> dict[str, Any]:
        text = f"The port of pump {number} is {number * 37 % 9973}."
        return {"id": f"line-{number}", "messages": [{"role": "assistant", "content": text}]}

    return write_lines(path, map(row, range(lines)))


def planned(case: Case, folder: Path, name: str) -> dict[str, Any]:
    """A run with other settings, for what was planned and what it takes."""
    run = ours(case, folder / "run", settings(case, 1, steps=WARM_UP + 1, **VARIED[name]), folder / "log")
    if not run.fault:
        run.phases["export"] = exported(case, folder / "run", folder / "log")
    return {"phases": run.phases, "planned": run.figures.get("planned"), "fault": run.fault}


def exported(case: Case, folder: Path, log: Path) -> dict[str, float | None]:
    """Memory and time of a process of its own that writes the merged model."""
    target = clean(folder / "merged")
    with watched(log) as (worker, watch):
        watch.phase("export")
        worker.ask(Export(str(case.prepared), str(folder / "adapter"), "merged", str(target)))
    clean(target)
    return watch.phases["export"]


PARTS: dict[str, tuple[float, Callable[[Case, dict[str, Any], Path], dict[str, Any]]]] = {
    "growth": (150, growth),
    "group": (70, in_group),
    "steps": (420, lambda case, _, folder: many_steps(case, folder)),
    "lines": (120, lambda case, _, folder: many_lines(case, folder)),
}
"""By name: seconds on two cores, and what measures it, given the rows of one step."""
PLANNED_SECONDS = 30


def parts() -> Iterator[tuple[str, float, Callable[[Case, dict[str, Any], Path], dict[str, Any]]]]:
    """Every part: its name, its seconds, and what measures it in a folder that is empty."""
    for name, (seconds, part) in PARTS.items():
        yield name, seconds, lambda case, rows, folder, part=part: part(case, rows, clean(folder))  # type: ignore[misc]
    for name in VARIED:
        part = lambda case, _, folder, name=name: planned(case, clean(folder), name)  # noqa: E731
        yield f"planned: {name}", PLANNED_SECONDS, part
