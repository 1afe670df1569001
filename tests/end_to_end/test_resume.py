"""kill -9 of the worker, the loop and the daemon in the middle of real training: nothing is lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from processes import AGENT, PATIENCE, REPRODUCIBLE, agent, is_alive, wait_until
from tiny import write_model

from agent.queue.store import Store
from agent.system.events import read_events
from agent.system.paths import Home
from agent.versions.registry import Registry

pytestmark = pytest.mark.process

FLAGS = [
    "--mode",
    "numeric",
    "--steps",
    "24",
    "--rank",
    "4",
    "--micro-batch",
    "4",
    "--checkpoint-every",
    "4",
    "--learning-rate",
    "1e-2",
]
ROWS = [
    {"prompt": f"which number has pump {i % 6}, asked for time {i}?", "completion": f"it has number {i % 6 * 37}"}
    for i in range(24)
]


def queue_job(home: Home, source: Path, base: Path) -> None:
    """Make a state folder whose base model is the tiny one, with one job in the queue."""
    home.create()
    home.config.write_text(f'base = "{source}"\n{REPRODUCIBLE}')
    home.model(str(source)).symlink_to(base)
    data = home.path.parent / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    done = agent("enqueue", data, *FLAGS, state=home.path)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("resume") / "tiny")


@pytest.fixture
def home(tmp_path: Path, source: Path, tiny_base: Callable[[str], Path]) -> Home:
    """A state folder whose base model is the tiny one, with one job in the queue."""
    made = Home(tmp_path / "state")
    queue_job(made, source, tiny_base("llama"))
    return made


def start_daemon(home: Home) -> subprocess.Popen[bytes]:
    return subprocess.Popen([AGENT, "run", "--drain", "--state", str(home.path)], stdout=subprocess.DEVNULL)


def events(home: Home, kind: str) -> list[dict[str, Any]]:
    return [e for e, _ in read_events(home.run(1) / "events.jsonl") if e["event"] == kind]


def losses(home: Home) -> dict[int, float]:
    """Loss by step; a step that was done twice must have had the same loss both times."""
    found: dict[int, float] = {}
    for event in events(home, "step"):
        assert event["loss"] == pytest.approx(found.setdefault(event["step"], event["loss"]), abs=5e-5)
    return found


def processes(home: Home) -> dict[str, int]:
    """Pids of our processes that have this state folder open or in their arguments, by module."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes().decode().split("\0")
            mine = str(home.path) in words or any(
                str(home.path) in str(link.readlink()) for link in (entry / "fd").iterdir()
            )
        except (OSError, UnicodeDecodeError):
            continue
        module = words[words.index("-m") + 1] if "-m" in words else "agent.cli.main" if "run" in words else None
        if mine and module:
            found[module] = int(entry.name)
    return found


@pytest.fixture(scope="module")
def uninterrupted(
    tmp_path_factory: pytest.TempPathFactory, source: Path, tiny_base: Callable[[str], Path]
) -> dict[int, float]:
    """Losses of the same job when nobody kills anything."""
    whole = Home(tmp_path_factory.mktemp("whole") / "state")
    queue_job(whole, source, tiny_base("llama"))
    done = agent("run", "--drain", state=whole.path)
    assert done.returncode == 0, done.stderr
    return losses(whole)


@pytest.fixture
def daemons() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    "victim",
    [
        "quant.worker",
        *(pytest.param(name, marks=pytest.mark.exhaustive) for name in ("agent.cli.main", "agent.runner.job_process")),
    ],
)
def test_a_killed_process_costs_no_step_and_changes_no_loss(
    home: Home, uninterrupted: dict[int, float], daemons: list[subprocess.Popen[bytes]], victim: str
) -> None:
    """SIGKILL after a checkpoint: no child survives its parent, the job goes on, every loss is as without the kill."""
    daemons.append(start_daemon(home))
    wait_until(lambda: len(events(home, "step")) >= 6, "six steps")
    before = processes(home)
    os.kill(before[victim], signal.SIGKILL)
    below = {
        "agent.cli.main": ["agent.runner.job_process", "quant.worker"],
        "agent.runner.job_process": ["quant.worker"],
        "quant.worker": [],
    }
    for child in below[victim]:
        wait_until(lambda pid=before[child]: not is_alive(pid), f"{child} is gone")
    if victim == "agent.cli.main":
        daemons[0].wait()
        daemons.append(start_daemon(home))
    assert daemons[-1].wait(PATIENCE) == 0
    with Store(home.database) as store:
        job = store.get(1)
        assert (job.state, job.deaths, job.attempt, job.version) == ("done", 1, 2, 1), store.moves(1)
        assert len(store.promotion_stack()) <= 1
        assert [v.whole for v in Registry(home.path, store).versions()] == [True, True]
    assert events(home, "resume"), "it began again instead of going on from its checkpoint"
    assert losses(home) == pytest.approx(uninterrupted, abs=5e-5)
    assert processes(home) == {}


@pytest.mark.exhaustive
def test_sigterm_checkpoints_and_the_next_daemon_goes_on(
    home: Home, uninterrupted: dict[int, float], daemons: list[subprocess.Popen[bytes]]
) -> None:
    """A stop in good order counts no death and repeats no step."""
    daemons.append(start_daemon(home))
    wait_until(lambda: len(events(home, "step")) >= 6, "six steps")
    daemons[0].terminate()
    assert daemons[0].wait(PATIENCE) == 0
    with Store(home.database) as store:
        assert (store.get(1).state, store.get(1).deaths) == ("queued", 0)
    assert processes(home) == {}
    daemons.append(start_daemon(home))
    assert daemons[-1].wait(PATIENCE) == 0
    steps = [e["step"] for e in events(home, "step")]
    assert steps == sorted(set(steps))
    assert losses(home) == pytest.approx(uninterrupted, abs=5e-5)


@pytest.mark.exhaustive
def test_a_damaged_checkpoint_is_passed_over(
    home: Home, uninterrupted: dict[int, float], daemons: list[subprocess.Popen[bytes]]
) -> None:
    """The newest checkpoint lost bytes: the one before it is taken."""
    daemons.append(start_daemon(home))
    wait_until(lambda: len(events(home, "checkpoint")) >= 2, "two checkpoints")
    daemons[0].terminate()
    daemons[0].wait(PATIENCE)
    newest = max(home.run(1).glob("attempt-*/checkpoints/step-*"))
    weights = newest / "adapter.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\xff")
    daemons.append(start_daemon(home))
    assert daemons[-1].wait(PATIENCE) == 0
    assert newest.name not in events(home, "resume")[0]["checkpoint"]
    assert losses(home) == pytest.approx(uninterrupted, abs=5e-5)
