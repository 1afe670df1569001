"""Everything that is known of a job, put together for one page."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from agent.cli.charts import Chart, Line, Shade
from agent.cli.run_history import RunHistory
from agent.contract.atomic_io import read_manifest
from agent.contract.errors import AgentError
from agent.contract.lines import quantity, read_json_lines
from agent.data.formats import Example
from agent.data.spool import load_spool
from agent.decide.decision_store import DecisionStore, Round
from agent.queue.jobs import Job, Move, State
from agent.queue.store import Store
from agent.runner.rows import OWN_ANSWER, rewards
from agent.scoring.reward import joint
from agent.system.output import clock
from agent.system.paths import REMADE, Home

SHOWN = 24
"""Answers, and rewritten rows, that are shown."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Report:
    """The contents of the page about a job; parts that its mode does not have are empty."""

    job: Job
    moves: tuple[Move, ...]
    about: Row
    rounds: list[Round]
    charts: dict[str, str]
    answers: list[Row]
    gains: list[Row]
    left_alone: list[Row]
    rewritten: list[Row]
    history: RunHistory

    @property
    def verdict(self) -> Row:
        """The gate's, empty if it has not spoken."""
        found: Row = self.about.get("verdict", {})
        return found

    @property
    def figures(self) -> Row:
        """Those of the version."""
        found: Row = self.about.get("figures", {})
        return found

    @property
    def outcome(self) -> tuple[str, str]:
        """In a few words, and as a class of the page."""
        if self.job.state is not State.DONE:
            return f"The job is {self.job.state}.", "open" if self.job.state is State.RUNNING else "bad"
        if not self.about:
            return "No new version was made.", "bad"
        if self.verdict.get("promote"):
            return f"Version {self.job.version} is better and was promoted.", "good"
        return f"Version {self.job.version} was made and is not promoted.", "bad"

    @property
    def reason(self) -> str:
        """Why it ended so."""
        return str(self.verdict.get("reason") or self.job.reason or "It has not ended yet.")

    @property
    def facts(self) -> list[tuple[str, str]]:
        """The figures that matter first."""
        before, after = self.figures.get("before", {}), self.figures.get("after", {})
        names = {"content": "content right", "style": "constraints kept", "loss": "loss"}
        found = [
            (what, f"{before[name]:.2f} → {after[name]:.2f}")
            for name, what in names.items()
            if before.get(name) is not None and after.get(name) is not None
        ]
        figures = self.figures
        found += [("held-out rows", str(figures["held_out_rows"]))] if "held_out_rows" in figures else []
        if "steps" in figures:
            found.append(("training", f"{quantity(figures['steps'], 'step')}, {figures['tokens']:,} tokens"))
        if "requests" in figures:
            found.append(
                ("remote LLM", f"{quantity(figures['requests'], 'request')}, {figures['rewrite_money']:.2f} spent")
            )
        if "peak_rss_mb" in figures:
            found.append(("highest memory", f"{figures['peak_rss_mb']:,.0f} MB"))
        return [*found, ("time", f"{max(0.0, self.job.updated - self.job.created):,.0f} s since it was queued")]


def collect(home: Home, store: Store, number: int) -> Report:
    """Read everything of a job; parts whose files are gone are left out. Raises NotFound."""
    job, decisions = store.get(number), DecisionStore(store, number)
    version = home.versions / str(job.version) if job.version else None
    about = (read_manifest(version) or {}) if version else {}
    try:
        examples = {example.id: example for example in load_spool(home.spool / f"{job.spool}.jsonl")}
    except AgentError:  # pruned, or damaged: the report has no texts then
        examples = {}
    history = RunHistory(home.run(number) / "events.jsonl").refresh()
    rounds, outcomes = decisions.rounds(), decisions.outcomes()
    left = [row for row in decisions.last_choices() if row["state"] == "neither"]
    return Report(
        job=job,
        moves=store.moves(number),
        about=about,
        rounds=rounds,
        charts=dict(_charts(history, rounds)),
        answers=_answers(version, examples),
        gains=list(_gains(outcomes, rounds, len(left))),
        left_alone=left[:SHOWN],
        rewritten=list(_rewritten_rows(home, job, examples)),
        history=history,
    )


# ---- charts ----


def _charts(history: RunHistory, rounds: list[Round]) -> Iterator[tuple[str, str]]:
    steps = _valid_steps(history.steps, rounds)
    shades = list(_round_shades(history))
    lines = [Line("mean loss", "loss", [(step["step"], step["loss"]) for step in steps])]
    for name, css in (("value_loss", "value"), ("form_loss", "form")):
        points = [(step["step"], step[name]) for step in steps if step.get(name) is not None]
        lines += [Line(name.replace("_", " "), css, points)] if points else []
    yield "loss", Chart("Loss by optimizer step", "step", "nats a token", lines, shades).svg()
    rewards_ = [(each.number, each.figures["reward"]) for each in rounds if each.figures]
    yield "reward", Chart("Mean reward by round", "round", "reward", [Line("mean reward", "loss", rewards_)]).svg()
    memory = [(step["step"], step["rss_mb"]) for step in steps]
    plan = history.plan
    planned = (plan["train_mb"], "planned") if plan and plan["known"] else None
    chart = Chart("Memory of the training worker", "step", "MB", [Line("resident", "loss", memory)], level=planned)
    yield "memory", chart.svg()


def _valid_steps(steps: list[Row], rounds: list[Round]) -> list[Row]:
    """Without steps that were undone, or taken once more after a death."""
    kept: list[Row] = []
    is_over = bool(rounds) and rounds[-1].phase == "stop"
    last = sum(each.figures.get("steps", 0) for each in rounds) if is_over else math.inf
    for step in steps:
        while kept and kept[-1]["step"] >= step["step"]:
            kept.pop()
        kept.append(step)
    return [step for step in kept if step["step"] <= last]


def _round_shades(history: RunHistory) -> Iterator[Shade]:
    """A shade for each numeric round: the steps that it took, and why it began and ended."""
    ends = {each["round"]: each for each in history.over}
    at = 0
    for begun in history.rounds:
        over = ends.get(begun["round"], {})
        steps = over.get("steps", 0)
        label = f"Round {begun['round']}, {begun['phase']}: {begun['why']}. Until: {over.get('ended', 'not over')}."
        if begun["phase"] == "numeric" and steps:
            yield Shade(at, at + steps, "numeric" if begun["round"] % 2 else "numeric other", label)
            at += steps
        elif begun["phase"] == "symbolic":
            yield Shade(at, at, "symbolic", label)


# ---- texts ----


def _answers(version: Path | None, examples: dict[str, Example]) -> list[Row]:
    """Answers before and after: what was won, what was lost, then the rest."""
    path = version / "answers.json" if version else None
    if path is None or not path.exists():
        return []
    answers = json.loads(path.read_text())
    before = {each["id"]: each["text"] for each in answers["before"]}
    rows: list[Row] = []
    for each in answers["after"]:
        name, after = each["id"], each["text"]
        if name in examples and name in before:
            example = examples[name]
            was, is_ = (joint(*rewards(example, text)) for text in (before[name], after))
            asked = example.prompt[-1].content if example.prompt else ""
            row = {"id": name, "asked": asked, "reference": example.reference, "before": before[name], "after": after}
            rows.append({**row, "was": was, "is": is_, "gain": round(is_ - was, 4)})
    rows.sort(key=lambda row: -abs(row["gain"]))
    won, lost = ([row for row in rows if sign * row["gain"] > 0] for sign in (1, -1))
    same = [row for row in rows if row["gain"] == 0]
    part = SHOWN // 3
    return [*won[: SHOWN - 2 * part + max(0, part - len(lost))], *lost[:part], *same[:part]]


def _gains(outcomes: list[Row], rounds: list[Round], left: int) -> Iterator[Row]:
    """Where the reward came from: tried, gained and spent by action."""
    spent = {name: sum(each.figures.get(name, 0) for each in rounds) for name in ("steps", "requests_here")}
    costs = {"weights": quantity(spent["steps"], "step"), "rewrite": quantity(spent["requests_here"], "request")}
    for action, name in (("weights", "tuning weights"), ("rewrite", "rewriting")):
        gains = [row["gain"] for row in outcomes if row["action"] == action]
        if gains:
            helped, hurt = (sum(sign * gain > 0 for gain in gains) for sign in (1, -1))
            counts = {"name": name, "tried": len(gains), "helped": helped, "hurt": hurt, "gained": sum(gains)}
            yield {**counts, "cost": costs[action]}
    if left:
        yield {"name": "neither", "tried": left, "helped": 0, "hurt": 0, "gained": 0.0, "cost": "nothing"}


def _rewritten_rows(home: Home, job: Job, examples: dict[str, Example]) -> Iterator[Row]:
    """Rewritten rows with what they were."""
    path = home.run(job.id) / REMADE
    rows = [row for row in read_json_lines(path) if "remade" in row] if path.exists() else []
    for row in rows[:SHOWN]:
        origin = examples.get(row["id"])
        lineage = row["remade"]
        by = "the model's own answer" if lineage["model"] == OWN_ANSWER else lineage["model"]
        was = origin.reference if origin else ""
        yield {
            "id": row["id"],
            "line": row["line"],
            "was": was,
            "is": row["messages"][-1]["content"],
            "by": by,
            **lineage,
        }


def page(report: Report) -> str:
    """The report as one HTML file that needs nothing else."""
    from jinja2 import Environment, PackageLoader, StrictUndefined  # noqa: PLC0415  only this command needs it

    environment = Environment(
        loader=PackageLoader("agent.cli", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["clock"] = clock
    return environment.get_template("report.html").render(report=report)
