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
from agent.contract.errors import DataError
from agent.contract.lines import quantity, shorten
from agent.queue.jobs import Job, State, describe
from agent.queue.store import Store, open_existing
from agent.system import output, systemd
from agent.system.config import given_flags
from agent.system.events import progress_in_words
from agent.system.output import hint, print_json, print_table, say
from agent.system.paths import Home

if TYPE_CHECKING:
    from agent.cli.run_history import Following
    from agent.data.dataset import Report

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
    else:
        _say_report(report)
    return DataError.exit_code if report.bad_total else 0


def _say_report(report: Report) -> None:
    marked = f", {report.train} marked train and {report.held_out} held out" if report.held_out else ""
    say(f"{quantity(report.rows, 'good row')} of shape {report.shape}{marked}")
    say(f"{report.with_answer} with an answer, {report.with_constraints} with constraints")
    if report.bad_total:
        say(f"{quantity(report.bad_total, 'bad line')}; enqueue refuses the file unless --skip-bad is given:")
        for bad in report.bad:
            say(f"  {bad}")
        if report.bad_total > len(report.bad):
            say(f"  and {report.bad_total - len(report.bad)} more")


def enqueue(arguments: argparse.Namespace, home: Home) -> int:
    """Copy a file into the spool, then queue it."""
    given = given_flags(arguments, "training", "decision")
    job = api.enqueue(arguments.file, state=home.path, mode=arguments.mode, skip_bad=arguments.skip_bad, **given)
    if arguments.json:
        print_json(_job_json(job))
    else:
        say(f"job {job.id}: {quantity(job.rows, 'row')} queued")
        if job.bad_rows:
            left_out = "1 bad line was" if job.bad_rows == 1 else f"{job.bad_rows} bad lines were"
            hint(f"{left_out} left out; see {home.spool / f'{job.spool}.bad.jsonl'}")
        _say_if_nobody_works(home)
    return 0


def _say_if_nobody_works(home: Home) -> None:
    from agent.contract.errors import Busy  # noqa: PLC0415

    try:
        with hold_lock(home.daemon_lock, "daemon"):
            pass
    except Busy:
        return
    hint("no daemon is running; start it with `nslora-agent run`")


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
            report = _on_a_terminal(home, stack) if sys.stdout.isatty() else _in_lines()
        serve(home, store, report, drain=arguments.drain)
    return 0


def _report_json(what: str, job: Job) -> None:
    print_json({"at": time.time(), "event": what, **describe(job)})


def _in_lines() -> Tell:
    """A line whenever something has changed; under systemd an entry of the journal."""
    said = [""]

    def report(what: str, job: Job) -> None:
        text = _told(what, job)
        went_wrong = job.state in {State.FAILED, State.DEAD}
        priority = systemd.WARNING if went_wrong else systemd.INFO
        if text != said[0] and not systemd.journal(text, priority, NSLORA_JOB=job.id, NSLORA_STATE=job.state):
            say(f"{time.strftime('%H:%M:%S')} {text}")
        said[0] = text

    return report


def _on_a_terminal(home: Home, stack: ExitStack) -> Tell:
    """The running job as a panel that stays at the bottom; what has happened scrolls above it."""
    from rich.live import Live  # noqa: PLC0415  rich costs 80 ms and 12 MB, and only a terminal needs it

    from agent.cli import screen, watch_commands  # noqa: PLC0415

    live = stack.enter_context(Live(transient=True, auto_refresh=False))
    followed: dict[int, Following] = {}

    def report(what: str, job: Job) -> None:
        if what == "progress":
            view = watch_commands.view(home, job.id, followed)
            live.update(screen.one(view, live.console.width), refresh=True)
        else:
            live.update("", refresh=True)
            live.console.print(f"{time.strftime('%H:%M:%S')} {_told(what, job)}", highlight=False, markup=False)

    return report


def _told(what: str, job: Job) -> str:
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
        rows = [(j.id, j.state.value, j.rows, output.age(now - j.created), Path(j.file).name, _doing(j)) for j in jobs]
        print_table(("job", "state", "rows", "age", "file", ""), rows)
        if remote and remote["breaker"] != "closed":
            hint(f"remote LLM: {output.remote_in_words(remote)}")
    return 0


def _doing(job: Job) -> str:
    if job.state is State.RUNNING:
        return progress_in_words(job.progress)
    if job.state is State.PARKED and job.wake:
        return shorten(f"until {output.clock(job.wake)}: {job.reason}", REASON_SHOWN)
    return shorten((f"version {job.version}: " if job.version else "") + (job.reason or ""), REASON_SHOWN)


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
        ("remade data", remade if (remade := home.run(job.id) / "remade.jsonl").exists() else None),
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
    return _tell(arguments, api.cancel(arguments.job, state=home.path))


def retry(arguments: argparse.Namespace, home: Home) -> int:
    """Queue a job again."""
    return _tell(arguments, api.retry(arguments.job, state=home.path))


def _tell(arguments: argparse.Namespace, job: Job) -> int:
    print_json(_job_json(job)) if arguments.json else say(f"job {job.id}: {job.state.value}")
    return 0


def _job_json(job: Job) -> dict[str, Any]:
    """A job for machines; the attempt's token is nobody's business."""
    fields = dataclasses.asdict(job)
    del fields["token"]
    return fields
