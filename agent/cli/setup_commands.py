"""`init` and `doctor`: what a person does before the first job."""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

from agent.cli.progress_bar import show_progress
from agent.contract.atomic_io import TEMPORARY, fsync_path, hold_lock
from agent.contract.errors import BaseModelError
from agent.queue.store import Store
from agent.system.config import read_config, write_base
from agent.system.output import print_json, print_table, say
from agent.system.paths import Home, is_local, resolve


def init(arguments: argparse.Namespace, home: Home) -> int:
    """Write config.toml and prepare the base model once."""
    home.create()
    if arguments.base:
        # What exists here is a path, also without a slash in its name.
        here = Path(arguments.base).exists() and not is_local(arguments.base)
        base = resolve(f"./{arguments.base}" if here else arguments.base, Path.cwd())
    else:
        base = read_config(home.config).base
    with Store(home.database):
        pass
    target = home.model(base)
    made = prepare_base(home, base, again=arguments.again, as_json=arguments.json)
    if arguments.base or not home.config.exists():
        write_base(home.config, base)
    facts = {"state": str(home.path), "config": str(home.config), "base": base, "model": str(target), **made}
    if arguments.json:
        print_json(facts)
    else:
        say(f"base model   {base}" + (f", prepared in {made['seconds']} s" if made else ", already prepared"))
        say(f"settings     {home.config}")
        say("next         nslora-agent enqueue data.jsonl, then nslora-agent run")
    return 0


def prepare_base(home: Home, base: str, *, again: bool, as_json: bool) -> dict[str, Any]:
    """Fetch and quantise the base model unless it is there; returns what was made, empty if nothing."""
    from agent.contract.protocol import Fetch, Fetched, Prepare, Prepared  # noqa: PLC0415
    from agent.system.worker_client import NETWORK, Worker  # noqa: PLC0415

    target = home.model(base)
    if target.exists() and not again:
        return {}
    with (
        hold_lock(home.models_lock, "another `nslora-agent init` is preparing a base model"),
        tempfile.TemporaryDirectory(dir=home.models, prefix=TEMPORARY) as work,
    ):
        log = Path(work) / "log"
        with (
            show_progress(f"fetching {base}", as_json=as_json) as on_event,
            Worker("agent.versions.fetch", log, more=NETWORK) as fetcher,
        ):
            fetched = fetcher.ask(Fetch(base, work), on_event)
        if not isinstance(fetched, Fetched):
            raise BaseModelError(f"cannot fetch {base}")
        what = "quantising to 4 bits (NF4, once)"
        with show_progress(what, as_json=as_json) as on_event, Worker("quant.worker", log) as worker:
            fresh = Path(work) / target.name
            prepared = worker.ask(Prepare(fetched.path, str(fresh)), on_event)
        if target.exists():
            target.rename(Path(work) / "old")
        fresh.rename(target)
        fsync_path(home.models)
    return dataclasses.asdict(prepared) if isinstance(prepared, Prepared) else {}


def doctor(arguments: argparse.Namespace, home: Home) -> int:
    """Print what was found; exit code 0 only if nothing failed."""
    from agent.cli.doctor import FAILURE, examine  # noqa: PLC0415

    findings = examine(home, read_config(home.config))
    can_train = all(finding.status != FAILURE for finding in findings)
    if arguments.json:
        print_json({"can_train": can_train, "findings": [dataclasses.asdict(finding) for finding in findings]})
    else:
        rows = [(f.status, f.check, f.seen + (f"\n→ {f.advice}" if f.advice else "")) for f in findings]
        print_table(("", "check", "seen"), rows)
        say("Training can run." if can_train else "Training cannot run yet: see the failures above.")
    return 0 if can_train else 1
