"""What the agent costs a box that is not training, and how fast it answers while it is.

    python -m benchmarks.footprint            (after `make demo`, whose base model it uses)

Measures the idle daemon's memory, `--help` and `ls` on an idle box, and `ls` while a real step on the default model is
being computed. Not covered: the memory of training itself. Run it with nothing else going on. Ends with one JSON line.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

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


def memory_mb(pid: int) -> dict[str, float]:
    """Resident and proportional memory of a process in MB (10^6 bytes)."""
    fields = dict(line.split(":") for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    return {name: round(int(fields[key].split()[0]) * 1024 / 1e6, 1) for name, key in (("rss", "Rss"), ("pss", "Pss"))}


def wait_for_training(state: str) -> None:
    """Return once the job has done a step."""
    for _ in range(600):
        if any("step" in job["progress"] for job in listed(state) if job["state"] == "running"):
            return
        time.sleep(0.5)
    raise TimeoutError("the job did not start to train")


def after_jobs(state: str, daemon: int) -> list[dict[str, float]]:
    """The daemon's memory after each of three short jobs."""
    found = []
    for _ in range(3):
        data = str(ROOT / "examples" / "facts.jsonl")
        command = [
            AGENT,
            "enqueue",
            data,
            "--mode",
            "numeric",
            "--state",
            state,
            "--steps",
            "1",
            "--max-new-tokens",
            "1",
        ]
        subprocess.run(command, check=True, capture_output=True)
        while any(job["state"] in {"queued", "running"} for job in listed(state)):
            time.sleep(1)
        found.append(memory_mb(daemon))
    return found


def listed(state: str) -> list[dict[str, Any]]:
    """All jobs."""
    told = subprocess.run([AGENT, "ls", "--json", "--state", state], capture_output=True, check=True).stdout
    return list(json.loads(told))


def measure(state: str) -> dict[str, object]:
    """All figures, with a daemon of this state folder running."""
    found: dict[str, object] = {"help_s": seconds("--help")}
    subprocess.run([AGENT, "init", "--state", state], check=True, capture_output=True)
    with subprocess.Popen([AGENT, "run", "--state", state], stdout=subprocess.DEVNULL) as daemon:
        time.sleep(5)
        found["daemon_idle_mb"] = memory_mb(daemon.pid)
        found["ls_idle_s"] = seconds("ls", "--state", state)
        data = str(ROOT / "examples" / "facts.jsonl")
        subprocess.run(
            [AGENT, "enqueue", data, "--mode", "numeric", "--state", state, "--steps", "1000"],
            check=True,
            capture_output=True,
        )
        wait_for_training(state)
        found["ls_training_s"] = seconds("ls", "--state", state)
        found["daemon_training_mb"] = memory_mb(daemon.pid)
        subprocess.run([AGENT, "cancel", "1", "--state", state], check=True, capture_output=True)
        found["daemon_after_jobs_mb"] = after_jobs(state, daemon.pid)
        subprocess.run([AGENT, "retry", "1", "--state", state], check=True, capture_output=True)
        wait_for_training(state)
        started = time.perf_counter()
        daemon.terminate()
        daemon.wait()
        found["stop_s"] = round(time.perf_counter() - started, 2)
    return found


def main() -> None:
    """Measure in a state folder of its own that borrows the demo's base model."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "models").symlink_to(ROOT / ".demo" / "models")
        found = measure(folder)
    found["machine"] = f"{platform.machine()}, {os.cpu_count()} cores"
    found["python"] = platform.python_version()
    for name, value in found.items():
        print(f"{name:<20}{value}")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
