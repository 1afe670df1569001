"""The commands on decisions: explain and remade."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from agent.decision_store import DecisionStore, Round
from agent.errors import NotFound
from agent.home import Home
from agent.jobs import Job
from agent.output import print_json, print_table, say
from agent.remade import REMADE
from agent.store import Rows, open_existing

LISTED = 10
"""Examples of a kind that `explain` lists; --json has all of them."""
STATES = ("satisfied", "weights", "rewrite", "both", "neither")


def explain(arguments: argparse.Namespace, home: Home) -> int:
    """Why a job did what it did; or one example of it."""
    with open_existing(home.database) as store:
        job = store.get(arguments.job)
        decisions = DecisionStore(store, job.id)
        if arguments.example is not None:
            return _explain_example(arguments, decisions, job)
        rounds, choices, outcomes = decisions.rounds(), decisions.last_choices(), decisions.outcomes()
    if not choices:
        raise NotFound(f"job {job.id} ({job.mode}, {job.state}) has decided nothing: see nslora-agent show {job.id}")
    if arguments.json:
        told = [_without(row, "job") for row in outcomes]
        print_json({"job": job.id, "rounds": [vars(each) for each in rounds], "choices": choices, "outcomes": told})
        return 0
    _say_rounds(job, rounds)
    _say_states(choices, outcomes)
    return 0


def _say_rounds(job: Job, rounds: list[Round]) -> None:
    say(f"job {job.id} ({job.mode}), {job.state}{': ' + job.reason if job.reason else ''}\n")
    if not rounds:
        say("No round is over yet.")
        return
    rows = []
    for each in rounds:
        done = each.figures
        spent = f"{done['steps']} steps" if each.phase == "numeric" else f"{done['requests_here']} requests"
        gained, reward = f"{done['gained']:+.2f}", f"{done['reward']:.3f}"
        rows.append((each.number, each.phase, each.why, each.ended, done["examples"], gained, spent, reward))
    print_table(("round", "phase", "why", "until", "examples", "reward gained", "spent", "mean reward"), rows)


def _say_states(choices: Rows, outcomes: Rows) -> None:
    counts = Counter(row["state"] for row in choices)
    done = Counter((row["example"], row["action"]) for row in outcomes)
    tuned = sum(action == "weights" for _, action in done)
    offered = sum(action == "rewrite" for _, action in done)
    say(f"\n{len(choices)} examples: {', '.join(f'{counts[state]} {state}' for state in STATES if counts[state])}")
    say(f"{tuned} were tuned on, {offered} offered for a rewrite, {len(choices) - offered} never sent anywhere")
    left = [row for row in choices if row["state"] == "neither"]
    if left:
        say(f"\n{len(left)} left alone, because nothing is expected to help:")
        print_table(("example", "line", "why"), [(r["example"], r["line"], r["reason"]) for r in left[:LISTED]])
        if len(left) > LISTED:
            say(f"and {len(left) - LISTED} more (--json)")


def _explain_example(arguments: argparse.Namespace, decisions: DecisionStore, job: Job) -> int:
    choices, outcomes = decisions.choices(arguments.example), decisions.outcomes(arguments.example)
    if not choices:
        known = [row["example"] for row in decisions.last_choices()[:3]]
        like = f"; its examples are called {', '.join(known)}, ..." if known else ""
        raise NotFound(f"job {job.id} has decided nothing about {arguments.example}{like}")
    if arguments.json:
        told = [_without(row, "job", "id") for row in outcomes]
        print_json({"job": job.id, "example": arguments.example, "choices": choices, "outcomes": told})
        return 0
    say(f"{arguments.example}, line {choices[0]['line']} of {Path(job.file).name}")
    for choice in choices:
        _say_choice(choice)
        for outcome in outcomes:
            if outcome["round"] >= choice["round"] and outcome["round"] < _next_round(choices, choice):
                gained = f"expected {outcome['expected']:+.2f}, got {outcome['gain']:+.2f}"
                say(f"  round {outcome['round']}: {outcome['told']} ({gained})")
    return 0


def _next_round(choices: Rows, choice: dict[str, Any]) -> float:
    later = [each["round"] for each in choices if each["round"] > choice["round"]]
    return min(later, default=float("inf"))


def _say_choice(choice: dict[str, Any]) -> None:
    standing, gains = choice["standing"], choice["gains"]
    say(f"\nround {choice['round']}: {choice['state']}\n  {choice['reason']}")
    if standing["answer"] is not None:
        say(f"  answered {_short(standing['answer'])!r}")
    rows = [
        ("answer", f"{standing['content']:.2f}", _figure(standing["style"])),
        ("reference", f"{standing['reference_content']:.2f}", _figure(standing["reference_style"])),
    ]
    print_table(("  reward of the", "content", "style"), [(f"  {name}", *values) for name, *values in rows])
    print_table(("  feature", "value"), [(f"  {name}", f"{value:.3f}") for name, value in gains["features"].items()])


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _short(text: str, longest: int = 100) -> str:
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def _without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in names}


def remade(arguments: argparse.Namespace, home: Home) -> int:
    """Write out a job's remade rows, or with --all every row with the remade ones in place."""
    with open_existing(home.database) as store:
        job = store.get(arguments.job)
    path = home.run(job.id) / REMADE
    if not path.exists():
        raise NotFound(f"job {job.id} ({job.mode}, {job.state}) has no remade data")
    lines = path.read_bytes().splitlines(keepends=True)
    chosen = lines if arguments.all else [line for line in lines if "remade" in json.loads(line)]
    if arguments.output == "-":
        sys.stdout.buffer.writelines(chosen)
        return 0
    Path(arguments.output).write_bytes(b"".join(chosen))
    if arguments.json:
        print_json({"job": job.id, "file": arguments.output, "rows": len(chosen)})
    else:
        say(f"{arguments.output}: {len(chosen)} rows")
    return 0
