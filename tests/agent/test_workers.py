from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import PATIENCE, environment, is_alive, wait_until

from agent.contract.errors import BaseModelError, StateError, WorkerDied
from agent.contract.protocol import Alive, Check, Checked, Event, Load, ProtocolError, Score
from agent.system.worker_client import NETWORK, Worker, child_environment, how_it_ended, last_words

SECRETS = {
    "AWS_SECRET_ACCESS_KEY", "OPENAI_API_KEY", "HF_TOKEN", "PIP_INDEX_URL", "NVIDIA_API_KEY", "LANGCHAIN_API_KEY",
    "HOMEBREW_GITHUB_API_TOKEN", "PATH_TOKEN", "HTTPS_PROXY", "NOTIFY_SOCKET", "PYTHONPATH", "LD_PRELOAD",
}  # fmt: skip
NEEDED = {"PATH": os.environ["PATH"], "LANG": "C.UTF-8", "LC_NUMERIC": "C", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def worker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Worker]:
    with Worker("quant.worker", tmp_path_factory.mktemp("worker") / "log") as started:
        yield started
    assert not is_alive(started.process.pid)


# ---- talking ----


@pytest.mark.process
def test_a_worker_answers_and_goes_on_after_an_error(worker: Worker, tmp_path: Path) -> None:
    """A request that cannot be served raises the worker's own error here; the same process serves the next one."""
    events: list[Event] = []
    with pytest.raises(StateError, match="Load first"):
        worker.ask(Score(os.devnull, os.devnull, 64), events.append)
    with pytest.raises(BaseModelError, match="init --again"):
        worker.ask(Load(str(tmp_path)))
    answer = worker.ask(Check("cpu"))
    assert isinstance(answer, Checked)
    assert answer.ok, answer.detail
    assert {"torch", "transformers", "bitsandbytes"} <= answer.versions.keys()
    assert all(isinstance(event, Alive) for event in events)
    assert worker.process.poll() is None


@pytest.mark.process
def test_a_library_that_prints_cannot_break_the_stream() -> None:
    """What is printed before and after, by Python or by C, goes to stderr; stdout carries the protocol alone."""
    code = """
import os
from agent.contract.worker_server import claim_stdout
print("before")
stream = claim_stdout()
print("after", flush=True)
os.write(1, b"from C\\n")
stream.write(b"protocol\\n")
"""
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, check=True, timeout=PATIENCE)
    assert done.stdout == b"protocol\n"
    assert set(done.stderr.split(b"\n")) == {b"before", b"after", b"from C", b""}


@pytest.mark.process
def test_what_is_no_protocol_is_an_error_and_not_a_hang(tmp_path: Path) -> None:
    """A module that prints something else breaks the protocol; one that says nothing and ends has died."""
    with Worker("platform", tmp_path / "log") as chatty, pytest.raises(WorkerDied) as fault:
        chatty.ask(Check())
    assert isinstance(fault.value, ProtocolError) or "exit code 0" in str(fault.value)
    with Worker("no_such_module", tmp_path / "log") as missing, pytest.raises(WorkerDied, match="No module named"):
        missing.ask(Check())


@pytest.mark.process
def test_idle_is_called_while_a_worker_is_busy(tmp_path: Path) -> None:
    """Whoever waits can beat, and can break off by raising."""

    def give_up() -> None:
        raise InterruptedError

    with Worker("quant.worker", tmp_path / "log") as waiting, pytest.raises(InterruptedError):
        waiting.ask(Check(), idle=give_up)
    assert not is_alive(waiting.process.pid)


# ---- dying ----


@pytest.mark.process
def test_a_killed_worker_is_reported_with_its_signal_and_last_words(tmp_path: Path) -> None:
    """SIGKILL in the middle of a request, as the kernel does when memory runs out."""
    (tmp_path / "log").write_text("loading weights\nallocating 3 GB\n")
    with Worker("quant.worker", tmp_path / "log") as doomed:
        with pytest.raises(WorkerDied, match=r"SIGKILL \(out of memory\?\); its last words: allocating 3 GB"):
            doomed.ask(Check(), idle=doomed.process.kill)
        with pytest.raises(WorkerDied, match="SIGKILL"):
            doomed.ask(Check())


@pytest.mark.parametrize(
    ("status", "words"),
    [(0, "exit code 0"), (1, "exit code 1"), (-15, "SIGTERM"), (-9, "(out of memory?)"), (-11, "SIGSEGV")],
)
def test_an_exit_status_is_told_in_words(status: int, words: str) -> None:
    """Only SIGKILL suggests memory."""
    assert words in how_it_ended(status)
    assert ("memory" in how_it_ended(status)) == (status == -9)


def test_last_words_are_the_last_line_that_says_something(tmp_path: Path) -> None:
    """Blank lines, odd bytes, long lines and a missing log do no harm."""
    log = tmp_path / "log"
    assert last_words(log) == ""
    log.write_bytes(b"\n \n")
    assert last_words(log) == ""
    log.write_bytes(b"first\nValueError: \xff\n\n")
    assert last_words(log) == "; its last words: ValueError: \ufffd"
    log.write_text("x" * 10_000)
    assert len(last_words(log)) < 400


@pytest.mark.process
def test_a_frozen_worker_is_given_up(tmp_path: Path) -> None:
    """SIGSTOP: alive, but silent for longer than a busy one would be."""
    with Worker("quant.worker", tmp_path / "log", silence=1.0) as frozen:
        frozen.process.send_signal(signal.SIGSTOP)
        with pytest.raises(WorkerDied, match="silent for 1 s: frozen"):
            frozen.ask(Check())
    assert not is_alive(frozen.process.pid)


STARTS_A_WORKER = """
import os, subprocess, sys, time
worker = subprocess.Popen([sys.executable, "-I", "-m", "quant.worker", str(os.getpid())])
print(worker.pid, flush=True)
time.sleep(60)
"""


def handles_sigterm(pid: int) -> bool:
    """True once the worker is past its first lines, death signal included."""
    (caught,) = [x for x in Path(f"/proc/{pid}/status").read_text().splitlines() if x.startswith("SigCgt")]
    return bool(int(caught.split()[1], 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.process
def test_a_worker_dies_with_the_process_that_started_it() -> None:
    """Even though its pipes stay open, it is gone within two seconds of its parent's kill -9."""
    command = [sys.executable, "-I", "-c", STARTS_A_WORKER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        try:
            wait_until(lambda: handles_sigterm(pid), "the worker serves")
            parent.kill()
            wait_until(lambda: not is_alive(pid), "the worker is gone")
        finally:
            parent.kill()
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.process
@pytest.mark.parametrize("module", ["quant.worker", "agent.versions.fetch"])
def test_a_worker_whose_parent_died_before_it_could_ask_ends_at_once(module: str) -> None:
    """The kernel tells nobody of a death that was before; the worker looks for itself."""
    gone = subprocess.Popen([sys.executable, "-I", "-c", ""])
    gone.wait()
    command = [sys.executable, "-I", "-m", module, str(gone.pid)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as orphan:
        assert orphan.wait(PATIENCE) == WorkerDied.exit_code


# ---- what a worker may see ----


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SECRETS:
        monkeypatch.setenv(name, f"secret-{name}")
    for name, value in NEEDED.items():
        monkeypatch.setenv(name, value)


@pytest.mark.process
@pytest.mark.usefixtures("secrets")
def test_a_worker_sees_no_secret_of_its_parent(tmp_path: Path) -> None:
    """The environment of a real worker holds what computing needs, switches off the network, and nothing else."""
    with Worker("quant.worker", tmp_path / "log") as started:
        seen = wait_until(lambda: environment(started.process.pid), "the environment")
    assert not [name for name, value in seen.items() if name in SECRETS or "secret" in value]
    assert NEEDED.items() <= seen.items()
    assert (seen["HF_HUB_OFFLINE"], seen["TRANSFORMERS_OFFLINE"]) == ("1", "1")


@pytest.mark.process
@pytest.mark.parametrize(("operator", "seen"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_a_worker_threads_sleep_while_they_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operator: str | None, seen: str
) -> None:
    """Beside busy processes threads that spin take the cores from whom they wait for; an operator may differ."""
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if operator:
        monkeypatch.setenv("OMP_WAIT_POLICY", operator)
    with Worker("quant.worker", tmp_path / "log") as started:
        found = wait_until(lambda: environment(started.process.pid), "the environment")
    assert found["OMP_WAIT_POLICY"] == seen


@pytest.mark.usefixtures("secrets")
def test_the_downloading_process_sees_the_index_and_the_hub_only() -> None:
    """It may log in where base models come from; no other key reaches it."""
    seen = child_environment(NETWORK)
    assert {name for name in SECRETS if name in seen} == {"HF_TOKEN", "PIP_INDEX_URL", "HTTPS_PROXY"}
    assert "HF_HUB_OFFLINE" not in seen


@pytest.mark.process
def test_a_module_in_the_working_folder_is_not_picked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder called quant/ beside the user's data is not what gets started."""
    (tmp_path / "quant").mkdir()
    (tmp_path / "quant" / "worker.py").write_text("raise SystemExit(42)")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with Worker("quant.worker", tmp_path / "log") as started:
        assert started.process.stdin is not None
        started.process.stdin.close()
        assert started.process.wait(PATIENCE) == 0
