"""Whatever a server sends, the client has a name for it: nothing it may send ends the worker."""

from __future__ import annotations

import json
from collections.abc import Iterator

import llm_server as llm
import pytest
from calls import HI, KEY, endpoint
from hypothesis import given
from hypothesis import strategies as st
from llm_server import Act, LLMServer, answering, in_turn, saying, sending

from agent.contract.errors import RemoteRefused
from offload.client import Client, Reply
from offload.retries import RemoteUnavailable


@pytest.fixture(scope="module")
def any_server() -> Iterator[tuple[LLMServer, Client]]:
    with LLMServer(in_turn(saying("a"))) as server, Client(endpoint(server.url, attempts=1), KEY) as client:
        yield server, client


def outcome(pair: tuple[LLMServer, Client], act: Act) -> Reply | Exception:
    server, client = pair
    server.script = in_turn(act)
    try:
        return client.complete(HI, {})
    except (RemoteUnavailable, RemoteRefused) as fault:
        return fault


PIECES = st.sampled_from(
    [b"{", b"}", b"[", b"]", b'"', b":", b",", b"choices", b"message", b"content", b"error", b"null"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner) | st.dictionaries(
        st.sampled_from(["choices", "message", "content", "error", "usage", "prompt_tokens", "model", "detail"]), inner
    ),
)  # fmt: skip
BODIES = st.binary() | st.lists(PIECES).map(b"".join) | VALUES.map(lambda value: json.dumps(value).encode())


@given(body=BODIES, status=st.sampled_from([200, 200, 201, 400, 500]))
def test_any_body_is_a_reply_or_a_failure_with_a_name(
    any_server: tuple[LLMServer, Client], body: bytes, status: int
) -> None:
    """Nothing that a server may send ends the worker."""
    result = outcome(any_server, answering(body, status))
    if isinstance(result, Exception):
        assert str(result).isprintable()
    else:
        assert status < 300
        assert result.text.encode().decode() == result.text  # half a character could not be written down


LINES = st.sampled_from(
    [b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 302 Go\r\n", b"HTTP/1.1 100 Continue\r\n", b"HTTP/1.1 101 Up\r\n",
     b"HTTP/1.0 429 Slow\r\n", b"HTTP/1.1 999 \xff\r\n", b"Content-Length: 5\r\n", b"Content-Length: -1\r\n",
     b"Transfer-Encoding: chunked\r\n", b"Content-Type: application/json; charset=\xff\r\n", b"Set-Cookie: \xff=;;\r\n",
     b"Location: http://[\r\n", b"Location: //\xff\r\n", b"Retry-After: \xff\r\n", b"Content-Encoding: gzip\r\n",
     b"\r\n", b"5\r\nhello\r\n", b"0\r\n\r\n", b'{"error":1}']
)  # fmt: skip


@given(start=st.sampled_from([b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 307 Go\r\n"]), rest=st.lists(LINES | st.binary()))
def test_any_bytes_are_a_failure_with_a_name(
    any_server: tuple[LLMServer, Client], start: bytes, rest: list[bytes]
) -> None:
    """The same for what is no HTTP, or hardly."""
    result = outcome(any_server, sending(start + b"".join(rest), then=llm.ending))
    assert isinstance(result, RemoteUnavailable | RemoteRefused)
    assert str(result).isprintable()
