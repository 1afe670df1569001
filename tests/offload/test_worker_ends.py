from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import llm_server as llm
import pytest
from llm_server import LLMServer, in_turn, saying
from processes import PATIENCE, wait_until
from remotes import rows
from workers import (
    EXAMPLE,
    PROMPT,
    OffloadWorker,
    one_line,
    over_a_socket,
    settings,
    slow,
    tagged,
    worker,
)

from agent.contract.errors import ConfigError, StateError, WorkerDied
from agent.contract.offload_messages import (
    CacheImport,
    CacheStats,
    Listed,
    Open,
    Ping,
    Preview,
    ReadLog,
)
from agent.contract.protocol import MAX_LINE, Envelope, encode
from agent.contract.requests import Request as AnyRequest

pytestmark = pytest.mark.process

SHOUT = "Lund runs the Marlow pump on port 4713!"


@pytest.fixture
def server() -> Iterator[LLMServer]:
    with LLMServer(in_turn(saying(tagged(SHOUT)))) as started:
        yield started


# ---- a worker that dies ----

DIES_BEFORE_THE_TEXT = """
import os, signal
from offload.cache import Cache
Cache.note_text = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
"""


def test_an_answer_whose_worker_was_killed_is_finished_without_asking_again(tmp_path: Path, server: LLMServer) -> None:
    """SIGKILL between the answer's arrival and TextGrad's text: what was paid for is there."""
    with (
        worker(tmp_path, server, first=DIES_BEFORE_THE_TEXT) as started,
        pytest.raises(WorkerDied, match="SIGKILL"),
    ):
        started.rewrite(EXAMPLE)
    assert len(server.requests) == 1
    with worker(tmp_path, server) as started:
        for _ in range(2):
            answer = started.rewrite(EXAMPLE)
            assert (answer.outcome, answer.text, answer.calls, answer.cached) == ("rewritten", SHOUT, 0, True)
        assert started.ask(ReadLog(str(tmp_path / "audit"), 10)) == Listed(3)  # the request and two hits
    assert len(server.requests) == 1


def test_sigterm_breaks_off_a_call_in_good_order(tmp_path: Path, server: LLMServer) -> None:
    """It dies of the signal at once, and another worker need not wait until its lease on the answer is over."""
    server.script = in_turn(llm.hanging, saying(tagged(SHOUT)))
    with worker(tmp_path, server) as started:
        threading.Thread(target=terminate_when_asked, args=(started, server)).start()
        with pytest.raises(WorkerDied, match="SIGTERM"):
            started.rewrite(EXAMPLE)
    assert (tmp_path / "log").read_text() == ""
    assert rows(tmp_path, "SELECT * FROM leases") == []
    with worker(tmp_path, server) as started:
        assert started.rewrite(EXAMPLE).text == SHOUT


def terminate_when_asked(started: OffloadWorker, server: LLMServer) -> None:
    wait_until(lambda: server.requests, "the request is there")
    started.stop()


def test_sigterm_ends_a_worker_that_waits(tmp_path: Path) -> None:
    """At once."""
    with worker(tmp_path) as started:
        started.stop()
        assert started.process.wait(PATIENCE) == -signal.SIGTERM


def test_it_ends_with_its_input(tmp_path: Path) -> None:
    """In good order."""
    with worker(tmp_path) as started:
        assert started.process.stdin is not None
        started.process.stdin.close()
        assert started.process.wait(PATIENCE) == 0
    assert (tmp_path / "log").read_text() == ""


def test_an_asker_that_is_gone_is_no_crash(tmp_path: Path, server: LLMServer) -> None:
    """What was paid for is recorded, and there is one line about it."""
    with over_a_socket(tmp_path) as (connection, process):
        connection.ask(Open(str(tmp_path / "cache.db"), settings(server)))
        server.script = slow(1.0, SHOUT)
        connection._write(encode(Envelope("request", 9, EXAMPLE)))
        wait_until(lambda: server.requests, "the request is there")
    assert process.returncode == 1
    assert (tmp_path / "log").read_text() == "offload.worker: the process that asked is gone\n"
    with worker(tmp_path, server) as started:
        assert started.rewrite(EXAMPLE).cached


PRIVATE = b'{"v":1,"id":2,"request":"RewriteExample","body":{"text":"private words","unknown":1}}\n'
GARBAGE = {
    "no JSON": b"private words\n",
    "no message": b'{"private words": 1}\n',
    "another version": b'{"v":"private words","id":1,"request":"Ping","body":{}}\n',
    "an unknown request": b'{"v":1,"id":1,"request":"private words","body":{}}\n',
    "an unknown field": PRIVATE,
    "bytes": bytes(range(256)) + b"private words\n",
    "a torn line": b'{"v":1,"id":1,"request":"Open","body":"private words',
    "an overlong line": b'"' + b"private words " * (MAX_LINE // 10) + b'"\n',
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_on_stdin_is_one_line_that_quotes_nothing(tmp_path: Path, name: str) -> None:
    """A row could stand in it; the log is no place for that."""
    with OffloadWorker(tmp_path / "log") as started:
        assert started.process.stdin is not None
        try:
            started.process.stdin.write(GARBAGE[name])
            started.process.stdin.close()
        except BrokenPipeError:
            assert name == "an overlong line"
        assert started.process.wait(PATIENCE) == 1
    said = (tmp_path / "log").read_text()
    assert said == "offload.worker: stdin brought no line of the protocol; reinstall nslora-agent\n"


CRASHES = """
from offload import rewrite
def crash(request, redactor):
    raise ValueError(f"cannot use {request.text}")
rewrite.redact_request = crash
"""


def test_a_crash_says_where_and_not_what(tmp_path: Path) -> None:
    """An error that nobody foresaw may quote the row in its message."""
    with worker(tmp_path, first=CRASHES) as started, pytest.raises(WorkerDied) as caught:
        started.rewrite(EXAMPLE)
    assert "ended with exit code 1; its last words: offload.worker: ValueError in crash, <string> line" in str(
        caught.value
    )
    assert "Lund" not in (tmp_path / "log").read_text() + str(caught.value)


# ---- a worker that cannot begin ----


@pytest.mark.parametrize("request_", [EXAMPLE, PROMPT, Preview(EXAMPLE), Ping(), CacheStats(), ReadLog("/nowhere", 1)])
def test_nothing_is_served_before_it_is_opened(tmp_path: Path, request_: AnyRequest) -> None:
    """The error says so, and the worker can still be opened."""
    with OffloadWorker(tmp_path / "log") as started:
        with pytest.raises(StateError, match="before it was opened"):
            started.ask(request_)
        started.ask(Open(str(tmp_path / "cache.db"), settings()))


def test_a_pattern_that_is_none_is_told_at_once(tmp_path: Path) -> None:
    """Before anything is sent, and before there is a cache."""
    with OffloadWorker(tmp_path / "log") as started:
        with pytest.raises(ConfigError, match="redaction pattern") as caught:
            started.ask(Open(str(tmp_path / "cache.db"), settings(patterns=("fine", "(\n"))))
        with pytest.raises(StateError, match="before it was opened"):
            started.rewrite(EXAMPLE)
    assert one_line(caught.value)
    assert not (tmp_path / "cache.db").exists()


def not_a_database(path: Path) -> None:
    path.write_bytes(b"private words" * 1000)


def unreadable(path: Path) -> None:
    path.symlink_to(path.parent / "none" / "none")


@pytest.mark.parametrize("spoil", [Path.mkdir, not_a_database, unreadable])
def test_a_cache_that_cannot_be_used_is_told_at_once(tmp_path: Path, spoil: object) -> None:
    """In one line that names it."""
    cache = tmp_path / "cache.db"
    spoil(cache)  # type: ignore[operator]
    with OffloadWorker(tmp_path / "log") as started, pytest.raises(StateError) as caught:
        started.ask(Open(str(cache), settings()))
    assert one_line(caught.value)
    assert str(cache) in str(caught.value)


def test_an_import_of_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    """In one line that names it."""
    with worker(tmp_path) as started, pytest.raises(StateError, match="nowhere: No such file") as caught:
        started.ask(CacheImport(str(tmp_path / "nowhere")))
    assert one_line(caught.value)
