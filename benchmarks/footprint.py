"""What the agent costs a box that is not training, and how fast it answers while it is.

    python -m benchmarks.footprint            (after `make demo`, whose base model it uses)

Measures the idle daemon's memory, `--help` and `ls` on an idle box, and `ls` while a real step on the default model is
being computed. Not covered: the memory of training itself. Run it with nothing else going on. Ends with one JSON line.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.bars import of_footprint, table
from benchmarks.boxes import machine

AGENT = str(Path(sys.executable).with_name("nslora-agent"))
ROOT = Path(__file__).resolve().parent.parent
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
        found.append(memory_mib(daemon))
    return found


def run(*arguments: str) -> bytes:
    """A command's output; raises CalledProcessError if it fails."""
    return subprocess.run([AGENT, *arguments], check=True, capture_output=True).stdout


def listed(state: str) -> list[dict[str, Any]]:
    """All jobs."""
    return list(json.loads(run("ls", "--json", "--state", state)))


def measure(state: str) -> dict[str, object]:
    """All figures, with a daemon of this state folder running."""
    found: dict[str, object] = {"help_s": seconds("--help")}
    run("init", "--state", state)
    with subprocess.Popen([AGENT, "run", "--state", state], stdout=subprocess.DEVNULL) as daemon:
        time.sleep(5)
        found["daemon_idle_mib"] = memory_mib(daemon.pid)
        found["ls_idle_s"] = seconds("ls", "--state", state)
        data = str(ROOT / "examples" / "facts.jsonl")
        run("enqueue", data, "--mode", "numeric", "--state", state, "--steps", "1000")
        wait_for_training(state)
        found["ls_training_s"] = seconds("ls", "--state", state)
        found["daemon_training_mib"] = memory_mib(daemon.pid)
        run("cancel", "1", "--state", state)
        found["daemon_after_jobs_mib"] = after_jobs(state, daemon.pid)
        run("retry", "1", "--state", state)
        wait_for_training(state)
        started = time.perf_counter()
        daemon.terminate()
        daemon.wait()
        found["stop_s"] = round(time.perf_counter() - started, 2)
    return found


def main() -> None:
    """Measure in a state folder of its own that borrows another's base model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, default=ROOT / ".demo" / "models", help="prepared models [.demo/models]")
    parser.add_argument("--keep", type=Path, help="file to write the figures to")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "models").symlink_to(given.models.resolve())
        found = {**measure(folder), **machine()}
    for name, value in found.items():
        print(f"{name:<24}{value}")
    print(f"\n{table(of_footprint(found))}")
    if given.keep:
        given.keep.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
