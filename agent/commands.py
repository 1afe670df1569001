"""What each command of the command line does; torch-free, and quick to import."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent import output
from agent.config import Config, default_toml, read_config, training_from, write_base
from agent.durable import locked, remove_tree, write_file
from agent.errors import BaseModelError, DataError, NotFound, StateError
from agent.home import Home
from agent.jobs import Job, State
from agent.output import hint, print_json, print_table, say
from agent.store import Store

if TYPE_CHECKING:
    from agent.dataset import Report

STATE_STYLES = {
    "running": "bold cyan", "done": "green", "failed": "red", "dead": "bold red", "cancelled": "dim",
    "parked": "yellow", "paused": "yellow", "ok": "green", "warning": "yellow", "failure": "bold red", "*": "green",
}  # fmt: skip


REASON_SHOWN = 70
"""Characters of a job's reason in `ls`; `show` has all of it."""


def init(arguments: argparse.Namespace, home: Home) -> int:
    """Write config.toml and prepare the base model once."""
    home.create()
    if arguments.base:
        write_base(home.config, arguments.base)
    elif not home.config.exists():
        write_file(home.config, default_toml(Config().base).encode())
    config = read_config(home.config)
    with Store(home.database):
        pass
    target = home.model(config.base)
    made = prepare_base(home, config.base, again=arguments.again)
    facts = {"state": str(home.path), "config": str(home.config), "base": config.base, "model": str(target), **made}
    if arguments.json:
        print_json(facts)
    else:
        say(f"base model   {config.base}" + (f", prepared in {made['seconds']} s" if made else ", already prepared"))
        say(f"settings     {home.config}")
        say("next         nslora-agent enqueue data.jsonl, then nslora-agent run")
    return 0


def prepare_base(home: Home, base: str, *, again: bool) -> dict[str, Any]:
    """Fetch and quantise the base model unless it is there; returns what was made, empty if nothing."""
    from agent.protocol import Fetch, Fetched, Prepare, Prepared  # noqa: PLC0415
    from agent.workers import Worker  # noqa: PLC0415

    target = home.model(base)
    if target.exists() and not again:
        return {}
    with (
        locked(home.models / ".lock", "another `nslora-agent init` is preparing a base model"),
        tempfile.TemporaryDirectory(dir=home.models, prefix=".tmp-") as work,
    ):
        log = Path(work) / "log"
        hint(f"fetching {base}")
        with Worker("agent.fetch", log, network=True) as fetcher:
            fetched = fetcher.ask(Fetch(base, work))
        if not isinstance(fetched, Fetched):
            raise BaseModelError(f"cannot fetch {base}")
        hint("quantising to 4 bits (NF4, once)")
        with Worker("quant.worker", log) as worker:
            fresh = Path(work) / target.name
            prepared = worker.ask(Prepare(fetched.path, str(fresh)))
        remove_tree(target)
        fresh.rename(target)
    return dataclasses.asdict(prepared) if isinstance(prepared, Prepared) else {}


def doctor(arguments: argparse.Namespace, home: Home) -> int:
    """Print what was found; exit code 0 only if nothing failed."""
    from agent.doctor import FAILURE, examine  # noqa: PLC0415

    findings = examine(home, read_config(home.config))
    can_train = all(finding.status != FAILURE for finding in findings)
    if arguments.json:
        print_json({"can_train": can_train, "findings": [dataclasses.asdict(finding) for finding in findings]})
    else:
        rows = [(f.status, f.check, f.seen + (f"\n→ {f.advice}" if f.advice else "")) for f in findings]
        print_table(("", "check", "seen"), rows, STATE_STYLES)
        say("Training can run." if can_train else "Training cannot run yet: see the failures above.")
    return 0 if can_train else 1


def validate(arguments: argparse.Namespace, home: Home) -> int:
    """Report on a training file; exit code 65 if a line is bad."""
    from agent.dataset import open_source  # noqa: PLC0415
    from agent.dataset import validate as check  # noqa: PLC0415

    with open_source(arguments.file) as source:
        report = check(source, read_config(home.config).limits)
    if arguments.json:
        bad = [{"line": b.line, "problem": b.problem, "fix": b.fix} for b in report.bad]
        print_json({**dataclasses.asdict(report), "bad": bad})
    else:
        _say_report(report)
    return DataError.exit_code if report.bad_total else 0


def _say_report(report: Report) -> None:
    marked = f", {report.train} marked train and {report.held_out} held out" if report.held_out else ""
    say(f"{report.rows} good rows of shape {report.shape}{marked}")
    say(f"{report.with_answer} with an answer, {report.with_constraints} with constraints")
    if report.bad_total:
        say(f"{report.bad_total} bad lines; enqueue refuses the file unless --skip-bad is given:")
        for bad in report.bad:
            say(f"  {bad}")
        if report.bad_total > len(report.bad):
            say(f"  and {report.bad_total - len(report.bad)} more")


def enqueue(arguments: argparse.Namespace, home: Home) -> int:
    """Copy a file into the spool, then queue it."""
    from agent.dataset import open_source  # noqa: PLC0415
    from agent.spool import spool  # noqa: PLC0415

    config = read_config(home.config)
    settings = training_from(arguments, config)
    home.create()
    with open_source(arguments.file) as source:
        kept = spool(source, home.spool, uuid.uuid4().hex, config.limits, skip_bad=arguments.skip_bad)
    shown = "stdin" if arguments.file == "-" else str(Path(arguments.file).absolute())
    with Store(home.database) as store:
        job = store.add(
            file=shown,
            spool=kept.path.stem,
            rows=kept.rows,
            bad_rows=kept.bad,
            sha256=kept.sha256,
            settings=dataclasses.asdict(settings),
            base=config.base,
            mode="numeric",
        )
    if arguments.json:
        print_json(_job_json(job))
    else:
        say(f"job {job.id}: {kept.rows} rows queued")
        if kept.bad:
            hint(f"{kept.bad} bad lines were left out; they are in {kept.bad_path}")
        _say_if_nobody_works(home)
    return 0


def _say_if_nobody_works(home: Home) -> None:
    from agent.errors import Busy  # noqa: PLC0415

    try:
        with locked(home.daemon_lock, "daemon"):
            hint("no daemon is running; start it with `nslora-agent run`")
    except Busy:
        pass


def run(arguments: argparse.Namespace, home: Home) -> int:
    """The daemon."""
    from agent.daemon import describe, serve  # noqa: PLC0415

    home.create()
    said = ""

    def report(what: str, job: Job) -> None:
        nonlocal said
        text = _told(what, job)
        if arguments.json:
            print_json({"at": time.time(), "event": what, **describe(job)})
        elif text != said:
            say(f"{time.strftime('%H:%M:%S')} {text}")
        said = text

    who = f"a daemon is already running for {home.path}"
    with locked(home.daemon_lock, who), Store(home.database, actor="daemon") as store:
        if not arguments.json:
            say(f"nslora-agent is watching {home.path}; stop with Ctrl-C")
        serve(home, store, report, drain=arguments.drain)
    return 0


def _told(what: str, job: Job) -> str:
    if what == "started":
        return f"job {job.id} started: {Path(job.file).name}, {job.rows} rows"
    if what == "progress":
        return f"job {job.id} {progress_in_words(job)}"
    return f"job {job.id} {job.state.value}" + (f": {job.reason}" if job.reason else "")


def progress_in_words(job: Job) -> str:
    """Where a running job is, in a few words."""
    from agent.events import PHASES  # noqa: PLC0415

    done = job.progress
    if done.get("phase") != "train" or "step" not in done:
        return PHASES.get(str(done.get("phase")), "starting")
    return f"step {done['step']}/{done['steps']}  loss {done['loss']:.3f}  {done['tokens_per_s']:.0f} tokens/s"


def ls(arguments: argparse.Namespace, home: Home) -> int:
    """Jobs, oldest first."""
    with _existing(home) as store:
        jobs = store.list(states=[State(arguments.only)] if arguments.only else None, limit=arguments.last)
    if arguments.json:
        print_json([_job_json(job) for job in jobs])
    elif not jobs:
        hint("no jobs yet: nslora-agent enqueue data.jsonl")
    else:
        now = time.time()
        rows = [(j.id, j.state.value, j.rows, output.age(now - j.created), Path(j.file).name, _doing(j)) for j in jobs]
        print_table(("job", "state", "rows", "age", "file", ""), rows, STATE_STYLES)
    return 0


def _doing(job: Job) -> str:
    if job.state is State.RUNNING:
        return progress_in_words(job)
    text = (f"version {job.version}: " if job.version else "") + (job.reason or "")
    return text if len(text) <= REASON_SHOWN else text[:REASON_SHOWN] + "…"


def show(arguments: argparse.Namespace, home: Home) -> int:
    """Everything known of one job."""
    with _existing(home) as store:
        job = store.get(arguments.job)
        moves = store.moves(job.id)
    if arguments.json:
        print_json({**_job_json(job), "moves": [dataclasses.asdict(move) for move in moves]})
        return 0
    facts = [
        ("job", f"{job.id}, {job.state.value}"),
        ("file", f"{job.file}, {job.rows} rows" + (f", {job.bad_rows} bad lines left out" if job.bad_rows else "")),
        ("base", job.base),
        ("doing", progress_in_words(job) if job.state is State.RUNNING else job.reason),
        ("version", job.version),
        ("attempts", f"{job.attempt}, of them {job.deaths} ended by a crash"),
        ("settings", ", ".join(f"{k}={v}" for k, v in job.settings.items())),
        ("folder", home.run(job.id)),
    ]
    print_table(("", ""), [fact for fact in facts if fact[1] not in (None, "")])
    rows = [(output.clock(m.at), f"{m.old or ''} → {m.new}", m.reason) for m in moves]
    print_table(("when", "state", "why"), rows)
    return 0


def logs(arguments: argparse.Namespace, home: Home) -> int:
    """A job's events; with -f until it ends."""
    from agent.events import in_words, read_events  # noqa: PLC0415

    path, offset = home.run(arguments.job) / "events.jsonl", 0
    while True:
        with _existing(home) as store:
            state = store.get(arguments.job).state
        for event, after in read_events(path, offset):
            offset = after
            print_json(event) if arguments.json else say(f"{output.clock(event['at'])}  {in_words(event)}")
        if not arguments.follow or state not in (State.QUEUED, State.RUNNING, State.PAUSED, State.PARKED):
            return 0
        time.sleep(0.5)


def cancel(arguments: argparse.Namespace, home: Home) -> int:
    """Cancel a job; its processes are killed by the daemon within a second."""
    with _existing(home) as store:
        job = store.cancel(arguments.job, "cancelled by a person")
    return _tell(arguments, job)


def retry(arguments: argparse.Namespace, home: Home) -> int:
    """Queue a job again."""
    with _existing(home) as store:
        job = store.retry(arguments.job)
    return _tell(arguments, job)


def _tell(arguments: argparse.Namespace, job: Job) -> int:
    print_json(_job_json(job)) if arguments.json else say(f"job {job.id}: {job.state.value}")
    return 0


def versions(arguments: argparse.Namespace, home: Home) -> int:
    """Versions with their held-out figures."""
    from agent.registry import Registry  # noqa: PLC0415

    with _existing(home) as store:
        found = Registry(home.path, store).versions()
    if arguments.json:
        print_json([dataclasses.asdict(version) for version in found])
        return 0
    rows = []
    for version in found:
        figures = version.about.get("figures", {})
        before, after = figures.get("before", {}), figures.get("after", {})
        rows.append(
            (
                "*" if version.active else "",
                version.number,
                version.about.get("job"),
                _change(before.get("content"), after.get("content")),
                _change(before.get("loss"), after.get("loss")),
                "the base model as it came" if version.number == 0 else version.about.get("file"),
                "" if version.whole else "damaged",
            )
        )
    print_table(("", "version", "job", "content", "loss", "file", ""), rows, STATE_STYLES)
    return 0


def _change(before: float | None, after: float | None) -> str:
    return "" if before is None or after is None else f"{before:.2f} → {after:.2f}"


def promote(arguments: argparse.Namespace, home: Home) -> int:
    """Make a version active."""
    from agent.registry import Registry  # noqa: PLC0415

    with _existing(home) as store:
        Registry(home.path, store).promote(arguments.version)
    return _tell_active(arguments, arguments.version)


def rollback(arguments: argparse.Namespace, home: Home) -> int:
    """Make active what was active before."""
    from agent.registry import Registry  # noqa: PLC0415

    with _existing(home) as store:
        active = Registry(home.path, store).rollback()
    return _tell_active(arguments, active)


def _tell_active(arguments: argparse.Namespace, version: int) -> int:
    name = f"version {version}" if version else "the base model"
    print_json({"active": version}) if arguments.json else say(f"{name} is active")
    return 0


def generate(arguments: argparse.Namespace, home: Home) -> int:
    """One greedy answer, by a worker that is gone afterwards."""
    from agent.protocol import Generate, Load  # noqa: PLC0415
    from agent.workers import Worker  # noqa: PLC0415

    config = read_config(home.config)
    prompt = sys.stdin.read() if arguments.prompt == "-" else arguments.prompt
    number, base, adapter, system = _chosen_version(arguments.version, home, config)
    model = home.model(base)
    if not model.exists():
        raise BaseModelError(f"the base model {base} is not prepared: run `nslora-agent init`")
    messages = [{"role": "system", "content": system}] if system else []
    messages.append({"role": "user", "content": prompt})
    busy = "a job is using the device: wait for it (`nslora-agent ls`) or cancel it"
    with locked(home.device_lock, busy) as lock, tempfile.TemporaryDirectory() as work:
        data, out = Path(work) / "prompt.jsonl", Path(work) / "answer.jsonl"
        data.write_text(json.dumps({"id": "1", "messages": messages}) + "\n")
        with Worker("quant.worker", Path(work) / "log", keep=(lock,)) as worker:
            worker.ask(Load(str(model), adapter, config.training.device, config.training.dtype))
            worker.ask(Generate(str(data), str(out), arguments.max_new_tokens))
        answer = json.loads(out.read_text())
    found = {"version": number, "base": base, "text": answer["text"], "tokens": answer["tokens"]}
    print_json(found) if arguments.json else say(answer["text"])
    return 0


def _chosen_version(asked: str | None, home: Home, config: Config) -> tuple[int, str, str | None, str]:
    """Version number, base model, adapter folder and system prompt for `generate`."""
    from agent.registry import Registry  # noqa: PLC0415

    if asked is not None and asked != "base" and not asked.isdigit():
        raise NotFound(f'--version must be a number from `nslora-agent versions` or "base", not {asked!r}')
    if not home.database.exists():
        return 0, config.base, None, ""
    with Store(home.database) as store:
        registry = Registry(home.path, store)
        number = registry.active() if asked is None else 0 if asked == "base" else int(asked)
        if not number:
            return 0, config.base, None, ""
        folder = registry.folder(number)
        base = registry.get(number).about["base"]
    return number, base, str(folder), (folder / "system_prompt.txt").read_text()


def _existing(home: Home) -> Store:
    """The database of a state folder that is there; a mistyped --state must not make a new one."""
    if not home.database.exists():
        raise StateError(
            f"nothing was ever queued in {home.path}: run `nslora-agent init`, or give another --state DIR"
        )
    return Store(home.database)


def _job_json(job: Job) -> dict[str, Any]:
    """A job for machines; the attempt's token is nobody's business."""
    fields = dataclasses.asdict(job)
    del fields["token"]
    return fields
