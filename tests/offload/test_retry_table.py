from __future__ import annotations

import gzip
import json
import re
import time
from dataclasses import dataclass, field
from email.utils import formatdate
from typing import Any

import llm_server as llm
import pytest
from calls import ATTEMPTS, CAP, call
from llm_server import Act, answering, completion, failing, head, in_turn, sending

from agent.contract.errors import RemoteRefused
from offload.retries import RemoteUnavailable, RequestRefused

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Row:
    """One misbehaviour that does not end, and what is expected of the client.

    Attributes:
        tries: requests that reach the server.
        error: the class that complete() raises.
        says: a part of its message.
        waits: seconds slept between the tries, with jitter at its most; None: the usual back-off.
        retry_after: what the error tells the worker.
        changes: of the endpoint's settings.
    """

    name: str
    act: Act
    tries: int
    error: type[Exception]
    says: str
    waits: list[float] | None = None
    retry_after: float | None = None
    changes: dict[str, float] = field(default_factory=dict)


def again(name: str, act: Act, says: str, **more: Any) -> Row:
    """A row of what may pass: tried as often as allowed."""
    return Row(name, act, ATTEMPTS, RemoteUnavailable, says, **more)


def once(name: str, act: Act, says: str, error: type[Exception] = RemoteRefused, **more: Any) -> Row:
    """A row of what would be the same again."""
    return Row(name, act, 1, error, says, **more)


def json_of(value: Any) -> Act:
    return answering(json.dumps(value).encode())


def asking(pause: str, status: int = 429, **headers: str) -> Act:
    return failing(status, "slow down", {"Retry-After": pause, **headers})


def year_ago(seconds: float) -> str:
    return formatdate(time.time() - 365 * 86400 + seconds, usegmt=True)


BOMB = gzip.compress(bytes(50_000_000))
"""50 kB that unpack to 50 MB; under the cap it must be as it comes."""
REFUSED: dict[type[Exception], dict[int, str]] = {
    RequestRefused: {400: "config.toml", 413: "shorter", 422: "config.toml"},
    RemoteRefused: {
        401: "check the API key", 402: "balance", 403: "check the API key", 404: "base_url and model",
        405: "", 410: "", 415: "", 418: "", 451: "",
    },
}  # fmt: skip

SHORT_READ: dict[str, Any] = {"changes": {"read_timeout": 0.1}}
SHORT_TRY: dict[str, Any] = {"changes": {"total_timeout": 0.3}}

TABLE = [
    *(again(f"{status}", failing(status), f"answers {status}: no") for status in (408, 409, 429)),
    *(again(f"{status}", failing(status), f"answers {status}: no") for status in (500, 502, 503, 504, 529, 599)),
    *(
        once(f"{status}", failing(status), f"answers {status}: no; .*{says}", error)
        for error, statuses in REFUSED.items()
        for status, says in statuses.items()
    ),
    *(once(f"{status}", failing(status), f"answers {status}, a redirect to nowhere") for status in (300, 304)),
    # the network
    again("reset before headers", llm.resetting, "reset"),
    again("closed before headers", llm.ending, "disconnected"),
    again("reset in headers", sending(b"HTTP/1.1 200 OK\r\nContent-", then=llm.resetting), "reset"),
    again("reset in body", sending(head(100) + b'{"choices"', then=llm.resetting), "reset"),
    again("closed in body", sending(head(100) + b'{"choices"', then=llm.ending), "closed connection"),
    again("no HTTP", sending(b"SSH-2.0-OpenSSH_9.6\r\n\r\n", then=llm.ending), "illegal status line"),
    again("a status that is no number", sending(b"HTTP/1.1 OK\r\n\r\n", then=llm.ending), "illegal status line"),
    again("oversized headers", answering(b"{}", 200, {"X": "x" * 200_000}), "too long"),
    again("too many headers", answering(b"{}", 200, {f"X{n}": "x" * 50 for n in range(3000)}), "too long"),
    # time
    again("silence", llm.hanging, "silent for 0.1 s", **SHORT_READ),
    again("silence in headers", sending(b"HTTP/1.1 200 OK\r\nCont", then=llm.hanging), "silent for", **SHORT_READ),
    again("silence in body", sending(head(100) + b'{"choices"', then=llm.hanging), "silent for 0.1 s", **SHORT_READ),
    again("headers drip", llm.dripping(head(0, headers={"X": "x" * 500}), 0.01), "answer within 0.3 s", **SHORT_TRY),
    again("body drips", sending(head(500), then=llm.dripping(b" " * 500, 0.01)), "answer within 0.3 s", **SHORT_TRY),
    once("a refusal's body drips", sending(head(500, 401), then=llm.dripping(b" " * 500, 0.01)), "401; ", **SHORT_TRY),
    once("a refusal's body breaks off", sending(head(500, 401), then=llm.resetting), "answers 401; check"),
    again(
        "a failure's body breaks off", sending(head(500, 503, {"Retry-After": "9"}), then=llm.ending), "503; it asks",
        retry_after=9, waits=[9.5, 10.0],
    ),
    # pauses asked for
    again("Retry-After 1", asking("1"), "a pause of 1 s", waits=[1.5, 2.0], retry_after=1),
    again("Retry-After 0", asking("0"), "a pause of 0 s", waits=[0.5, 1.0], retry_after=0),
    again("Retry-After 120", asking("120", 503), "of 120 s", waits=[120.5, 121.0], retry_after=120),
    again(
        "Retry-After with a date", asking(year_ago(100), Date=year_ago(0)), "of 100 s", waits=[100.5, 101.0],
        retry_after=100,
    ),
    again("Retry-After with a past date", asking(year_ago(-9), Date=year_ago(0)), "slow down", retry_after=0),
    again("Retry-After with garbage", asking("soon"), "slow down$"),
    again("Retry-After that is negative", asking("-5"), "slow down$"),
    again("Retry-After that is a fraction", asking("1.5"), "slow down$"),
    again("Retry-After with foreign digits", asking("\u00b2"), "slow down$"),
    again("Retry-After with an endless number", asking("9" * 400), "slow down$"),
    again("Retry-After with an impossible date", asking("Fri, 99 Feb 99999 99:99:99 +9999"), "slow down$"),
    once("Retry-After 121", asking("121"), "of 121 s", RemoteUnavailable, retry_after=121),
    once("Retry-After 600", asking("600", 503), "of 600 s", RemoteUnavailable, retry_after=600),
    # bodies
    again("empty body", answering(b""), "not JSON"),
    again("truncated JSON", answering(b'{"choices": [{"mess'), "not JSON"),
    again("204", sending(b"HTTP/1.1 204 No Content\r\n\r\n"), "type is not given"),
    again("HTML", answering(b"<html>", headers={"Content-Type": "text/html"}), "type is text/html"),
    again("an event stream", answering(b"data: {}", headers={"Content-Type": "text/event-stream"}), "event-stream"),
    again("an error with 200", json_of({"error": {"message": "overloaded"}}), "an error: overloaded"),
    again("an error in words with 200", json_of({"error": "overloaded"}), "an error: overloaded"),
    again("no choices", json_of({"id": "1"}), "no choices"),
    again("empty choices", json_of({"choices": []}), "no choices"),
    *(
        again(f"choices are {wrong}", json_of({"choices": wrong}), "no choices")
        for wrong in (None, "text", 1, {"0": {}}, [None], [[]], ["text"], [{"message": None}], [{"message": "text"}])
    ),
    *(
        again(f"content is {wrong}", json_of({"choices": [{"message": {"content": wrong}}]}), "no choices")
        for wrong in (None, 1, ["text"], {"text": "text"})
    ),
    *(again(f"JSON is {wrong}", json_of(wrong), "no choices") for wrong in (None, [], "text", 1)),
    again("half a surrogate pair", json_of(completion("\ud800")), "surrogate"),
    again("NUL", json_of(completion("a\0b")), "NUL"),
    again("half a surrogate pair as model", json_of(completion("a", model="\udfff")), "surrogate"),
    again("not UTF-8", answering(b'{"choices": "\xff\xfe"}'), "not UTF-8"),
    again("UTF-8 of half a surrogate pair", answering(b'{"error": "\xed\xa0\x80"}'), "an error"),
    again("nested 9,000 deep", answering(b"[" * 9_000 + b"]" * 9_000), "too deeply"),
    again("nested objects", answering(b'{"choices":' * 1_500 + b"1" + b"}" * 1_500), "too deeply"),
    again("a number of 9,000 digits", answering(b"9" * 9_000), "not JSON"),
    again("gzip bomb", answering(BOMB[:CAP], headers={"Content-Encoding": "gzip"}), "compressed .gzip"),
    once("oversized", answering(b" " * (CAP + 1)), f"more than {CAP} bytes", RemoteUnavailable),
    once("oversized and chunked", sending(
        head(0, headers={"Transfer-Encoding": "chunked"}).replace(b"Content-Length: 0\r\n", b"")
        + b"8000\r\n" + b" " * 0x8000 + b"\r\n", then=llm.hanging), f"more than {CAP} bytes", RemoteUnavailable),
]  # fmt: skip


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_the_retry_table(row: Row) -> None:
    """Each misbehaviour that does not end: how often it is tried, how long waited, and what it is called then."""
    result = call(in_turn(row.act), **row.changes)
    assert type(result.outcome) is row.error
    message = str(result.outcome)
    assert re.search(row.says, message)
    assert message.startswith("the remote LLM at 127.0.0.1 ")
    assert "\n" not in message
    assert result.requests == row.tries
    usual = [0.5, 1.0][: row.tries - 1]
    assert result.waits == (usual if row.waits is None else row.waits)
    assert getattr(result.outcome, "retry_after", None) == row.retry_after
