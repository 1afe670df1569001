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

from agent.cli.run_history import Following
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
    followed: Following | None
    """The events of the job that is shown, None without one."""
    job: Job | None
    reading: Reading
    free_mb: float
    free_disk: float
    remote: dict[str, Any] | None
    now: float


def sparkline(values: Sequence[float], width: int) -> str:
    """Values as bars of eight heights, the newest to the right."""
    shown = values[-width:]
    low, high = min(shown, default=0.0), max(shown, default=0.0)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((value - low) * scale)] for value in shown)


def box(view: View, width: int) -> RenderableType:
    """The whole box: the job that runs, the queue, the resources."""
    parts: list[RenderableType] = []
    if view.job is not None:
        parts.append(one(view, width))
    parts += [Panel(queue(view, width - 4), title="queue", title_align="left"), resources(view)]
    return Group(*parts, Text("q: leave", style="dim"))


def one(view: View, width: int) -> RenderableType:
    """One job alone."""
    return Panel(job(view, width - 4), title=_title(view.job), title_align="left") if view.job else Text("no job")


def _title(job: Job) -> Text:
    return Text.assemble(
        f"job {job.id} ", (job.state.value, STYLES.get(job.state.value, "")), f" {Path(job.file).name}"
    )


def job(view: View, width: int) -> RenderableType:
    """One job: phase, progress, loss, memory, decisions, why."""
    followed, told = view.followed, view.job
    if followed is None or told is None:
        return Text("no job")
    rows = [_phase(told, followed), _why(followed), _bar(told, followed, width), _loss(followed, width)]
    rows += [_memory(followed), _decisions(followed), _remote_work(told)]
    if told.state in ENDED or told.state in {State.PAUSED, State.PARKED}:
        rows.append(Text(told.reason or "", overflow="fold"))
    elif followed.notes:
        rows.append(Text(followed.notes[-1], style="dim", overflow="ellipsis", no_wrap=True))
    return Group(*(row for row in rows if row is not None))


def _phase(told: Job, followed: Following) -> RenderableType:
    name = str(told.progress.get("phase", ""))
    current = followed.rounds[-1] if followed.rounds else None
    text = Text(PHASES.get(name, "starting") if told.state is State.RUNNING else told.state.value)
    text.stylize(COLOURS.get(name, ""))
    if current is not None and told.state is State.RUNNING:
        text = Text.assemble((f"round {current['round']} ", COLOURS.get(current["phase"], "")), text)
    return text


def _why(followed: Following) -> RenderableType | None:
    return Text(followed.rounds[-1]["why"], style="dim", overflow="fold") if followed.rounds else None


def _bar(told: Job, followed: Following, width: int) -> RenderableType | None:
    if not followed.steps:
        return None
    last, left = followed.steps[-1], followed.seconds_left if told.progress.get("phase") == "train" else None
    label = f" step {last['step']}/{last['steps']}  {last['tokens_per_s']:.0f} tokens/s"
    label += f"  {age(left)} left" if left is not None else ""
    table = Table.grid(padding=0)
    table.add_row(ProgressBar(last["steps"], last["step"], width=max(8, width - len(label) - 1)), Text(label))
    return table


def _loss(followed: Following, width: int) -> RenderableType | None:
    if not followed.steps:
        return None
    label = f"loss {followed.steps[-1]['loss']:.3f} "
    return Text.assemble(label, (sparkline(followed.losses(width - len(label)), width - len(label)), "cyan"))


def _memory(followed: Following) -> RenderableType | None:
    if not followed.steps:
        return None
    text = f"memory {followed.steps[-1]['rss_mb']:.0f} MB"
    if followed.plan and followed.plan["known"]:
        text += f" of {max(followed.plan[f'{phase}_mb'] for phase in ('train', 'generate')):.0f} planned"
        text += f"; {followed.plan['changed']}" if followed.plan["changed"] else ""
    return Text(text)


def _decisions(followed: Following) -> RenderableType | None:
    if not followed.rounds:
        return None
    states = followed.rounds[-1]["states"]
    text = Text("decided  ")
    for state, count in states.items():
        text.append(f"{count} {state}  ", style={"satisfied": "green", "neither": "dim"}.get(state, ""))
    return text


def _remote_work(told: Job) -> RenderableType | None:
    done = told.progress
    if "flagged" not in done:
        return None
    return Text(f"rewrites {done['done']}/{done['flagged']}", style=COLOURS["symbolic"])


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
