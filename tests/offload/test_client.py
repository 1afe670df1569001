from __future__ import annotations

import json
import logging
import socket
import ssl
import subprocess
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import llm_server as llm
import pytest
from calls import ATTEMPTS, CAP, HI, KEY, Call, call, client_of, endpoint
from llm_server import Act, LLMServer, answering, completion, failing, in_turn, saying, sending
from needs import needs
from processes import PATIENCE

from agent.contract.errors import BudgetSpent, ConfigError, RemoteRefused
from agent.contract.errors import RemoteUnavailable as Unavailable
from agent.contract.protocol import Envelope, decode, encode
from offload.client import Client, Reply
from offload.endpoint import completions_url
from offload.retries import RemoteUnavailable

# ---- what goes out and comes back ----


def test_a_completion_comes_back_with_what_it_cost() -> None:
    """Text, reason, the server's name of the model, tokens and one try; bytes are counted with their headers."""
    with LLMServer(in_turn(saying("grüß dich"))) as server, client_of(server, []) as client:
        reply = client.complete(HI, {"temperature": 0.5, "max_tokens": 9})
        (request,) = server.requests
    assert (reply.text, reply.finish_reason, reply.model) == ("grüß dich", "stop", "served-model")
    assert (reply.prompt_tokens, reply.completion_tokens, reply.tries) == (7, 3, 1)
    assert request.json == {"temperature": 0.5, "max_tokens": 9, "model": "asked-model", "messages": HI}
    assert len(request.body) < reply.bytes_out < len(request.body) + 400
    body = len(json.dumps(completion("grüß dich")))
    assert body < reply.bytes_in < body + 200
    assert 0 < reply.seconds < PATIENCE


def test_a_request_carries_the_key_and_nothing_that_the_environment_adds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exactly these headers; neither a proxy of the environment nor a ~/.netrc plays a part."""
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login somebody password else\n")
    (tmp_path / ".netrc").chmod(0o600)
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    with LLMServer(in_turn(saying("proxied"))) as proxy, LLMServer(in_turn(saying("direct"))) as server:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        with Client(endpoint(server.url), KEY) as client, Client(endpoint(server.url)) as keyless:
            assert client.complete(HI, {}).text == keyless.complete(HI, {}).text == "direct"
        assert proxy.requests == []
        first, second = (request.headers for request in server.requests)
    assert first == {
        "host": f"127.0.0.1:{server.port}",
        "accept": "application/json",
        "accept-encoding": "identity",
        "authorization": f"Bearer {KEY}",
        "connection": "keep-alive",
        "content-length": first["content-length"],
        "content-type": "application/json",
        "user-agent": "nslora-agent",
    }
    assert second == {name: value for name, value in first.items() if name != "authorization"}


def test_a_cookie_is_not_sent_back() -> None:
    """Nothing that a server sets is remembered."""
    acts = in_turn(answering(json.dumps(completion("a")).encode(), headers={"Set-Cookie": "id=1"}))
    with LLMServer(acts) as server, client_of(server, []) as client:
        client.complete(HI, {})
        client.complete(HI, {})
    assert [request.headers.get("cookie") for request in server.requests] == [None, None]


def test_one_connection_serves_several_calls() -> None:
    """A connection, and with it TLS, is set up once, also after an error."""
    ports: set[int] = set()

    def noting(act: Act) -> Act:
        return lambda connection: (ports.add(connection.getpeername()[1]), act(connection))[1]

    with LLMServer(in_turn(noting(failing(503)), noting(saying("a")))) as server, client_of(server, []) as client:
        client.complete(HI, {})
        client.complete(HI, {})
    assert (len(server.requests), len(ports)) == (3, 1)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"usage": None}, (None, None)),
        ({"usage": {"prompt_tokens": 5}}, (5, None)),
        ({"usage": {"prompt_tokens": "5", "completion_tokens": True}}, (None, None)),
        ({"usage": {"prompt_tokens": -1, "completion_tokens": 10**30}}, (None, None)),
        ({"usage": [1]}, (None, None)),
    ],
)
def test_counts_that_are_missing_or_senseless_are_none(changes: dict[str, Any], expected: tuple[Any, Any]) -> None:
    """Many servers count nothing; the answer is good without."""
    reply = call(in_turn(saying("a", **changes))).outcome
    assert isinstance(reply, Reply)
    assert (reply.prompt_tokens, reply.completion_tokens) == expected


def test_a_bare_answer_is_enough() -> None:
    """Only choices[0].message.content is needed."""
    bare = {"choices": [{"message": {"content": ""}}], "error": None}
    reply = call(in_turn(answering(json.dumps(bare).encode()))).outcome
    assert isinstance(reply, Reply)
    assert (reply.text, reply.finish_reason, reply.model) == ("", "", "")


# ---- tries ----


def test_a_call_survives_what_passes() -> None:
    """Failed tries count: their number, their bytes and the waits between them, which rise."""
    first = call(in_turn(saying("a")), rng=0.5)
    result = call(in_turn(failing(503), llm.resetting, saying("a")), rng=0.5)
    assert isinstance(result.outcome, Reply)
    assert isinstance(first.outcome, Reply)
    assert (result.outcome.text, result.outcome.tries, result.waits) == ("a", 3, [0.25, 0.5])
    assert result.outcome.bytes_out == 3 * first.outcome.bytes_out
    assert result.outcome.bytes_in > first.outcome.bytes_in


def test_each_try_is_announced_with_why_the_one_before_failed() -> None:
    """So that requests can be counted before they are sent, and a person told why it takes so long."""
    heard: list[tuple[int, str]] = []
    with LLMServer(in_turn(failing(503), saying("a"))) as server:
        said = endpoint(server.url)
        with Client(said, sleep=lambda _: None, on_try=lambda n, why: heard.append((n, str(why)))) as client:
            client.complete(HI, {})
    assert heard == [(1, "None"), (2, "the remote LLM at 127.0.0.1 answers 503: no")]


def test_what_the_announcement_raises_ends_the_call() -> None:
    """A cap on requests holds for tries too."""

    def cap(number: int, _: RemoteUnavailable | None) -> None:
        if number > 1:
            raise BudgetSpent("enough")

    with LLMServer(in_turn(failing(503))) as server:
        with (
            Client(endpoint(server.url), sleep=lambda _: None, on_try=cap) as client,
            pytest.raises(BudgetSpent, match="enough"),
        ):
            client.complete(HI, {})
        assert len(server.requests) == 1


def refused(url: str, **changes: Any) -> tuple[str, list[float]]:
    waits: list[float] = []
    with (
        Client(endpoint(url, **changes), KEY, sleep=waits.append, rng=lambda: 1.0) as client,
        pytest.raises(RemoteUnavailable) as caught,
    ):
        client.complete(HI, {})
    return str(caught.value), waits


@pytest.fixture
def deaf() -> Iterator[int]:
    """The port of a socket that the kernel accepts connections for and nobody reads from."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


def test_a_refused_connection_is_tried_again() -> None:
    """Nobody listens yet: the server may be about to start."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    message, waits = refused(f"http://127.0.0.1:{port}/v1")
    assert "Connection refused" in message
    assert waits == [0.5, 1.0]


@pytest.mark.parametrize(
    ("scheme", "says"), [("http", "was silent for 0.1 s"), ("https", "took no connection within 0.1 s")]
)
def test_a_server_that_accepts_and_never_reads_is_given_up(deaf: int, scheme: str, says: str) -> None:
    """The handshake of TLS belongs to the connection."""
    message, waits = refused(f"{scheme}://127.0.0.1:{deaf}/v1", read_timeout=0.1, connect_timeout=0.1)
    assert says in message
    assert len(waits) == ATTEMPTS - 1


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_not_followed(status: int) -> None:
    """The host it names is shown, and asked nothing."""
    with LLMServer(in_turn(saying("stolen"))) as target:
        result = call(in_turn(failing(status, headers={"Location": target.url.replace("127.0.0.1", "localhost")})))
        assert target.requests == []
    assert isinstance(result.outcome, RemoteRefused)
    assert f"answers {status}, a redirect to localhost; set base_url" in str(result.outcome)
    assert result.requests == 1


def test_an_answer_may_fill_the_cap() -> None:
    """The cap is a length that is still taken."""
    body = json.dumps(completion("a")).encode()
    assert isinstance(call(in_turn(answering(body.ljust(CAP)))).outcome, Reply)


def test_a_failure_crosses_to_the_other_process() -> None:
    """As the class that the exit codes know, with its message."""
    fault = call(in_turn(failing(503)), attempts=1).outcome
    assert isinstance(fault, RemoteUnavailable)
    arrived = decode(encode(Envelope("error", 1, fault))).message
    assert (type(arrived), str(arrived)) == (Unavailable, str(fault))


# ---- what is shown ----


@pytest.mark.parametrize(
    "act",
    [
        failing(401, f"no such key {KEY}, {KEY.lower()}, {KEY.upper()}"),
        failing(503, f"no such key {KEY}"),
        failing(302, headers={"Location": f"https://{KEY}.example.com/"}),
        failing(400, "x" * 195 + KEY),
        answering(f"no such key {KEY}".encode(), 403, {"Content-Type": "text/plain"}),
        answering(b"{}", headers={"Content-Type": KEY}),
        answering(b"{}", headers={"Content-Encoding": KEY}),
        answering(json.dumps({"error": KEY}).encode()),
        sending(f"{KEY}\r\n\r\n".encode(), then=llm.ending),
        sending(f"HTTP/1.1 200 OK\r\nContent-Length: {KEY}\r\n\r\n".encode(), then=llm.ending),
    ],
)
def test_the_key_is_not_shown(act: Act, caplog: pytest.LogCaptureFixture) -> None:
    """Also where the server repeats it: not in an error, not in a log, no recognisable part of it."""
    caplog.set_level(logging.DEBUG)
    result = call(in_turn(act))
    assert isinstance(result.outcome, Exception)
    assert KEY[:8].lower() not in "".join(traceback.format_exception(result.outcome)).lower()
    assert caplog.text == ""


def test_neither_the_client_nor_its_endpoint_shows_the_key() -> None:
    """In a traceback with values, say."""
    with Client(endpoint("https://api.example.com/v1"), KEY) as client:
        assert KEY not in repr(client) + repr(vars(client)["_endpoint"]) + repr(vars(client)["_http"].headers)


def test_a_servers_words_are_cut_and_cannot_steer_a_terminal() -> None:
    """One line of at most 200 characters of them, without escapes or changes of writing direction."""
    message = str(call(in_turn(failing(400, "a\x1b[2J\n\r\tb\u202ec\x9bd\ud800" + "e" * 999))).outcome)
    assert message.isprintable()
    assert "400: a [2J b c d eee" in message
    said = message.removeprefix("the remote LLM at 127.0.0.1 answers 400: ").rpartition(";")[0]
    assert len(said) == 200


@pytest.mark.parametrize(
    "value", [{"error": "why"}, {"error": {"message": "why"}}, {"message": "why"}, {"detail": "why"}]
)
def test_a_refusal_gives_the_servers_reason(value: Any) -> None:
    """In any of the forms in use."""
    assert " answers 400: why; " in str(call(in_turn(answering(json.dumps(value).encode(), 400))).outcome)


# ---- where to ----


@pytest.mark.parametrize(
    ("base", "url"),
    [
        ("https://api.example.com/v1", "https://api.example.com/v1/chat/completions"),
        ("https://api.example.com/v1/", "https://api.example.com/v1/chat/completions"),
        ("https://api.example.com", "https://api.example.com/chat/completions"),
        ("https://api.example.com:8443/a%20b/v1", "https://api.example.com:8443/a%20b/v1/chat/completions"),
        *((f"http://{host}/v1", f"http://{host}/v1/chat/completions") for host in
          ("localhost:8000", "127.0.0.1:8000", "127.9.9.9", "[::1]:8000")),
    ],
)  # fmt: skip
def test_text_goes_encrypted_or_stays_on_the_machine(base: str, url: str) -> None:
    """HTTPS anywhere, HTTP to the loopback addresses."""
    assert str(completions_url(endpoint(base))) == url


@pytest.mark.parametrize(
    "base",
    ["http://api.example.com/v1", "http://10.0.0.5:8000/v1", "http://0.0.0.0/v1", "http://127.0.0.1.example.com/v1",
     "http://localhost.example.com/v1", "http://[::2]/v1"],
)  # fmt: skip
def test_text_leaves_the_machine_unencrypted_only_where_allowed(base: str) -> None:
    """The message names the two ways out."""
    with pytest.raises(ConfigError, match=r"use https or set allow_http = true"):
        Client(endpoint(base))
    assert str(completions_url(endpoint(base, allow_http=True))).startswith(base)


@pytest.mark.parametrize(
    "base",
    ["", "api.example.com/v1", "localhost:8000/v1", "ftp://api.example.com", "https://", "https:///v1", "https://[::1",
     "https://a:99999/v1", "https://a..b/v1", "https://.a/v1", f"https://{'a' * 64}.com/v1", "https://a b/v1",
     "https://a/v1\n", "https://\u2603.\ud800/", "https://user:hunter2@a/v1", "https://hunter2@a/v1",
     "ftp://user:hunter2@a/v1", "user:hunter2@a/v1", "https://user:hun/ter2@a/v1", "https://a/v1?key=hunter2",
     "https://a/v1#hunter2"],
)  # fmt: skip
def test_a_malformed_url_is_refused_without_being_shown(base: str) -> None:
    """Where a URL is wrong a password may be in it."""
    with pytest.raises(ConfigError, match="base_url must look like") as caught:
        Client(endpoint(base))
    assert "ter2" not in str(caught.value)


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A certificate for 127.0.0.1 that is its own authority, with its key."""
    pem = tmp_path / "server.pem"
    subprocess.run(
        [needs("openssl", "openssl"), "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-keyout", pem, "-out", tmp_path / "crt", "-days", "2", "-subj", "/CN=test",
         "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    pem.write_bytes(pem.read_bytes() + (tmp_path / "crt").read_bytes())
    return pem


def tls_call(certificate: Path) -> Call:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    waits: list[float] = []
    with LLMServer(in_turn(saying("a")), tls=context) as server, client_of(server, waits) as client:
        try:
            outcome: Reply | Exception = client.complete(HI, {})
        except RemoteUnavailable as fault:
            outcome = fault
        return Call(outcome, waits, len(server.requests))


@pytest.mark.process
def test_a_server_with_an_unknown_certificate_is_told_nothing(certificate: Path) -> None:
    """Not even the request; tried again, because a box's clock may be wrong until it is set over the network."""
    result = tls_call(certificate)
    assert isinstance(result.outcome, RemoteUnavailable)
    assert "CERTIFICATE_VERIFY_FAILED" in str(result.outcome)
    assert (result.requests, len(result.waits)) == (0, ATTEMPTS - 1)


@pytest.mark.process
def test_an_authority_of_the_systems_store_is_trusted(certificate: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here the store is the one that OpenSSL takes from SSL_CERT_FILE."""
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    result = tls_call(certificate)
    assert isinstance(result.outcome, Reply)
    assert result.outcome.bytes_in < 600
