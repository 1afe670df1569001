"""Jobs back to back on a tiny model: does anything grow? `python -m benchmarks.soak --minutes 20`.

`--state` is a folder with a prepared base model, whose tokenizer the tiny one takes. Retention is set low, so that
deleting is part of it. Once a minute: the daemon's anonymous memory and open files, the state folder's size, jobs done.
Compared are the samples of the second quarter and of the last one. Ends with one JSON line; exit code 1 if it grows.

Samples are added to OUT/samples.jsonl as they come. What grows shows in one life of a daemon only: a run that was
interrupted starts again, and its samples stay in OUT/samples-1.jsonl and so on.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from agent.contract.settings import Retention
from agent.queue.jobs import State
from agent.queue.store import Store
from agent.system.config import DEFAULT_BASE, write_base, write_settings
from agent.system.paths import Home
from benchmarks.boxes import machine
from benchmarks.contenders import prepare
from benchmarks.models import TINY, write_random
from benchmarks.running import (
    Part,
    Session,
    add_run_options,
    add_state_option,
    clean,
    code,
    phase,
    prepared_home,
    run,
    say,
    whole,
    write_lines,
)
from benchmarks.watching import anonymous

AGENT = str(Path(sys.executable).with_name("nslora-agent"))
KEEP = Retention(jobs=5, checkpoints=1, versions=3)
EVERY = 60.0
"""Seconds between samples."""
FEWEST = 4
"""Samples that can be compared: one in each quarter."""
AHEAD = 3
"""Jobs that wait at any time."""
ALLOWED = {"memory_mib": 1.0, "files": 0.0, "disk_mib": 1.0}
"""Growth that is allowed from the second quarter to the last."""


@dataclass(frozen=True)
class Sample:
    """The daemon and its state folder at one moment."""

    minutes: float
    memory_mib: float
    files: int
    disk_mib: float
    done: int


def sample(home: Home, pid: int, began: float) -> Sample:
    """Take one."""
    with Store(home.database) as store:
        done = store.counts()[State.DONE]
    disk = sum(
        path.lstat().st_size for path in home.path.rglob("*") if path.is_file() and home.models not in path.parents
    )
    files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    minutes = round((time.monotonic() - began) / 60, 2)
    return Sample(minutes, round(anonymous(pid), 2), files, round(disk / 2**20, 2), done)


def box(folder: Path, tokenizer: Path) -> tuple[Home, Path]:
    """A new state folder with the tiny model and little retention, and a data file."""
    home = Home(clean(folder / "state")).create()
    plain = whole(folder / TINY, lambda made: write_random(TINY, made, tokenizer))
    prepare(plain, home.model(str(plain)), folder / "log")
    write_base(home.config, str(plain))
    write_settings(home.config, "retention", asdict(KEEP))
    rows = ({"prompt": f"Which number has pump {n}?", "completion": f"It has number {n * 37}."} for n in range(24))
    return home, write_lines(folder / "data.jsonl", rows)


def samples(home: Home, data: Path, minutes: float) -> Iterator[Sample]:
    """Keep the queue filled; one sample a minute. Every fifth job is cancelled."""
    began, number, last = time.monotonic(), 0, 0.0
    command, quiet = [AGENT, "run", "--state", str(home.path)], subprocess.DEVNULL
    with subprocess.Popen(command, stdout=quiet, stderr=quiet, start_new_session=True) as daemon:
        try:
            while (passed := time.monotonic() - began) < 60 * minutes:
                number += _fill(home, data, number)
                if passed - last >= EVERY:
                    last = passed
                    yield sample(home, daemon.pid, began)
                time.sleep(1)
            daemon.terminate()
            daemon.wait()
        finally:
            daemon.kill()


def _fill(home: Home, data: Path, number: int) -> int:
    """Enqueue a job if few wait; returns how many."""
    with Store(home.database) as store:
        if store.counts()[State.QUEUED] >= AHEAD:
            return 0
    flags = ("--mode", "numeric", "--steps", "12", "--checkpoint-every", "4", "--max-new-tokens", "4", "--rank", "4")
    subprocess.run([AGENT, "enqueue", str(data), *flags, "--state", str(home.path)], check=True, capture_output=True)
    if number % 5 == 4:
        subprocess.run([AGENT, "cancel", str(number), "--state", str(home.path)], check=False, capture_output=True)
    return 1


def grown(found: list[Sample]) -> dict[str, float]:
    """Mean growth from the second quarter to the last."""
    quarter = max(1, len(found) // 4)
    before, after = found[quarter : 2 * quarter], found[-quarter:]
    return {
        name: round(fmean(getattr(each, name) for each in after) - fmean(getattr(each, name) for each in before), 3)
        for name in ALLOWED
    }


def soaked(folder: Path, tokenizer: Path, minutes: float) -> dict[str, Any]:
    """Work for so many minutes; each sample is printed and written down as it comes."""
    phase("the tiny model")
    home, data = box(folder, tokenizer)
    path = folder / "samples.jsonl"
    if path.exists():
        path.rename(folder / f"samples-{len(list(folder.glob('samples-*.jsonl'))) + 1}.jsonl")
    phase("jobs")
    found: list[Sample] = []
    try:
        for each in samples(home, data, minutes):
            found.append(each)
            with path.open("a") as stream:
                stream.write(json.dumps(asdict(each)) + "\n")
            print("  ".join(f"{name} {value}" for name, value in asdict(each).items()), flush=True)
    except KeyboardInterrupt:
        say(f"{len(found)} samples are in {path}; the next run starts with a new daemon")
        raise
    with Store(home.database) as store:
        states = {state.value: count for state, count in store.counts().items() if count}
    if len(found) < FEWEST:
        raise ValueError(f"{len(found)} samples are too few to compare: at least --minutes {FEWEST + 1}")
    return {"samples": [asdict(each) for each in found], "grown": grown(found), "states": states}


def main() -> int:
    """Exit code 1 if something grows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_state_option(parser)
    parser.add_argument("--minutes", type=float, default=20.0)
    add_run_options(parser, "soak-run")
    given = parser.parse_args()
    tokenizer = prepared_home(given).model(DEFAULT_BASE)
    question = {"minutes": given.minutes, **machine(), "code": code("agent", "quant")}
    with Session("benchmarks.soak", given, question) as session:
        session.announce([Part("soak", 60 * given.minutes + 30)], "jobs back to back, a sample a minute")
        figures = session.measure("soak", lambda: soaked(given.out, tokenizer, given.minutes))
        more = figures.get("grown", {})
        if more:
            print(f"jobs {figures['states']}; grown from the second quarter to the last: {more}, allowed {ALLOWED}")
        code_of_end = session.end({**figures, **machine()})
        return code_of_end or int(any(more[name] > ALLOWED[name] for name in ALLOWED))


if __name__ == "__main__":
    sys.exit(run(main))
