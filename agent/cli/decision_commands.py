"""The commands on decisions: explain and rewritten."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from agent import api
from agent.contract.atomic_io import write_file
from agent.contract.errors import NotFound
from agent.contract.lines import json_line, quantity, read_json_lines, shorten
from agent.contract.os_errors import os_fault
from agent.decide.decision_store import Round
from agent.queue.jobs import ENDED, Job
from agent.queue.store import Rows, open_existing
from agent.runner.explain import LONGEST_ID, MEANINGS, STATES, WIDTH, Explanation, wrap
from agent.runner.rows import OWN_ANSWER
from agent.scoring.reward import joint
from agent.system.output import hint, print_json, print_table, say
from agent.system.paths import REMADE, Home

LISTED = 10
"""Examples of a kind that `explain` lists; --json has all of them."""


def explain(arguments: argparse.Namespace, home: Home) -> int:
    """Why a job did what it did; or one example of it."""
    found = api.explain(arguments.job, arguments.example, state=home.path)
    if arguments.example is not None:
        return _explain_example(arguments, found)
    job, rounds, choices, outcomes = found.job, found.rounds, found.choices, found.outcomes
    if arguments.json:
        records = [_without(row, "job") for row in outcomes]
        head = {"job": job.id, "mode": job.mode, "state": job.state}
        print_json({**head, "rounds": [vars(each) for each in rounds], "choices": choices, "outcomes": records})
        return 0
    say(wrap(f"job {job.id} ({job.mode}), {job.state}{': ' + job.reason if job.reason else ''}"))
    _say_rounds(job, rounds)
    _say_states(choices, outcomes)
    _say_flagged(job, choices, outcomes)
    left = [row for row in choices if row["state"] == "neither"]
    if left:
        _say_left_alone(left)
    return 0


# ---- a job ----


def _say_rounds(job: Job, rounds: list[Round]) -> None:
    done = [each for each in rounds if each.figures]
    if done:
        say("")
        rows = []
        for each in done:
            figures, is_numeric = each.figures, each.phase == "numeric"
            spent = quantity(figures["steps"], "step") if is_numeric else quantity(figures["requests_here"], "request")
            gained, reward = f"{figures['gained']:+.2f}", f"{figures['reward']:.3f}"
            rows.append((each.number, each.phase, figures["examples"], gained, reward, spent))
        print_table(("round", "phase", "examples", "reward gained", "mean reward after", "spent"), rows)
        steps, last = sum(each.figures["steps"] for each in done), done[-1].figures
        trained = f"{quantity(steps, 'step')} ({quantity(last['tokens'], 'token')})"
        asked = f"{quantity(last['requests'], 'request')} to the remote LLM (recorded answers included)"
        say(f"in all: {trained}, {asked}, {last['seconds']:.0f} s")
    if rounds:
        say("\nwhy each round began and ended:")
    for each in rounds:
        say(wrap(each.why, f"{each.number} {each.phase}", indent=2, labels=13))
        if each.ended:
            say(wrap(f"until: {each.ended}", indent=2, labels=13))
    if job.state not in ENDED and (not rounds or rounds[-1].figures):
        say(f"\nRound {len(rounds) + 1} is not over yet.")


def _say_states(choices: Rows, outcomes: Rows) -> None:
    counts = Counter(row["state"] for row in choices)
    done = {(row["example"], row["action"]) for row in outcomes}
    tuned = sum(action == "weights" for _, action in done)
    offered = sum(action == "rewrite" for _, action in done)
    tried = f"{tuned} were tuned on, {offered} offered to the remote LLM for a rewrite"
    say("\n" + wrap(f"{len(choices)} training examples, {tried}; the last decision on each:"))
    rows = [(state, counts[state], meaning) for state, meaning in STATES.items() if counts[state]]
    print_table(("decision", "examples", "meaning"), rows)


def _say_flagged(job: Job, choices: Rows, outcomes: Rows) -> None:
    """Say how many flagged rows were not rewritten."""
    offered = {row["example"] for row in outcomes if row["action"] == "rewrite"}
    flagged = [row for row in choices if row["standing"]["flagged"]]
    if not flagged:
        say("\nNo reference breaks a constraint, so there was nothing to rewrite.")
        return
    kept = Counter(row["state"] for row in flagged if row["example"] not in offered)
    so_far = "" if job.state in ENDED else " so far"
    its = "its" if len(flagged) == 1 else "their"
    text = (
        f"{quantity(len(flagged), 'example', 'was')} flagged: {its} reference breaks a constraint or lacks the style."
    )
    by_state = ", ".join(f"{kept[state]} {state}" for state in STATES if kept[state])
    saved = f" {sum(kept.values())} of them were never sent{so_far}, which saved as many rewrites: now {by_state}."
    say("\n" + wrap(text + saved if kept else text))


def _say_left_alone(left: Rows) -> None:
    costs = [left[0]["gains"][action]["cost"] for action in ("weights", "rewrite")]
    why = f"neither tuning may gain its cost of {costs[0]:.2f}, nor rewriting its cost of {costs[1]:.2f}"
    say(f"\n{len(left)} left alone, because {why}:")
    rows = [
        (
            *(shorten(row["example"], LONGEST_ID), row["line"]),
            *(f"{_reward(row['standing'], prefix):.2f}" for prefix in ("", "reference_")),
            *(f"{row['gains'][action]['hoped']:+.2f}" for action in ("weights", "rewrite")),
        )
        for row in left[:LISTED]
    ]
    print_table(("example", "line", "answer", "reference", "tuning gains", "rewriting gains"), rows)
    if len(left) > LISTED:
        say(f"and {len(left) - LISTED} more (--json)")


def _reward(standing: dict[str, Any], prefix: str) -> float:
    """Joint reward of the answer, or with the prefix of the reference, as it was stored."""
    return joint(standing[f"{prefix}content"], standing[f"{prefix}style"])


# ---- an example ----


def _explain_example(arguments: argparse.Namespace, found: Explanation) -> int:
    name, job, choices, outcomes = arguments.example, found.job, found.choices, found.outcomes
    if arguments.json:
        records = [_without(row, "job", "id", "example") for row in outcomes]
        seen = [_without(row, "job", "example") for row in choices]
        print_json({"job": job.id, "example": name, "choices": seen, "outcomes": records})
        return 0
    say(wrap(f"{name}, line {choices[0]['line']} of {Path(job.file).name}"))
    ends = [*(choice["round"] for choice in choices[1:]), float("inf")]
    for number, (choice, end) in enumerate(zip(choices, ends, strict=True)):
        say(f"\nround {choice['round']}")
        _say_rewards(choice["standing"])
        _say_gains(choice["state"], choice["gains"], explained=not number)
        say("\n" + wrap(f"{choice['state']}, because {choice['reason']}", "choice", indent=2, labels=9))
        here = [outcome for outcome in outcomes if choice["round"] <= outcome["round"] < end]
        for outcome in here:
            is_rehearsal = outcome["action"] == "weights" and choice["state"] in {"satisfied", "rewrite", "neither"}
            more = ", as rehearsal of what is right" if is_rehearsal else ""
            gained = f"expected {outcome['expected']:+.2f}, gained {outcome['gain']:+.2f}"
            text = f"round {outcome['round']}{more}: {outcome['told']} ({gained})"
            say(wrap(text, "outcome", indent=2, labels=9))
    return 0


def _say_rewards(standing: dict[str, Any]) -> None:
    if standing["answer"] is not None:
        say(f"  the model answered {shorten(repr(standing['answer']), WIDTH - 21)}")
    by = {"": "", OWN_ANSWER: " (the model's own answer)"}.get(standing["source"], f" (by {standing['source']})")
    texts = (("  answer", ""), (f"  reference{shorten(by, LONGEST_ID)}", "reference_"))
    rows = []
    for name, prefix in texts:
        values = standing[f"{prefix}content"], standing[f"{prefix}style"], _reward(standing, prefix)
        rows.append((name, *("-" if value is None else f"{value:.2f}" for value in values)))
    print_table(("  reward of the", "content", "style", "joint"), rows)


def _say_gains(state: str, gains: dict[str, Any], *, explained: bool) -> None:
    """Features, what they mean where they shall be `explained`, and what each action may gain."""
    say("")
    rows = [(f"  {name}", f"{gains['features'][name]:.2f}", what) for name, what in MEANINGS.items()]
    columns = 3 if explained else 2
    print_table(("  feature", "value", "what it is")[:columns], [row[:columns] for row in rows])
    say("")
    actions = []
    for name, gain in (("  tuning", gains["weights"]), ("  rewriting", gains["rewrite"])):
        pays = "yes" if gain["hoped"] > gain["cost"] else "no"
        pays = "not needed" if state == "satisfied" else pays
        actions.append((name, f"{gain['expected']:+.2f}", f"{gain['hoped']:+.2f}", f"{gain['cost']:.2f}", pays))
    print_table(("  action", "expected gain", "at best", "cost", "pays"), actions)


def _without(row: dict[str, Any], *names: str) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in names}


# ---- rewritten ----


def write_rewritten(arguments: argparse.Namespace, home: Home) -> int:
    """Write out a job's rewritten rows, or with --all every row with the rewritten ones in place."""
    with open_existing(home.database) as store:
        job = store.get(arguments.job)
    path = home.run(job.id) / REMADE
    if not path.exists():
        yet = " yet; they are written when the job ends" if job.state not in ENDED and job.mode != "numeric" else ""
        raise NotFound(f"job {job.id} ({job.mode}, {job.state}) has no rewritten rows{yet}")
    rows = list(read_json_lines(path))
    chosen = [json_line(row) for row in rows if arguments.all or "remade" in row]
    if not chosen:
        hint(f"job {job.id} rewrote no row; --all gives all {len(rows)} as they are")
    if arguments.output == "-":
        sys.stdout.buffer.writelines(chosen)
        return 0
    _write(Path(arguments.output), b"".join(chosen))
    if arguments.json:
        print_json({"job": job.id, "file": arguments.output, "rows": len(chosen)})
    else:
        say(f"{arguments.output}: {quantity(len(chosen), 'row')}")
    return 0


def _write(path: Path, data: bytes) -> None:
    """Raises StorageError or StateError; a file that was there keeps its old content then."""
    try:
        # A device or a pipe must be written to, not replaced; nor must a link.
        write_file(path.resolve(), data) if path.is_file() or not path.exists() else path.write_bytes(data)
    except OSError as fault:
        raise os_fault(path, fault, "give another file with -o") from fault


# ---- report ----


def report(arguments: argparse.Namespace, home: Home) -> int:
    """Write one HTML page about a job."""
    from agent.cli.report import collect, page  # noqa: PLC0415

    with open_existing(home.database) as store:
        found = collect(home, store, arguments.job)
    target = Path(arguments.output or f"report-{arguments.job}.html")
    text = page(found).encode()
    _write(target, text)
    if arguments.json:
        print_json({"job": arguments.job, "file": str(target), "bytes": len(text)})
    else:
        say(f"{target}: {found.outcome[0]}")
    return 0
