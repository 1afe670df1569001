"""The training worker has no network: a connection to a server that is really there fails in it."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.contract.confinement import forbid_network, is_confined
from agent.contract.protocol import Check, Checked, Load
from agent.system.worker_client import Worker

TRY = """
import socket, subprocess, sys
from agent.contract.confinement import is_confined, forbid_network

def connect(family, address):
    try:
        with socket.socket(family) as connection:
            connection.connect(address)
            return "connected"
    except OSError as fault:
        return type(fault).__name__

port = int(sys.argv[1])
before = connect(socket.AF_INET, ("127.0.0.1", port))
print(before, is_confined(), forbid_network(), is_confined())
print(connect(socket.AF_INET, ("127.0.0.1", port)), connect(socket.AF_INET6, ("::1", port)))
print(connect(socket.AF_UNIX, sys.argv[2]))
child = "import socket; socket.create_connection(('127.0.0.1', int(__import__('sys').argv[1])))"
print(subprocess.run([sys.executable, "-c", child, sys.argv[1]], capture_output=True, text=True).stderr.split()[-3:])
"""


@pytest.fixture
def listener() -> Iterator[int]:
    """A TCP server on loopback."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.process
def test_a_confined_process_and_its_children_reach_nothing(listener: int, tmp_path: Path) -> None:
    """Before, it connects; afterwards neither it nor a child does, over IPv4 or IPv6; Unix sockets stay."""
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        done = subprocess.run(
            [sys.executable, "-c", TRY, str(listener), str(path)], capture_output=True, text=True, check=True
        )
    first, second, third, child = done.stdout.splitlines()
    assert first == "connected False True True"
    assert second == "PermissionError PermissionError"
    assert third == "connected"
    assert "Permission" in child


@pytest.mark.process
def test_the_training_worker_is_confined_from_its_start(tmp_path: Path, tiny_base: Callable[[str], Path]) -> None:
    """In the foreground, without systemd: the kernel says so of the process that holds the model, and `doctor` asks."""
    with Worker("quant.worker", tmp_path / "log") as worker:
        worker.ask(Load(str(tiny_base("llama"))))
        told = Path(f"/proc/{worker.process.pid}/status").read_text()
        answer = worker.ask(Check("cpu"))
    assert "NoNewPrivs:\t1\n" in told
    assert "Seccomp:\t2\n" in told
    assert isinstance(answer, Checked)
    assert answer.confined


def test_an_unknown_machine_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A filter for other numbers of system calls would forbid anything."""
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    assert not forbid_network()
    assert not is_confined()
