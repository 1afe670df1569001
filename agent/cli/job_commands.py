"""The commands of the queue: validate, enqueue, run, ls, show, logs, cancel, retry."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent import api
from agent.contract.atomic_io import hold_lock
from agent.contract.errors import Busy, DataError
from agent.contract.lines import quantity, shorten
from agent.queue.jobs import Job, State, describe
from agent.queue.store import Store, open_existing
from agent.system import output, systemd
from agent.system.config import flag_settings
from agent.system.events import progress_in_words
from agent.system.output import hint, print_json, print_table, say
from agent.system.paths import REMADE, Home

if TYPE_CHECKING:
    from agent.cli.run_history import RunHistory

Tell = Callable[[str, Job], None]
"""Called by the daemon with what happened to a job."""
REASON_SHOWN = 70
"""Characters of a job's reason in `ls`; `show` has all of it."""


def validate(arguments: argparse.Namespace, home: Home) -> int:
    """Report on a training file; exit code 65 if a line is bad."""
    report = api.validate(arguments.file, state=home.path)
    if arguments.json:
        bad = [{"line": b.line, "problem": b.problem, "fix": b.fix} for b in report.bad]
        print_json({**dataclasses.asdict(report), "bad": bad})
        return DataError.exit_code if report.bad_total else 0
    marked = f", {report.train} marked train and {report.held_out} held out" if report.held_out else ""
    say(f"{quantity(report.rows, 'good row')} of shape {report.shape}{marked}")
    say(f"{report.with_answer} with an answer, {report.with_constraints} with constraints")
    if report.bad_total:
        say(f"{quantity(report.bad_total, 'bad line')}; enqueue refuses the file unless --skip-bad is given:")
        for bad_line in report.bad:
            say(f"  {bad_line}")
        if report.bad_total > len(report.bad):
            say(f"  and {report.bad_total - len(report.bad)} more")
    return DataError.exit_code if report.bad_total else 0


def enqueue(arguments: argparse.Namespace, home: Home) -> int:
    """Copy a file into the spool, then queue it."""
    given = flag_settings(arguments, "training", "decision")
    job = api.enqueue(arguments.file, state=home.path, mode=arguments.mode, skip_bad=arguments.skip_bad, **given)
    if arguments.json:
        print_json(_job_json(job))
        return 0
    say(f"job {job.id}: {quantity(job.rows, 'row')} queued")
    if job.bad_rows:
        hint(f"{quantity(job.bad_rows, 'bad line', 'was')} left out; see {home.spool / f'{job.spool}.bad.jsonl'}")
    try:
        with hold_lock(home.daemon_lock, "daemon"):
            pass
    except Busy:
        return 0
    hint("no daemon is running; start it with `nslora-agent run`")
    return 0


def run(arguments: argparse.Namespace, home: Home) -> int:
    """The daemon."""
    from agent.daemon.daemon import serve  # noqa: PLC0415

    home.create()
    who = f"a daemon is already running for {home.path}"
    with ExitStack() as stack:
        # `enqueue` looks at this lock for an instant.
        stack.enter_context(hold_lock(home.daemon_lock, who, patience=1.0))
        store = stack.enter_context(Store(home.database, actor="daemon"))
        if arguments.json:
            report: Tell = _report_json
        else:
            say(f"nslora-agent is watching {home.path}; stop with Ctrl-C")
            report = _terminal_report(home, stack) if sys.stdout.isatty() else _line_report()
        serve(home, store, report, drain=arguments.drain)
    return 0


def _report_json(what: str, job: Job) -> None:
    print_json({"at": time.time(), "event": what, **describe(job)})


def _line_report() -> Tell:
    """A line whenever something has changed; under systemd an entry of the journal."""
    said = [""]

    def report(what: str, job: Job) -> None:
        text = _line_of(what, job)
        went_wrong = job.state in {State.FAILED, State.DEAD}
        priority = systemd.WARNING if went_wrong else systemd.INFO
        if text != said[0] and not systemd.journal(text, priority, NSLORA_JOB=job.id, NSLORA_STATE=job.state):
            say(f"{time.strftime('%H:%M:%S')} {text}")
        said[0] = text

    return report


def _terminal_report(home: Home, stack: ExitStack) -> Tell:
    """The running job as a panel that stays at the bottom; what has happened scrolls above it."""
    from rich.live import Live  # noqa: PLC0415  rich costs 80 ms and 12 MB, and only a terminal needs it

    from agent.cli import screen, watch_commands  # noqa: PLC0415

    live = stack.enter_context(Live(transient=True, auto_refresh=False))
    histories: dict[int, RunHistory] = {}

    def report(what: str, job: Job) -> None:
        if what == "progress":
            view = watch_commands.view(home, job.id, histories)
            live.update(screen.one(view, live.console.width), refresh=True)
        else:
            live.update("", refresh=True)
            live.console.print(f"{time.strftime('%H:%M:%S')} {_line_of(what, job)}", highlight=False, markup=False)

    return report


def _line_of(what: str, job: Job) -> str:
    if what == "started":
        return f"job {job.id} started: {Path(job.file).name}, {quantity(job.rows, 'row')}"
    if what == "progress":
        return f"job {job.id} {progress_in_words(job.progress)}"
    return f"job {job.id} {job.state.value}" + (f": {job.reason}" if job.reason else "")


def ls(arguments: argparse.Namespace, home: Home) -> int:
    """Jobs, oldest first."""
    with open_existing(home.database) as store:
        jobs = store.list(states=[State(arguments.only)] if arguments.only else None, limit=arguments.last)
        remote = store.remote()
    if arguments.json:
        print_json([_job_json(job) for job in jobs])
    elif not jobs:
        hint("no jobs yet: nslora-agent enqueue data.jsonl")
    else:
        now = time.time()
        rows = []
        for job in jobs:
            if job.state is State.RUNNING:
                status = progress_in_words(job.progress)
            elif job.state is State.PARKED and job.wake:
                status = shorten(f"until {output.clock(job.wake)}: {job.reason}", REASON_SHOWN)
            else:
                status = shorten((f"version {job.version}: " if job.version else "") + (job.reason or ""), REASON_SHOWN)
            age = output.age(now - job.created)
            rows.append((job.id, job.state.value, job.rows, age, Path(job.file).name, status))
        print_table(("job", "state", "rows", "age", "file", ""), rows)
        if remote and remote["breaker"] != "closed":
            hint(f"remote LLM: {output.remote_in_words(remote)}")
    return 0


def show(arguments: argparse.Namespace, home: Home) -> int:
    """Everything known of one job."""
    with open_existing(home.database) as store:
        job = store.get(arguments.job)
        moves = store.moves(job.id)
    if arguments.json:
        print_json({**_job_json(job), "moves": [dataclasses.asdict(move) for move in moves]})
        return 0
    facts = [
        ("job", f"{job.id}, {job.state.value}"),
        (
            "file",
            f"{job.file}, {quantity(job.rows, 'row')}"
            + (f", {quantity(job.bad_rows, 'bad line')} left out" if job.bad_rows else ""),
        ),
        ("base", job.base),
        ("doing", progress_in_words(job.progress) if job.state is State.RUNNING else None),
        ("reason", job.reason),
        ("version", job.version),
        ("rewritten rows", rewritten if (rewritten := home.run(job.id) / REMADE).exists() else None),
        ("next try", output.clock(job.wake) if job.wake else None),
        ("attempts", f"{job.attempt}, of them {job.deaths} ended by a crash"),
        ("settings", ", ".join(f"{k}={v}" for k, v in job.settings.items())),
        ("folder", home.run(job.id)),
    ]
    print_table(("", ""), [fact for fact in facts if fact[1] not in (None, "")])
    rows = [(output.clock(m.at), f"{m.old} → {m.new}" if m.old else str(m.new), m.reason) for m in moves]
    print_table(("when", "state", "why"), rows)
    return 0


def logs(arguments: argparse.Namespace, home: Home) -> int:
    """A job's events; with -f until it ends."""
    from agent.system.events import in_words, read_events  # noqa: PLC0415

    path, offset = home.run(arguments.job) / "events.jsonl", 0
    while True:
        with open_existing(home.database) as store:
            state = store.get(arguments.job).state
        for event, after in read_events(path, offset):
            offset = after
            print_json(event) if arguments.json else say(f"{output.clock(event['at'])}  {in_words(event)}")
        if not arguments.follow or state not in (State.QUEUED, State.RUNNING, State.PAUSED, State.PARKED):
            return 0
        time.sleep(0.5)


def cancel(arguments: argparse.Namespace, home: Home) -> int:
    """Cancel a job; its processes are killed by the daemon within a second."""
    return _print_state(arguments, api.cancel(arguments.job, state=home.path))


def retry(arguments: argparse.Namespace, home: Home) -> int:
    """Queue a job again."""
    return _print_state(arguments, api.retry(arguments.job, state=home.path))


def _print_state(arguments: argparse.Namespace, job: Job) -> int:
    print_json(_job_json(job)) if arguments.json else say(f"job {job.id}: {job.state.value}")
    return 0


def _job_json(job: Job) -> dict[str, Any]:
    """A job as JSON, without the token of its attempt."""
    fields = dataclasses.asdict(job)
    del fields["token"]
    return fields
