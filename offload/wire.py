"""httpx's transport with two things it lacks: a deadline over a whole exchange, and counts of bytes.

httpx's timeouts each bound one step: a server that sends a byte of a header or of a body now and then holds a client
for hours. Here every step is also cut to what is left until the deadline. Two things stay outside of it: the lookup of
a name, which only the resolver's own timeout ends, and a host with several addresses, which are tried in turn.
"""

from __future__ import annotations

import math
import ssl
import time
from collections.abc import Iterable
from typing import Any

import httpcore
import httpx

KEEP_ALIVE = 5.0
"""Seconds that an idle connection is kept for the next call; after longer ones a router may have forgotten it."""


class Wire(httpx.HTTPTransport):
    """One connection at a time, kept alive between calls; set `deadline` (of time.monotonic) before each exchange.

    Trusts the certificates that come with certifi and those of the system's own store, where an operator puts a private
    authority; verification cannot be switched off. `sent` and `received` count the bytes of HTTP since the start,
    headers and failed exchanges included, without the overhead of TLS.
    """

    def __init__(self, *, tls: bool) -> None:
        self.deadline = math.inf
        self.sent = 0
        self.received = 0
        trust = None
        if tls:  # reading the certificates takes 50 ms or more, and without TLS nothing needs them
            trust = httpx.create_ssl_context(trust_env=False)
            trust.load_default_certs()
        # httpx has no argument for a network backend; this attribute is the one thing its constructor sets.
        self._pool = httpcore.ConnectionPool(
            ssl_context=trust,
            max_connections=1,
            keepalive_expiry=KEEP_ALIVE,
            network_backend=_Backend(self),
        )

    def time_left(self, timeout: float | None) -> float:
        """Seconds that the next step may take. Raises httpcore.ReadTimeout after the deadline."""
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise httpcore.ReadTimeout("deadline")
        return left if timeout is None else min(left, timeout)


class _Backend(httpcore.NetworkBackend):
    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._backend = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        left = self._wire.time_left(timeout)
        return _Stream(self._wire, self._backend.connect_tcp(host, port, left, local_address, socket_options))


class _Stream(httpcore.NetworkStream):
    def __init__(self, wire: Wire, stream: httpcore.NetworkStream) -> None:
        self._wire = wire
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        data = self._stream.read(max_bytes, self._wire.time_left(timeout))
        self._wire.received += len(data)
        return data

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._wire.time_left(timeout))
        self._wire.sent += len(buffer)

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        return _Stream(self._wire, self._stream.start_tls(ssl_context, server_hostname, self._wire.time_left(timeout)))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
