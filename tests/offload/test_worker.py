from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import llm_server as llm
import pytest
from llm_server import LLMServer, in_turn, saying
from processes import PATIENCE, command_line, environment, internet_sockets
from workers import (
    AUDIT,
    EXAMPLE,
    PROMPT,
    OffloadWorker,
    events,
    example,
    mending,
    one_line,
    over_a_socket,
    settings,
    slow,
    tagged,
    worker,
)

from agent.contract.errors import CacheMiss, ConfigError, RemoteRefused, StateError, WorkerDied
from agent.contract.offload_messages import (
    CacheExport,
    CacheImport,
    CachePrune,
    CacheStats,
    Listed,
    Open,
    Ping,
    Ponged,
    Preview,
    ReadLog,
)
from agent.contract.protocol import Check, Envelope, decode, encode

pytestmark = pytest.mark.process

SHOUT = "Lund runs the Marlow pump on port 4713!"
KEY = "Zebra-key-0123456789-not-of-a-known-shape"


def shouting(text: str) -> str:
    return text.removesuffix(".") + "!"


@pytest.fixture
def server() -> Iterator[LLMServer]:
    with LLMServer(mending(shouting)) as started:
        yield started


# ---- one worker for a phase ----


def test_one_worker_serves_a_whole_phase(tmp_path: Path, server: LLMServer) -> None:
    """Many requests, one process, one connection to the remote; errors in between do not end it."""
    with worker(tmp_path, server) as started:
        texts = [started.rewrite(example(text=f"Lund runs pump {n}.")).text for n in range(20)]
        with pytest.raises(StateError, match="does not serve"):
            started.ask(Check())
        assert started.rewrite(PROMPT).text == "!"
        assert started.process.poll() is None
    assert texts == [f"Lund runs pump {n}!" for n in range(20)]
    assert len(server.requests) == 21
    assert (tmp_path / "log").read_text() == ""


def test_it_leaves_nothing_but_the_cache(tmp_path: Path, server: LLMServer) -> None:
    """No ./logs, no other file anywhere: what it opens for writing is the cache and its lock."""
    noted = tmp_path / "events"
    with worker(tmp_path, server, first=AUDIT.format(path=str(noted))) as started:
        assert started.rewrite(example(faults=[])).text == SHOUT
        assert list((tmp_path / "cwd").iterdir()) == []
    opened = [line.split("\t") for line in noted.read_text().splitlines() if line.startswith("open\t")]
    written = {eval_path(path) for _, path, _, flags in opened if int(flags) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)}
    assert {path for path in written if not path.isdecimal()} == {
        str(tmp_path / name) for name in ("cache.db", "cache.db.migrating")
    }
    assert {eval_path(path) for path in events(noted, "sqlite3.connect\t")} == {str(tmp_path / "cache.db")}
    assert {path.name for path in tmp_path.iterdir()} == {"cache.db", "cache.db.migrating", "cwd", "events", "log"}
    assert stat.S_IMODE((tmp_path / "cache.db").stat().st_mode) == 0o600


def eval_path(shown: str) -> str:
    """The path in the repr of a string, a Path or a descriptor."""
    return shown.removeprefix("PosixPath(").rstrip(")").strip("'")


def imported(noted: Path) -> set[str]:
    return {name.strip("'").partition(".")[0] for name in events(noted, "import")}


def test_textgrad_is_imported_only_to_serve_a_miss(tmp_path: Path, server: LLMServer) -> None:
    """A worker that finds its answers in the cache has neither it nor an HTTP client in memory, and no socket."""
    noted = tmp_path / "events"
    malformed = example(text="Lund runs nothing.")
    requests = [EXAMPLE, example(faults=[], text="Lund runs it."), malformed]
    server.script = mending(lambda text: "" if text == malformed.text else shouting(text))
    with worker(tmp_path, server, first=AUDIT.format(path=str(noted))) as started:
        for request in requests:
            started.ask(Preview(request))
        assert not imported(noted) & {"textgrad", "httpx"}
        first = [started.rewrite(request) for request in requests]
        assert [answer.outcome for answer in first] == ["rewritten", "rewritten", "rejected"]
        assert imported(noted) >= {"textgrad", "httpx"}
    with worker(tmp_path, server, first=AUDIT.format(path=str(noted))) as started:
        again = [started.rewrite(request) for request in requests]
        assert [(answer.text, answer.reason) for answer in again] == [(each.text, each.reason) for each in first]
        assert not imported(noted) & {"textgrad", "httpx", "litellm", "openai"}
        assert events(noted, "socket.") == []


def test_it_talks_to_the_remote_only(tmp_path: Path, server: LLMServer) -> None:
    """Every connection it makes goes there; no name is looked up."""
    noted = tmp_path / "events"
    with worker(tmp_path, server, first=AUDIT.format(path=str(noted))) as started:
        started.rewrite(EXAMPLE)
    lines = [line for line in noted.read_text().splitlines() if line.startswith("socket.")]
    connected = [line.split("\t")[2] for line in lines if line.startswith("socket.connect\t")]
    assert connected == [f"('127.0.0.1', {server.port})"]
    assert all("'127.0.0.1'" in line for line in lines if line.startswith("socket.getaddrinfo"))


def first_idle(seconds: float) -> str:
    """Code that shortens the time a worker waits for a request."""
    return f"import offload.worker; offload.worker.IDLE = {seconds}"


def test_it_ends_when_it_is_idle(tmp_path: Path, server: LLMServer) -> None:
    """In good order; a request that is being served is not idleness, though it takes longer."""
    server.script = slow(0.8, SHOUT)
    with worker(tmp_path, server, first=first_idle(0.5)) as started:
        assert started.rewrite(EXAMPLE).outcome == "rewritten"
        assert started.process.wait(PATIENCE) == 0
        with pytest.raises(WorkerDied, match="exit code 0"):
            started.rewrite(EXAMPLE)


def test_requests_that_come_together_are_all_served(tmp_path: Path) -> None:
    """In their order, also where two share a read and one comes in pieces; nobody waits until the worker is idle."""
    lines = [
        encode(Envelope("request", number, request))
        for number, request in enumerate([Open(str(tmp_path / "cache.db"), settings()), CacheStats(), CacheStats()], 1)
    ]
    data = b"".join(lines)
    with OffloadWorker(tmp_path / "log") as started:
        assert started.process.stdin is not None
        started.process.stdin.write(data[:-20])
        time.sleep(0.2)
        started.process.stdin.write(data[-20:])
        answers = [decode(started._lines.get(timeout=PATIENCE)) for _ in lines]
    assert [answer.id for answer in answers if answer.kind == "answer"] == [1, 2, 3]


def test_it_serves_a_connection_that_systemd_accepted(tmp_path: Path, server: LLMServer) -> None:
    """And ends with it."""
    with over_a_socket(tmp_path) as (connection, process):
        connection.ask(Open(str(tmp_path / "cache.db"), settings(server)))
        answer = connection.ask(EXAMPLE)
    assert getattr(answer, "text", None) == SHOUT
    assert process.returncode == 0
    assert (tmp_path / "log").read_text() == ""


def test_the_commands_for_people(tmp_path: Path, server: LLMServer) -> None:
    """Ping, log, figures, export, import and prune, over the protocol; an import replays on another box."""
    other = tmp_path / "other"
    other.mkdir()
    with worker(tmp_path, server) as started:
        pong = started.ask(Ping())
        assert isinstance(pong, Ponged)
        assert (pong.model, pong.prompt_tokens, pong.completion_tokens) == ("served-model", 7, 3)
        started.rewrite(EXAMPLE)
        assert started.ask(ReadLog(str(tmp_path / "rows"), 10)) == Listed(2)
        assert started.ask(CacheExport(str(tmp_path / "answers"))) == Listed(1)
    assert b"Lund" not in (tmp_path / "rows").read_bytes()
    with worker(other, mode="cache-only") as started:
        assert started.ask(CacheImport(str(tmp_path / "answers"))) == Listed(1, 0)
        assert started.rewrite(EXAMPLE).text == SHOUT
        assert getattr(started.ask(CacheStats()), "answers", None) == 1
        assert getattr(started.ask(CachePrune(0)), "answers", None) == 1
    assert len(server.requests) == 2


# ---- mode cache-only ----


def test_in_mode_cache_only_no_socket_is_opened(tmp_path: Path, server: LLMServer) -> None:
    """Not for a hit, not for a miss, not for an answer that has yet to go through TextGrad, nor for a ping."""
    noted = tmp_path / "events"
    with worker(tmp_path, server) as started:
        started.rewrite(EXAMPLE)
        started.rewrite(example(text="Lund runs it."))
    forget_text(tmp_path / "cache.db", "Lund runs it.")
    asked = len(server.requests)
    with worker(tmp_path, server, first=AUDIT.format(path=str(noted)), mode="cache-only") as started:
        assert started.rewrite(EXAMPLE).text == SHOUT
        assert "textgrad" not in imported(noted)
        assert started.rewrite(example(text="Lund runs it.")).text == "Lund runs it!"
        assert "textgrad" in imported(noted)
        with pytest.raises(CacheMiss, match="example 'pump-2'"):
            started.rewrite(example(example="pump-2", text="never asked"))
        with pytest.raises(CacheMiss):
            started.ask(Ping())
        assert internet_sockets(started.process.pid) == set()
    assert imported(noted)
    assert events(noted, "socket.") == []
    assert len(server.requests) == asked


def forget_text(database: Path, part: str) -> None:
    """As if the worker had died before TextGrad's step was recorded."""
    import sqlite3

    with sqlite3.connect(database) as connection:
        done = connection.execute("UPDATE answers SET text = NULL WHERE messages LIKE ?", (f"%{part}%",))
        assert done.rowcount == 1
    connection.close()


# ---- the key ----


@pytest.fixture
def key(tmp_path: Path) -> Path:
    folder = tmp_path / "secrets"
    folder.mkdir()
    path = folder / "key"
    path.touch(mode=0o600)
    path.write_text(KEY + "\n")
    return path


def test_the_key_is_in_the_header_and_nowhere_else(tmp_path: Path, server: LLMServer, key: Path) -> None:
    """Not in the process's arguments or environment, not on stderr, not in the cache, not in an answer."""
    server.script = in_turn(llm.failing(401, f"wrong key {KEY}"), saying(tagged(SHOUT)))
    with worker(tmp_path, server, api_key_file=str(key)) as started:
        with pytest.raises(RemoteRefused) as refused:
            started.rewrite(EXAMPLE)
        answer = started.rewrite(EXAMPLE)
        started.ask(ReadLog(str(tmp_path / "rows"), 10))
        shown = command_line(started.process.pid) + repr(environment(started.process.pid))
    assert [request.headers["authorization"] for request in server.requests] == [f"Bearer {KEY}"] * 2
    assert answer.text == SHOUT
    assert KEY not in f"{refused.value} {shown} {answer}"
    for path in tmp_path.iterdir():
        assert path.is_dir() or KEY.encode() not in path.read_bytes(), path
    assert not any(KEY in str(request.json) for request in server.requests)


def missing(path: Path) -> None:
    path.unlink()


def open_to_others(path: Path) -> None:
    path.chmod(0o640)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def two_lines(path: Path) -> None:
    path.write_text(f"{KEY}\n{KEY}\n")


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (missing, "cannot be read: No such file"),
        (open_to_others, "chmod 600"),
        (a_folder, "cannot be read: Is a directory"),
        (two_lines, "on one line"),
        (a_pipe, "not a regular file"),
    ],
)
def test_a_key_that_cannot_be_used_is_told_at_the_first_miss(
    tmp_path: Path, server: LLMServer, key: Path, spoil: object, says: str
) -> None:
    """One line that names the file and not what is in it; what is recorded is served all the same."""
    with worker(tmp_path, server) as started:
        started.rewrite(EXAMPLE)
    spoil(key)  # type: ignore[operator]
    with worker(tmp_path, server, api_key_file=str(key)) as started:
        assert started.rewrite(EXAMPLE).text == SHOUT
        with pytest.raises(ConfigError, match=says) as caught:
            started.rewrite(example(text="Lund runs it."))
    assert one_line(caught.value)
    assert str(key) in str(caught.value)
    assert KEY not in str(caught.value)
    assert len(server.requests) == 1


# ---- memory ----


def peak_mb(pid: int) -> float:
    """Largest resident memory so far, in MB (10^6 bytes)."""
    (line,) = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024 / 1e6


def test_memory_of_hits_and_misses(tmp_path: Path, server: LLMServer) -> None:
    """A miss costs TextGrad and the HTTP client, which a worker that only serves hits does not hold."""
    with worker(tmp_path, server) as started:
        started.rewrite(EXAMPLE)
        miss = peak_mb(started.process.pid)
    with worker(tmp_path, server) as started:
        started.rewrite(EXAMPLE)
        hit = peak_mb(started.process.pid)
    print(f"peak of hits {hit:.0f} MB, with a miss {miss:.0f} MB")
    assert hit < miss < hit + 60
