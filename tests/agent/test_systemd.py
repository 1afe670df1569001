import itertools
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from agent.system import systemd
from agent.system.systemd import notify


@contextmanager
def listening(address: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(address)
        manager.settimeout(5)
        yield manager


def test_a_state_reaches_the_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The service manager receives the state as one datagram."""
    with listening(str(tmp_path / "notify")) as manager:
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        assert notify("READY=1\nSTATUS=2 jobs wait") is True
        assert manager.recv(4096) == b"READY=1\nSTATUS=2 jobs wait"


def test_an_abstract_socket_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """An address that starts with @ names a socket that is in no folder."""
    name = f"nslora-agent-test-{os.getpid()}"
    with listening(f"\0{name}") as manager:
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        assert notify("WATCHDOG=1") is True
        assert manager.recv(4096) == b"WATCHDOG=1"


def test_a_manager_that_does_not_read_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once its queue is full, messages are dropped after a while."""
    monkeypatch.setattr(systemd, "PATIENCE", 0.05)
    with listening(str(tmp_path / "notify")):
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        told = list(itertools.takewhile(bool, (notify("WATCHDOG=1") for _ in range(100_000))))
        assert 1 <= len(told) < 100_000


@pytest.mark.parametrize("address", [None, "", "vsock:2:1234", "/nowhere/notify"])
def test_without_a_manager_nothing_happens(address: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """No socket, one of another kind, or one that has gone: nothing is sent and nothing is raised."""
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if address is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    assert notify("READY=1") is False


def test_an_entry_of_the_journal_has_its_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Message, priority and fields, a line each; a line break in a text cannot forge another field."""
    monkeypatch.setattr(systemd, "JOURNAL", str(tmp_path / "journal"))
    with listening(str(tmp_path / "journal")) as manager:
        assert not systemd.journal("job 3 failed", systemd.WARNING, NSLORA_JOB=3)
        monkeypatch.setenv("JOURNAL_STREAM", "8:4711")
        assert systemd.journal("job 3 failed:\nPRIORITY=0", systemd.WARNING, NSLORA_JOB=3)
        lines = manager.recv(4096).decode().splitlines()
    assert lines == [
        "MESSAGE=job 3 failed: PRIORITY=0",
        "PRIORITY=4",
        "SYSLOG_IDENTIFIER=nslora-agent",
        "NSLORA_JOB=3",
    ]


def test_without_a_journal_the_line_goes_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """False: the caller prints it."""
    monkeypatch.setenv("JOURNAL_STREAM", "8:4711")
    monkeypatch.setattr(systemd, "JOURNAL", "/nowhere/journal")
    assert systemd.journal("text", systemd.INFO) is False
