from __future__ import annotations

import json
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llm_server as llm
import pytest
from hypothesis import given
from hypothesis import strategies as st
from llm_server import Act, LLMServer, Request, answering, failing, head, in_turn, saying, sending
from processes import PATIENCE
from remotes import SETTINGS, Clock, ask, asked, cache_of, finished, opened, outcomes, remote_at, rows, said, start

from agent.contract.errors import AgentError, ConfigError, RemoteRefused, StorageError
from offload import remote as remotes
from offload.breaker import FAILURES, FIRST_PAUSE
from offload.budget import DayBudgetSpent
from offload.remote import Cost, outcome
from offload.retries import LONGEST_RETRY_AFTER, LONGEST_WAIT, RemoteUnavailable

WORD = "xyzzy"
"""A word of the prompt, which the servers here repeat wherever they can."""


def audit(path: Path) -> list[dict[str, Any]]:
    return rows(path, "SELECT * FROM calls ORDER BY id")


# ---- one process ----


def test_what_was_asked_once_is_not_asked_again(tmp_path: Path) -> None:
    """Nor after a restart; both are in the audit, and only one of them cost anything."""
    with LLMServer(in_turn(saying("answer"))) as server:
        for _ in range(2):
            with remote_at(tmp_path, server.url, price_in=1.0, price_out=2.0) as remote:
                cost = Cost()
                assert ask(remote, "q", cost) == "answer"
        assert len(server.requests) == 1
    assert cost == Cost()
    assert cost.is_cached
    first, second = audit(tmp_path)
    assert (first["outcome"], first["requests"], first["tokens"], first["money"]) == ("ok", 1, 10, pytest.approx(13e-6))
    assert (first["prompt_tokens"], first["completion_tokens"]) == (7, 3)
    assert 0 < first["bytes_out"] < 1000
    assert 0 < first["bytes_in"] < 1000
    assert 0 < first["seconds"] < 20
    assert (second["outcome"], second["requests"], second["tokens"], second["money"]) == ("cached", 0, 0, 0.0)
    assert first["request"] == second["request"] == asked("q").replay


def test_every_try_has_a_row_and_a_cost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The failed ones count as requests; what broke off may have been billed."""
    monkeypatch.setattr("offload.retries.FIRST_WAIT", 0.01)
    broken = sending(head(500) + b'{"choices"', then=llm.ending)
    with (
        LLMServer(in_turn(failing(503), broken, saying("a"))) as server,
        remote_at(tmp_path, server.url, attempts=3, price_in=1.0) as remote,
    ):
        cost = Cost()
        ask(remote, "q", cost)
        assert remote.status().failures == 0
    assert [(row["outcome"], row["tokens"]) for row in audit(tmp_path)] == [
        ("failed 503", 0), ("connection", 1 + 64 + 16), ("ok", 10)
    ]  # fmt: skip
    assert (cost.calls, cost.prompt_tokens, cost.completion_tokens) == (3, 7, 3)
    assert cost.money == pytest.approx((1 + 64 + 7) / 1e6)


def test_a_ping_is_outside_of_cache_and_breaker_but_in_the_audit(tmp_path: Path) -> None:
    """It asks each time, also while the breaker is open, and an answer closes it."""
    with LLMServer(in_turn(saying("ready"))) as server, remote_at(tmp_path, server.url, price_in=1.0) as remote:
        for _ in range(FAILURES):
            remote.breaker.record_failure("503")
        for _ in range(2):
            reply, money = remote.ping(said("ready?"))
            assert (reply.text, money) == ("ready", pytest.approx(7e-6))
        assert remote.status().breaker == "closed"
        assert len(server.requests) == 2
    assert outcomes(tmp_path) == ["ok", "ok"]
    assert rows(tmp_path, "SELECT * FROM leases") == rows(tmp_path, "SELECT * FROM answers") == []


def test_without_an_endpoint_nothing_is_sent(tmp_path: Path) -> None:
    """The error says how to set one."""
    with remote_at(tmp_path) as remote, pytest.raises(ConfigError, match="offload set --base-url"):
        ask(remote, "q")


# ---- breaker ----


def test_five_failed_calls_and_the_remote_is_left_alone(tmp_path: Path) -> None:
    """No request goes out until the pause is over; the first answer closes the breaker."""
    clock, acts = Clock(), [failing(503)] * FAILURES
    with LLMServer(in_turn(*acts, saying("a"))) as server, remote_at(tmp_path, server.url, clock=clock) as remote:
        for _ in range(FAILURES):
            with pytest.raises(RemoteUnavailable, match="answers 503"):
                ask(remote, "q")
        with pytest.raises(RemoteUnavailable, match="left alone after 5 failures") as caught:
            ask(remote, "q")
        assert caught.value.retry_after == FIRST_PAUSE
        assert len(server.requests) == FAILURES
        standing = remote.status()
        assert (standing.breaker, standing.retry_at) == ("open", clock.now + FIRST_PAUSE)
        assert standing.reason == "the remote LLM at 127.0.0.1 answers 503"
        clock.now += FIRST_PAUSE
        assert remote.status().breaker == "half-open"
        assert ask(remote, "q") == "a"
        assert remote.status().breaker == "closed"
    assert rows(tmp_path, "SELECT * FROM leases") == []


def test_a_refusal_is_an_answer(tmp_path: Path) -> None:
    """A wrong key is no reason to wait."""
    with LLMServer(in_turn(*[failing(503)] * 4, failing(401))) as server, remote_at(tmp_path, server.url) as remote:
        for _ in range(4):
            with pytest.raises(RemoteUnavailable):
                ask(remote, "q")
        with pytest.raises(RemoteRefused):
            ask(remote, "q")
        assert remote.status().failures == 0


@pytest.mark.parametrize(
    ("changes", "error"), [({"requests_per_day": 0}, AgentError), ({"api_key_file": "/nowhere"}, ConfigError)]
)
def test_a_trial_that_fails_on_our_side_is_given_back(
    tmp_path: Path, changes: dict[str, Any], error: type[Exception]
) -> None:
    """A spent budget or a key that cannot be read must not keep the next trial waiting."""
    clock = Clock()
    with LLMServer(in_turn(saying("a"))) as server:
        with remote_at(tmp_path, server.url, clock=clock, **changes) as remote:
            for _ in range(FAILURES):
                remote.breaker.record_failure("503")
            clock.now += FIRST_PAUSE
            with pytest.raises(error):
                ask(remote, "q")
        with remote_at(tmp_path, server.url, clock=clock) as remote:
            assert ask(remote, "q") == "a"


def test_a_spent_day_says_when_the_next_one_begins(tmp_path: Path) -> None:
    """So that a job can be put aside until then."""
    clock = Clock()
    with (
        LLMServer(in_turn(saying("a"))) as server,
        remote_at(tmp_path, server.url, clock=clock, requests_per_day=1) as remote,
    ):
        ask(remote, "q")
        assert remote.status().retry_at is None
        with pytest.raises(DayBudgetSpent):
            ask(remote, "another")
        standing = remote.status()
        assert (standing.breaker, standing.requests_today) == ("closed", 1)
        assert standing.retry_at == remote.budget.next_day() > clock.now
        clock.now = standing.retry_at
        assert ask(remote, "another") == "a"


# ---- privacy ----


def status_line(connection: socket.socket) -> None:
    connection.sendall(f"HTTP/1.1 503 {WORD}\r\n{WORD}: {WORD}\r\nContent-Length: 0\r\n\r\n".encode())


def redirect(where: str) -> Act:
    return answering(b"", 302, {"Location": where})


SHORT = {"read_timeout": 0.2}
OUTCOMES: dict[str, tuple[Act, dict[str, Any], str]] = {
    "an answer": (saying(WORD, model=WORD), {}, "ok"),
    "503 with words": (failing(503, WORD), {}, "failed 503"),
    "503 with a pause": (failing(503, WORD, {"Retry-After": "500"}), {}, "failed 503"),
    "429": (failing(429, WORD), {}, "failed 429"),
    "a status line with words": (status_line, {}, "failed 503"),
    "401": (failing(401, f"{WORD} answers 503"), {}, "refused 401"),
    "400": (failing(400, f"your prompt {WORD}"), {}, "refused 400"),
    "a redirect": (redirect(f"http://{WORD}.example/{WORD}"), {}, "refused 302"),
    "silence": (llm.hanging, SHORT, "timeout"),
    "silence in the body": (sending(head(500) + WORD.encode(), then=llm.hanging), SHORT, "timeout"),
    "a drip": (sending(head(500), then=llm.dripping(WORD.encode() * 90, 0.02)), {"total_timeout": 0.3}, "timeout"),
    "a body that breaks off": (sending(head(500) + WORD.encode(), then=llm.ending), {}, "connection"),
    "a reset": (llm.resetting, {}, "connection"),
    "a header that is none": (sending(f"HTTP/1.1 200 OK\r\n {WORD}\r\n{WORD}\r\n\r\n".encode()), {}, "connection"),
    "no HTTP": (sending(f"[Errno 5] {WORD}\r\n\r\n".encode(), then=llm.ending), {}, "connection"),
    "no JSON": (answering(WORD.encode()), {}, "unreadable"),
    "an error as answer": (answering(json.dumps({"error": {"message": WORD}}).encode()), {}, "unreadable"),
    "a page": (answering(WORD.encode(), headers={"Content-Type": f"text/{WORD}"}), {}, "unreadable"),
    "too much": (answering(WORD.encode() * 9999), {"max_response_kb": 1}, "oversized"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("act", "changes", "expected"), OUTCOMES.values(), ids=OUTCOMES)
def test_no_text_is_in_the_audit_or_the_breaker(
    tmp_path: Path, act: Act, changes: dict[str, Any], expected: str
) -> None:
    """Whatever a server says about a request, in whatever place: outcomes are a few words of ours and a status."""
    with LLMServer(in_turn(act)) as server, remote_at(tmp_path, server.url, **changes) as remote:
        try:
            ask(remote, f"prompt {WORD}")
        except (RemoteUnavailable, RemoteRefused):
            assert expected != "ok"
        reason = remote.status().reason
    assert outcomes(tmp_path) == [expected]
    if not expected.startswith(("ok", "refused")):
        assert reason.startswith("the remote LLM at 127.0.0.1 ")
    found = rows(tmp_path, "SELECT * FROM calls") + rows(tmp_path, "SELECT * FROM breaker")
    assert WORD not in json.dumps(found)
    assert "example-1" not in json.dumps(found)


def test_an_endpoint_that_is_not_there_has_the_systems_words_as_reason(tmp_path: Path) -> None:
    """They are no server's, and say what to look at."""
    with remote_at(tmp_path, "http://127.0.0.1:1/v1") as remote, pytest.raises(RemoteUnavailable):
        ask(remote, "q")
    with remote_at(tmp_path) as remote:
        reason = "the remote LLM at 127.0.0.1 cannot be talked to: [Errno 111] Connection refused"
        assert remote.status().reason == reason
    assert [(row["outcome"], row["tokens"]) for row in audit(tmp_path)] == [("connection", 0)]


@given(st.text())
def test_an_error_that_is_not_known_has_one_word(text: str) -> None:
    """Nothing of its message."""
    assert outcome(RemoteUnavailable(text)) == "failed"
    assert outcome(RemoteRefused(text)) == "refused"
    assert outcome(RemoteUnavailable(f"the remote LLM at host answers 503: {text}")) == "failed 503"


# ---- several processes ----

SAME = """
import httpx
starts = time.time() + 0.5
for number in range(8):
    if os.fork() == 0:
        remote = new_remote()
        time.sleep(max(0.0, starts - time.time()))
        os.write(1, f"{ask(remote, 'same')}\\n".encode())
        os._exit(0)
for _ in range(8):
    assert os.wait()[1] == 0
"""


def slowly(act: Act, seconds: float) -> Callable[[Request], Act]:
    def script(_: Request) -> Act:
        time.sleep(seconds)
        return act

    return script


@pytest.mark.process
def test_eight_that_ask_the_same_at_once_are_one_request(fast_disk: Path) -> None:
    """The others wait for the answer of the first."""
    with LLMServer(slowly(saying("one"), 0.5)) as server:
        assert finished(start(fast_disk, SAME, server.url)) == ["one"] * 8
        assert len(server.requests) == 1
    assert sorted(outcomes(fast_disk)) == ["cached"] * 7 + ["ok"]
    assert rows(fast_disk, "SELECT * FROM leases") == []


def test_an_answer_that_came_just_before_the_lease_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its holder may have recorded it and gone between a look at the cache and the lease."""
    with LLMServer(in_turn(saying("asked again"))) as server, remote_at(tmp_path, server.url) as remote:
        real = remote.cache.lease

        def late(*arguments: Any) -> bool:
            remote.cache.add(remote.question(said("q")), "recorded", 1, 1)
            return real(*arguments)

        monkeypatch.setattr(remote.cache, "lease", late)
        assert ask(remote, "q") == "recorded"
        assert server.requests == []


@pytest.mark.process
def test_when_the_first_fails_the_next_one_asks(fast_disk: Path) -> None:
    """Waiting for another's request must not hand on its failure."""
    acts = iter([failing(400), *[saying("one")] * 8])
    script = SAME.replace("ask(remote, 'same')", "one(remote)").replace(
        "starts =",
        "def one(remote):\n    try:\n        return ask(remote, 'same')\n"
        "    except AgentError as fault:\n        return 'refused'\n\nstarts =",
    )
    lock = threading.Lock()

    def next_act(_: Request) -> Act:
        time.sleep(0.2)
        with lock:
            return next(acts)

    with LLMServer(next_act) as server:
        assert sorted(finished(start(fast_disk, script, server.url))) == ["one"] * 7 + ["refused"]
        assert len(server.requests) == 2


HOLDING = "print(ask(new_remote(), 'same'))"


@pytest.mark.process
def test_when_the_holder_of_the_lease_is_killed_one_other_asks_at_once(fast_disk: Path) -> None:
    """One of those who wait, not all; nobody waits for the lease of a process that is gone."""
    times = []
    silent = threading.Event()

    def script(_: Request) -> Act:
        times.append(time.monotonic())
        if len(times) == 1:
            silent.set()
            return llm.hanging
        return saying("one")

    with LLMServer(script) as server:
        holder = start(fast_disk, HOLDING, server.url, total_timeout=10 * PATIENCE)
        assert silent.wait(PATIENCE)
        holder.send_signal(signal.SIGKILL)
        holder.communicate()
        assert finished(start(fast_disk, "import httpx\n" + SAME, server.url)) == ["one"] * 8
    assert len(times) == 2
    assert sorted(outcomes(fast_disk)) == ["cached"] * 7 + ["ok", "reserved"]


def test_a_lease_outlives_the_longest_wait_between_tries() -> None:
    """It is renewed before each try, but not while a server's Retry-After is slept through."""
    assert remotes.LEASE_MARGIN > LONGEST_RETRY_AFTER + LONGEST_WAIT


@pytest.mark.process
def test_a_second_try_renews_the_lease(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call of several tries holds on to its question and, if it is one, to its trial."""
    monkeypatch.setattr("offload.retries.FIRST_WAIT", 0.01)
    clock, expires, trials = Clock(), [], []

    def script(_: Request) -> Act:
        expires.append(rows(tmp_path, "SELECT expires - taken AS seconds, taken FROM leases")[0])
        trials.extend(rows(tmp_path, "SELECT since, until, trial FROM breaker"))
        clock.now += 100
        return failing(503) if len(expires) == 1 else saying("a")

    with LLMServer(script) as server, remote_at(tmp_path, server.url, clock=clock, attempts=2) as remote:
        for _ in range(FAILURES):
            remote.breaker.record_failure("503")
        clock.now += FIRST_PAUSE
        ask(remote, "q")
    held = SETTINGS.total_timeout + remotes.LEASE_MARGIN
    assert [(row["trial"], row["until"] - row["since"]) for row in trials] == [(1, held)] * 2
    assert trials[1]["since"] == trials[0]["since"] + 100
    assert expires[1]["taken"] == expires[0]["taken"] + 100
    assert expires[1]["seconds"] == expires[0]["seconds"] == held


# ---- when the process or the disk gives up in between ----


def test_what_the_audit_calls_answered_is_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that dies between the two leaves neither: the answer may be lost, but the audit does not hide it."""

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with LLMServer(in_turn(saying("a"))) as server, remote_at(tmp_path, server.url) as remote:
        monkeypatch.setattr(remote.cache, "add", die)
        with pytest.raises(KeyboardInterrupt):
            ask(remote, "q")
    assert [(row["outcome"], row["requests"], row["tokens"]) for row in audit(tmp_path)] == [("reserved", 1, 81)]


FULL = """
import resource
remote = new_remote()
print(ask(remote, "first"))
room = path.stat().st_size + 8192
resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
errors = []
for text in ("second", "second"):
    try:
        ask(remote, text)
    except AgentError as fault:
        errors.append([type(fault).__name__, str(fault)])
print(json.dumps(errors))
print(remote.look_up(Subject(1, "", ()), [{"role": "user", "content": "first"}]).answer)
"""


@pytest.mark.process
def test_an_answer_that_the_disk_cannot_take_is_paid_for_and_said(tmp_path: Path) -> None:
    """StorageError in one line; the audit keeps the full reservation, what was recorded before stays readable."""
    with LLMServer(in_turn(saying("small"), saying("x" * 300_000))) as server:
        small, errors, again = finished(start(tmp_path, FULL, server.url))
        sent = len(server.requests)
    assert small == again == "small"
    assert sent == 3
    for name, message in json.loads(errors):
        assert name == StorageError.__name__
        assert message.startswith("cache.db cannot be written (")
        assert message.endswith("); free some space or check the disk")
        assert "\n" not in message
    found = [(row["outcome"], row["requests"], row["tokens"]) for row in audit(tmp_path)]
    assert found == [("ok", 1, 10), ("reserved", 1, 86), ("reserved", 1, 86), ("cached", 0, 0)]
    with opened(tmp_path) as database:
        assert cache_of(database).figures()["answers"] == 1
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.process
def test_a_disk_that_is_full_from_the_start_is_said(tmp_path: Path) -> None:
    """In one line, at the first request of the worker."""
    script = """
import resource
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    new_remote()
except AgentError as fault:
    print(type(fault).__name__, fault)
"""
    (line,) = finished(start(tmp_path, script))
    assert line.startswith("StorageError ")
    assert "free some space or check the disk" in line
