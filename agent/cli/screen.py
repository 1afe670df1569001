"""The screens of `watch` and `run`, drawn with rich; imported only there, for rich costs 80 ms and 12 MB."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from agent.cli.run_history import RunHistory
from agent.queue.jobs import ENDED, Job, State
from agent.system.events import PHASES
from agent.system.output import STYLES, age, remote_in_words
from agent.system.sensors import Reading

BARS = "▁▂▃▄▅▆▇█"
COLOURS = {"numeric": "cyan", "symbolic": "magenta", "train": "cyan", "rewrite": "magenta", "probe": "yellow"}
"""Of phases; everything else is white."""
NARROW = 70
"""Columns below which labels are shortened."""


@dataclass(frozen=True)
class View:
    """Everything a screen shows at one moment."""

    jobs: Sequence[Job]
    history: RunHistory | None
    """The events of the job that is shown, None without one."""
    job: Job | None
    reading: Reading
    free_mb: float
    free_disk: float
    remote: dict[str, Any] | None
    now: float


def sparkline(values: Sequence[float], width: int) -> str:
    """Values as bars of eight heights, the newest to the right."""
    last = values[-width:]
    low, high = min(last, default=0.0), max(last, default=0.0)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((value - low) * scale)] for value in last)


def box(view: View, width: int) -> RenderableType:
    """The whole box: the job that runs, the queue, the resources."""
    parts: list[RenderableType] = []
    if view.job is not None:
        parts.append(one(view, width))
    parts += [Panel(queue(view, width - 4), title="queue", title_align="left"), resources(view)]
    return Group(*parts, Text("q: leave", style="dim"))


def one(view: View, width: int) -> RenderableType:
    """One job alone."""
    if view.job is None:
        return Text("no job")
    state = view.job.state.value
    title = Text.assemble(f"job {view.job.id} ", (state, STYLES.get(state, "")), f" {Path(view.job.file).name}")
    return Panel(job(view, width - 4), title=title, title_align="left")


def job(view: View, width: int) -> RenderableType:
    """One job: phase, progress, loss, memory, decisions, why."""
    history, shown = view.history, view.job
    if history is None or shown is None:
        return Text("no job")
    rows = [_phase(shown, history)]
    if history.rounds:
        rows.append(Text(history.rounds[-1]["why"], style="dim", overflow="fold"))
    if history.steps:
        rows.append(_bar(shown, history, width))
        last, plan = history.steps[-1], history.plan
        label = f"loss {last['loss']:.3f} "
        rows.append(Text.assemble(label, (sparkline(history.losses(width - len(label)), width - len(label)), "cyan")))
        memory = f"memory {last['rss_mb']:.0f} MB"
        if plan and plan["known"]:
            memory += f" of {max(plan[f'{phase}_mb'] for phase in ('train', 'generate')):.0f} planned"
            memory += f"; {plan['changed']}" if plan["changed"] else ""
        rows.append(Text(memory))
    if history.rounds:
        decisions = Text("decided  ")
        for state, count in history.rounds[-1]["states"].items():
            decisions.append(f"{count} {state}  ", style={"satisfied": "green", "neither": "dim"}.get(state, ""))
        rows.append(decisions)
    if "flagged" in shown.progress:
        rewrites = f"rewrites {shown.progress['done']}/{shown.progress['flagged']}"
        rows.append(Text(rewrites, style=COLOURS["symbolic"]))
    if shown.state in ENDED or shown.state in {State.PAUSED, State.PARKED}:
        rows.append(Text(shown.reason or "", overflow="fold"))
    elif history.notes:
        rows.append(Text(history.notes[-1], style="dim", overflow="ellipsis", no_wrap=True))
    return Group(*rows)


def _phase(shown: Job, history: RunHistory) -> RenderableType:
    name = str(shown.progress.get("phase", ""))
    current = history.rounds[-1] if history.rounds else None
    text = Text(PHASES.get(name, "starting") if shown.state is State.RUNNING else shown.state.value)
    text.stylize(COLOURS.get(name, ""))
    if current is not None and shown.state is State.RUNNING:
        text = Text.assemble((f"round {current['round']} ", COLOURS.get(current["phase"], "")), text)
    return text


def _bar(shown: Job, history: RunHistory, width: int) -> RenderableType:
    last, left = history.steps[-1], history.seconds_left if shown.progress.get("phase") == "train" else None
    label = f" step {last['step']}/{last['steps']}  {last['tokens_per_s']:.0f} tokens/s"
    label += f"  {age(left)} left" if left is not None else ""
    table = Table.grid(padding=0)
    table.add_row(ProgressBar(last["steps"], last["step"], width=max(8, width - len(label) - 1)), Text(label))
    return table


def queue(view: View, width: int) -> RenderableType:
    """The newest jobs."""
    table = Table.grid(padding=(0, 2))
    for each in view.jobs:
        state = Text(each.state.value, style=STYLES.get(each.state.value, ""))
        reason = Text(each.reason or "", overflow="ellipsis", no_wrap=True, style="dim")
        cells: list[RenderableType] = [
            str(each.id),
            state,
            age(view.now - each.created),
            Text(Path(each.file).name, overflow="ellipsis"),
        ]
        table.add_row(*(cells if width < NARROW else [*cells, reason]))
    return table if view.jobs else Text("empty: nslora-agent enqueue data.jsonl", style="dim")


def resources(view: View) -> RenderableType:
    """Memory, disk, heat, battery, load, and the remote LLM."""
    reading = view.reading
    parts = [f"memory {view.free_mb / 1000:.1f} GB free", f"disk {view.free_disk / 1e9:.1f} GB free"]
    parts += [f"{reading.hottest.celsius:.0f} °C"] if reading.hottest else []
    parts += [f"battery {reading.battery:.0f} %"] if reading.battery is not None else []
    parts += [f"load {reading.load:.1f} a core"] if reading.load is not None else []
    lines = ["  ".join(parts)]
    lines += [f"remote LLM {remote_in_words(view.remote)}"] if view.remote else []
    return Text("\n".join(lines), style="dim")
