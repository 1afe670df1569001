"""Cost of the agent to a box that is not training, and its speed of answer while it is.

    python -m benchmarks.footprint            (after `make demo`, or with --state after `nslora-agent init`)

    help        the time of `nslora-agent --help`
    daemon      the idle daemon's memory, `ls` beside it, and its memory after three jobs
    training    `ls` and the daemon's memory while a real step on the default model is computed; how long stopping takes

Not covered: the memory of training itself. Run it with nothing else going on. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from agent.contract.errors import NotFound
from agent.system.config import DEFAULT_BASE
from agent.system.paths import Home
from benchmarks.bars import of_footprint, table
from benchmarks.boxes import machine
from benchmarks.running import ROOT, Part, Session, add_run_options, code, phase, prepared_home
from benchmarks.running import run as start

Figures = dict[str, Any]
AGENT = str(Path(sys.executable).with_name("nslora-agent"))
REPEATS = 15


def seconds(*arguments: str) -> float:
    """Median wall time of a command."""
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        subprocess.run([AGENT, *arguments], check=True, capture_output=True)
        times.append(time.perf_counter() - started)
    return round(statistics.median(times), 3)


def memory_mib(pid: int) -> dict[str, float]:
    """Resident and proportional memory of a process in MiB."""
    fields = dict(line.split(":") for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return {name: round(int(fields[key].split()[0]) / 1024, 1) for name, key in (("rss", "Rss"), ("pss", "Pss"))}


def wait_for_training(state: str) -> None:
    """Return once the job has done a step."""
    for _ in range(600):
        if any("step" in job["progress"] for job in listed(state) if job["state"] == "running"):
            return
        time.sleep(0.5)
    raise TimeoutError("the job did not start to train")


def after_jobs(state: str, daemon: int) -> list[dict[str, float]]:
    """The daemon's memory after each of three short jobs."""
    data, short = str(ROOT / "examples" / "facts.jsonl"), ("--steps", "1", "--max-new-tokens", "1")
    found = []
    for _ in range(3):
        run("enqueue", data, "--mode", "numeric", "--state", state, *short)
        while any(job["state"] in {"queued", "running"} for job in listed(state)):
            time.sleep(1)
        if bad := [job["state"] for job in listed(state) if job["state"] != "done"]:
            raise RuntimeError(f"a job ended as {bad[0]}")
        found.append(memory_mib(daemon))
    return found


def run(*arguments: str) -> bytes:
    """A command's output; raises CalledProcessError if it fails."""
    return subprocess.run([AGENT, *arguments], check=True, capture_output=True).stdout


def listed(state: str) -> list[dict[str, Any]]:
    """All jobs."""
    return list(json.loads(run("ls", "--json", "--state", state)))


@contextmanager
def daemon_in(models: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """A daemon in a state folder of its own that borrows another's base models; both are gone at the end."""
    with tempfile.TemporaryDirectory() as state:
        (Path(state) / "models").symlink_to(models.resolve())
        run("init", "--state", state)
        with subprocess.Popen(
            [AGENT, "run", "--state", state],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        ) as process:
            try:
                time.sleep(5)
                yield state, process
                process.terminate()
                process.wait()
            finally:
                process.kill()


def of_help(_: Path) -> Figures:
    """The least time of a command."""
    phase("help")
    return {"help_s": seconds("--help")}


def of_daemon(models: Path) -> Figures:
    """One daemon's life: idle, then three jobs."""
    with daemon_in(models) as (state, process):
        phase("idle")
        found: Figures = {"daemon_idle_mib": memory_mib(process.pid), "ls_idle_s": seconds("ls", "--state", state)}
        phase("three jobs")
        return found | {"daemon_after_jobs_mib": after_jobs(state, process.pid)}


def of_training(models: Path) -> Figures:
    """While a step is computed, and how long stopping takes then."""
    with daemon_in(models) as (state, process):
        phase("a job starts")
        data = str(ROOT / "examples" / "facts.jsonl")
        run("enqueue", data, "--mode", "numeric", "--state", state, "--steps", "1000")
        wait_for_training(state)
        phase("beside training")
        found: Figures = {"ls_training_s": seconds("ls", "--state", state)}
        found["daemon_training_mib"] = memory_mib(process.pid)
        phase("stop")
        started = time.perf_counter()
        process.terminate()
        process.wait()
        return found | {"stop_s": round(time.perf_counter() - started, 2)}


PARTS = {"help": (5, of_help), "daemon": (240, of_daemon), "training": (100, of_training)}
"""By name: seconds on two cores, and what measures it."""


def main() -> int:
    """Measure part by part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--state", help="state folder with the prepared base model [.demo, from `make demo`]")
    add_run_options(parser, "footprint-run")
    given = parser.parse_args()
    if given.state is None and not Home(ROOT / ".demo").model(DEFAULT_BASE).exists():
        fix = "run `make demo` first (eight minutes), or `nslora-agent init --state DIR` (one) and give --state DIR"
        raise NotFound(f"{ROOT / '.demo'} holds no prepared base model: {fix}")
    given.state = given.state or str(ROOT / ".demo")
    models = prepared_home(given).models
    with Session("benchmarks.footprint", given, {**machine(), "code": code("agent", "quant")}) as session:
        parts = [Part(name, seconds) for name, (seconds, _) in PARTS.items()]
        session.announce(parts, "what the agent costs a box that is not training, and how fast it answers")
        figures: Figures = {}
        for name, (_, part) in PARTS.items():
            found = session.measure(name, lambda: part(models))  # noqa: B023
            for key, value in found.items():
                print(f"{key:<24}{value}", flush=True)
            figures |= {key: value for key, value in found.items() if key != "fault"}
        figures |= machine()
        print(f"\n{table(of_footprint(figures))}")
        return session.end(figures)


if __name__ == "__main__":
    sys.exit(start(main))
