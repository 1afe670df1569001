"""A chat completions server on 127.0.0.1 that behaves as badly as a test wants.

    with LLMServer(in_turn(failing(503), saying("hello"))) as server:
        client = Client(Endpoint(base_url=server.url, ...))     # first a 503, then "hello", again and again
    assert [request.prompt for request in server.requests] == ["hi", "hi"]

A *script* is called with each `Request` and returns what to do about it, an *act*. Any function of a request will do,
such as `lambda request: saying(request.prompt.upper())`. An act is called with the connection's socket and may do
whatever it likes with it. The connection stays open for the next request unless the act shuts it down.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import socketserver
import ssl
import struct
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler
from typing import Any

Act = Callable[[socket.socket], None]
JSON = "application/json"
LONGEST_PAUSE = 600.0
"""Seconds after which an act that waits gives up, so that no test hangs for ever."""


@dataclass(frozen=True)
class Request:
    """What a client sent; header names are in lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, parsed."""
        return json.loads(self.body)

    @property
    def prompt(self) -> str:
        """The last message."""
        return str(self.json["messages"][-1]["content"])


Script = Callable[[Request], Act]


class LLMServer:
    """Serves by `script` until it is closed; `requests` are all that came, also those that were answered badly.

    `url` is a base_url. With `tls` (a server's context with its certificate) it speaks HTTPS.
    """

    def __init__(self, script: Script, tls: ssl.SSLContext | None = None) -> None:
        self.script = script
        self.requests: list[Request] = []
        self._server = _Server(self)
        if tls:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self.port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def __enter__(self) -> LLMServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening and cut every connection."""
        self._server.shutdown()
        self._thread.join()
        self._server.cut()
        self._server.server_close()


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, owner: LLMServer) -> None:
        self.owner = owner
        self.open: set[socket.socket] = set()
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self.open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.open.discard(request)
        super().shutdown_request(request)

    def cut(self) -> None:
        for connection in tuple(self.open):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], OSError):  # a client that went away is what some tests are about
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        assert isinstance(self.server, _Server)
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(self.command, self.path, headers, body)
        self.server.owner.requests.append(request)
        self.server.owner.script(request)(self.connection)

    do_GET = do_POST  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


# ---- scripts ----


def in_turn(*acts: Act) -> Script:
    """The first act for the first request and so on; the last one for all that follow."""
    numbers = itertools.count()
    return lambda _: acts[min(next(numbers), len(acts) - 1)]


# ---- acts ----


def completion(text: str, **changes: Any) -> dict[str, Any]:
    """The body of a chat completion as OpenAI sends it, with `changes` at the top level."""
    message = {"role": "assistant", "content": text}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1_700_000_000,
        "model": "served-model",
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
        **changes,
    }


def saying(text: str, **changes: Any) -> Act:
    """Answer with a completion."""
    return answering(json.dumps(completion(text, **changes)).encode())


def failing(status: int, message: str = "no", headers: Mapping[str, str] | None = None) -> Act:
    """Answer with an error in OpenAI's form."""
    return answering(json.dumps({"error": {"message": message}}).encode(), status, headers)


def answering(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> Act:
    """Answer with any body; `headers` are added to, or replace, those for JSON."""
    return sending(head(len(body), status, headers) + body)


def head(length: int, status: int = 200, headers: Mapping[str, str] | None = None) -> bytes:
    """Status line and headers of an answer whose body has `length` bytes."""
    fields = {"Content-Type": JSON, "Content-Length": str(length), **(headers or {})}
    lines = [f"HTTP/1.1 {status} Reason", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    return "\r\n".join(lines).encode("latin-1")


def sending(data: bytes, *, then: Act | None = None) -> Act:
    """Send any bytes and then do something else."""

    def act(connection: socket.socket) -> None:
        connection.sendall(data)
        if then:
            then(connection)

    return act


def dripping(data: bytes, pause: float) -> Act:
    """Send one byte every `pause` seconds."""

    def act(connection: socket.socket) -> None:
        for byte in data:
            connection.sendall(bytes([byte]))
            if silent(connection, pause):
                return

    return act


def hanging(connection: socket.socket) -> None:
    """Keep the connection open without a word until the client goes away."""
    silent(connection, LONGEST_PAUSE)


def silent(connection: socket.socket, seconds: float) -> bool:
    """Wait; True if the client went away meanwhile."""
    connection.settimeout(seconds)
    try:
        return connection.recv(1) == b""
    except TimeoutError:
        return False
    finally:
        connection.settimeout(None)


def resetting(connection: socket.socket) -> None:
    """Cut the connection with a TCP reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    # The handler's own references keep the descriptor open; without them this close sends the reset.
    socket.socket(fileno=connection.detach()).close()


def ending(connection: socket.socket) -> None:
    """End the connection in good order."""
    connection.shutdown(socket.SHUT_RDWR)
